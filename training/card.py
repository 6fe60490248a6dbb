"""The model card: what the model is, how it was made, what was measured, what it cannot do, and whose it is."""

from __future__ import annotations

from typing import Any

from training.networks import LATENTS, SCHEDULER
from training.recipes import COLOUR_NAMES, HELD_OUT, PLACES, SIZE_WORDS

TEXT = """# Glyphs: a small Stable Diffusion that draws emoji composed by words

It draws one or two of {concepts} objects on a background of a colour, at 256x256 pixels: "a fox on a blue background",
"a small red apple at the top on a white background", "a cat and a dog on a green background". It was trained from
nothing by the program in `training/`, on pictures that the same program composed; no data set was downloaded.

| part | class | parameters |
| --- | --- | --- |
| text encoder | CLIPTextModel | {text_encoder:.2f} M |
| denoiser | UNet2DConditionModel | {unet:.2f} M |
| autoencoder | AutoencoderKL, 8x reduction, {latents} channels | {vae:.2f} M |
| scheduler | DDIMScheduler: {prediction}, zero terminal SNR, trailing timesteps | |

## Words it knows

- Backgrounds: {colours}.
- Sizes: {sizes}. Places: {places}.
- Two objects: "a … and a …" (first on the left), "next to", "beside", "above", "over".
- Objects: {names}.

Other words become fragments of bytes; it was taught to pay no heed to them.

## How it was made

- Material: Noto Color Emoji, bitmaps of 109 pixels an em, names from the Unicode Character Database. No skin tones,
  clocks, flags, letters, keycaps or zodiac; of two glyphs that look alike one was left out.
- A tenth of all object x colour and of all object x object combinations (CRC-32 of the words, modulo {held}) was
  never shown in training.
- Autoencoder: absolute, squared and gradient error, and PSNR; posterior of fixed small deviation. Denoiser:
  v-prediction, text encoder trained with it, captions dropped for guidance, mean of the weights over the last
  thousand steps (EMA).
- {facts}
{history}
![Losses over each stage's time](curves.png)

## Measures

{measures}

## What it cannot do

It knows nothing but its glyphs: no scenes, no people, no styles, no text, no counting, no more than two objects, no
colours of the objects themselves. Combinations it never saw fail now and then, pairs more often than single objects.
Small glyphs lose fine detail. Pictures of other sizes than 256x256 are outside what it was trained on.

## Licence

Apache-2.0, as sdcli; LICENSE.md says what it was trained on.
"""

LICENCE = """# Licence of the built-in model

The weights, configurations and texts in this folder: Copyright the sdcli contributors, Apache License 2.0
(https://www.apache.org/licenses/LICENSE-2.0; its text is sdcli's own LICENSE file).

They were trained on pictures drawn with Noto Color Emoji, Copyright Google LLC, licensed under the SIL Open Font
License, Version 1.1 (https://openfontlicense.org). No part of the font software is in this folder. That licence's
requirement to stay under it does not apply to documents created with a font; the model is not endorsed by the
font's authors.
"""


def model_card(
    names: list[list[str]], counts: dict[str, int], facts: dict[str, Any], measures: dict[str, Any], history: str = ""
) -> str:
    """The card's text.

    `counts` are parameters a part, `facts` as in state.json, `measures` as evaluate writes them, `history` what else
    a reader must know of how these weights came about.
    """
    told = [
        f"{stage}: {of.get('steps')} steps of {of.get('batch')} in {of.get('seconds')} s, seed {of.get('seed')}"
        for stage, of in facts.items()
    ]
    return TEXT.format(
        concepts=len(names),
        prediction=SCHEDULER["prediction_type"],
        colours=", ".join(COLOUR_NAMES),
        sizes=", ".join(word for words in SIZE_WORDS for word in words if word),
        places=", ".join(words for words, _, _ in PLACES if words),
        names=", ".join(group[0] for group in names),
        held=HELD_OUT,
        latents=LATENTS,
        facts="Stages: " + ("; ".join(told) or "not recorded") + ".",
        history=f"- {history.strip()}\n" if history.strip() else "",
        measures=measures.get("table", "Not measured yet."),
        **{part: count / 1e6 for part, count in counts.items()},
    )
