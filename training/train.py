"""Train the built-in model, in sittings.

    python -m training.glyphs
    python -m training.train --all --minutes 27 --autoencoder-minutes 10 --out DIR --compile

or in sittings, which go on from each other (training/README.md). `--minutes` counts from the start of the process,
imports and compilation included; `--total-minutes` is the denoiser's (or the one stage's) training time over all
sittings, along which the learning rate falls.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

from training import STARTED

STAGES = ("autoencoder", "denoiser", "decoder", "rehearse")


def main(argv: list[str] | None = None) -> None:
    """Run one stage, or the autoencoder and then the denoiser."""
    args = parse(argv)
    from training.autoencoder import train_autoencoder
    from training.denoiser import rehearse, train_denoiser
    from training.glyphs import load_glyphs
    from training.setting import Setting, prepare_device
    from training.state import carry_over

    args.out.mkdir(parents=True, exist_ok=True)
    if args.resume:
        carry_over(args.resume, args.out)
    setting = Setting(
        glyphs=load_glyphs(args.glyphs),
        device=prepare_device(args.device),
        out=args.out,
        resume=args.resume,
        size=args.size,
        seed=args.seed,
        batch=args.batch,
        pool=args.pool,
        rate=args.rate,
        compile=args.compile,
        done=None if args.done_minutes is None else 60 * args.done_minutes,
        most_steps=args.most_steps,
    )
    total = None if args.total_minutes is None else 60 * args.total_minutes
    end = STARTED + 60 * args.minutes if argv is None else time.monotonic() + 60 * args.minutes
    if args.all:
        middle = min(end, time.monotonic() + 60 * args.autoencoder_minutes)
        train_autoencoder(setting, middle, None)
        train_denoiser(dataclasses.replace(setting, done=setting.done or 0.0), end, total)
    elif args.stage == "denoiser":
        train_denoiser(setting, end, total)
    elif args.stage == "rehearse":
        with tempfile.TemporaryDirectory() as folder:
            rehearse(dataclasses.replace(setting, out=Path(folder), resume=None))
        print(f"rehearsed in {time.monotonic() - STARTED:.0f} s", flush=True)
    else:
        train_autoencoder(setting, end, total, args.stage)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", choices=STAGES)
    what.add_argument("--all", action="store_true", help="the autoencoder, then the denoiser")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--autoencoder-minutes", type=float, default=3.3)
    parser.add_argument("--total-minutes", type=float)
    parser.add_argument("--done-minutes", type=float, help="of earlier sittings; default: as recorded in --resume")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--glyphs", type=Path, default=Path("training/glyphs.npz"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=0, help="default: 16 scenes, then 512 latents")
    parser.add_argument("--pool", type=int, default=61440)
    parser.add_argument("--rate", type=float, default=0.0, help="the denoiser's highest learning rate")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--most-steps", type=int, default=10**9)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
