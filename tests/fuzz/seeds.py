"""Inputs to begin with, each of which its parser takes: made here, small, none of them anybody's file."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sdcli.models
from tests.laid_out import Shapes, laid_out

DEMO = Path(sdcli.models.__file__).parent / "demo"

CORPUS = Path(__file__).parent / "corpus"
"""Folders by the names of targets, with inputs that once did what none may do."""

Seeds = Callable[[], list[bytes]]


def found_before(name: str) -> list[bytes]:
    """Of a target."""
    home = CORPUS / name
    return [path.read_bytes() for path in sorted(home.iterdir())] if home.is_dir() else []


def plain(*values: object) -> Seeds:
    """JSON of each."""
    return lambda: [json.dumps(value).encode() for value in values]


def texts(*lines: str) -> Seeds:
    return lambda: [line.encode() for line in lines]


def headers() -> list[bytes]:
    return [
        laid_out({"a": ("F32", [2, 3]), "b": ("F16", [4]), "c": ("BF16", [])}),
        laid_out({"w": ("F8_E4M3", [2, 2]), "w.scale_weight": ("F32", [])}, {"format": "pt"}),
        laid_out({"layer.comfy_quant": ("U8", [26])}, None, b'{"format": "float8_e4m3fn"}'[:26]),
        laid_out({}, {"_quantization_metadata": '{"layers": {"a": {"format": "nvfp4"}}}'}),
        laid_out({"emb_params": ("F32", [2, 768])}),
        laid_out({"string_to_param.*": ("F16", [1, 768])}),
        laid_out({"lora_unet_mid_block_attentions_0_proj_in.alpha": ("F16", [])}),
    ]


@cache
def _shapes_of(part: str) -> Shapes:
    from sdcli.models.header import read_header

    (file,) = (DEMO / part).glob("*.safetensors")
    return {name: (info.dtype, [*info.shape]) for name, info in read_header(file).tensors.items()}


def networks() -> list[bytes]:
    """Names, types and shapes of networks as single files have them, as JSON; and of embeddings, and shards."""
    unet = {f"model.diffusion_model.{name}": one for name, one in _ORIGINAL.items()}
    vae = {
        "first_stage_model.decoder.conv_in.weight": ("F32", [512, 4, 3, 3]),
        "first_stage_model.post_quant_conv.weight": ("F32", [4, 4, 1, 1]),
    }
    text = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": ("F16", [49408, 768])}
    flux = {
        "double_blocks.0.img_attn.qkv.weight": ("BF16", [9216, 3072]),
        "img_in.weight": ("BF16", [3072, 128]),
        "single_blocks.0.linear1.weight": ("BF16", [27648, 3072]),
        "txt_in.weight": ("BF16", [3072, 7680]),
    }
    turbo = {
        "layers.0.attention.qkv.weight": ("BF16", [11520, 3840]),
        "x_embedder.weight": ("BF16", [3840, 64]),
        "noise_refiner.0.attention.out.weight": ("BF16", [3840, 3840]),
        "cap_embedder.1.weight": ("BF16", [3840, 2560]),
    }
    wide = {
        "conditioner.embedders.1.model.ln_final.weight": ("F16", [1280]),
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": ("F16", [49408, 768]),
    }
    own = {f"unet.{name}": one for name, one in list(_shapes_of("unet").items())[:30]}
    return plain({**unet, **vae, **text}, {**unet, **wide}, unet, vae, flux, turbo, own)()


_ORIGINAL: Shapes = {
    "input_blocks.0.0.weight": ("F16", [320, 4, 3, 3]),
    "input_blocks.1.0.in_layers.2.weight": ("F16", [320, 320, 3, 3]),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": ("F16", [320, 768]),
    "input_blocks.1.1.proj_in.weight": ("F16", [320, 320, 1, 1]),
    "input_blocks.3.0.op.weight": ("F16", [320, 320, 3, 3]),
    "middle_block.0.in_layers.0.weight": ("F16", [320]),
    "output_blocks.0.0.skip_connection.weight": ("F16", [320, 640, 1, 1]),
    "out.2.weight": ("F16", [4, 320, 3, 3]),
    "time_embed.0.weight": ("F16", [1280, 320]),
}


def loras() -> list[bytes]:
    """Tensors of a LoRA for the built-in model, by name, and notes."""
    weights = {name: shape for name, (_, shape) in _shapes_of("unet").items() if name.endswith(".weight")}
    name, shape = next((name, shape) for name, shape in weights.items() if "attn" in name and len(shape) == 2)
    conv, kernel = next((name, shape) for name, shape in weights.items() if len(shape) == 4)
    module, of_conv = (f"lora_unet_{one.removesuffix('.weight').replace('.', '_')}" for one in (name, conv))
    out, into = shape
    kohya = {
        f"{module}.lora_down.weight": ["F16", [2, into]],
        f"{module}.lora_up.weight": ["F16", [out, 2]],
        f"{module}.alpha": ["F32", []],
    }
    conved = {
        f"{of_conv}.lora_down.weight": ["F16", [2, *kernel[1:]]],
        f"{of_conv}.lora_up.weight": ["F16", [kernel[0], 2, 1, 1]],
        f"{of_conv}.lora_mid.weight": ["F16", [2, 2, 3, 3]],
    }
    loha = {
        f"{module}.hada_w{one}_{side}": ["F32", [out, 2] if side == "a" else [2, into]] for one in "12" for side in "ab"
    }
    lokr = {f"{module}.lokr_w1": ["F32", [2, 2]], f"{module}.lokr_w2": ["F32", [out // 2, into // 2]]}
    peft = {
        f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight": [
            "BF16",
            [2, into] if side == "A" else [out, 2],
        ]
        for side in "AB"
    }
    noted = {**peft, "__metadata__": {"lora_adapter_metadata": '{"unet.lora_alpha": 4, "unet.use_rslora": true}'}}
    dora = {**kohya, f"{module}.dora_scale": ["F32", [out, 1]]}
    return plain(kohya, conved, loha, lokr, peft, noted, dora)()


def words() -> list[bytes]:
    """Tensors of files of textual inversion."""
    return plain(
        {"emb_params": ["F32", [2, 64]]},
        {"string_to_param.*": ["F16", [1, 64]], "string_to_token.*": ["I64", []]},
        {"<cat>": ["F32", [64]]},
        {"clip_g": ["F32", [1, 1280]], "clip_l": ["F32", [1, 768]]},
    )()


FILES = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)
"""Of a model's folder; an input names one by its first byte."""


def configs() -> list[bytes]:
    return [bytes((at,)) + (DEMO / name).read_bytes() for at, name in enumerate(FILES)]


def vocabularies() -> list[bytes]:
    """vocab.json, and merges.txt behind a NUL byte."""
    letters = {"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}
    merges = b"#version: 0.2\na b</w>\n"
    added = [
        {
            "id": 6,
            "content": "<|endoftext|>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ]
    whole = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": letters, "merges": [["a", "b</w>"]]},
    }
    return [json.dumps(letters).encode() + b"\0" + merges, json.dumps(whole).encode()]


PROMPTS = texts(
    "a red fox",
    "(a:1.3) [b] ((c)) BREAK d",
    "[a:b:0.5] [a|b|c] [x::3] [:y:2]",
    r"\(a\) \[b\] 🦊 a\:b",
    "((((((((((a",
    "[[[[a:b:0.1]|c]:d:3]|[e|f]]",
    "a <lora:style:0.8> b <lyco:x>",
    "(a:1.1)(b:-2)(c:.5)(d:0)",
)

OPTIONS = texts(
    "512",
    "768x512",
    "0,64",
    "0,0,128,0",
    "2GiB",
    "auto",
    "7.5",
    "random",
    "18446744073709551615",
    "laptop-8gb",
    "style.safetensors:0.8",
    "euler a",
    "DPM++ 2M Karras",
    "karras",
    "org/name@main/file.safetensors",
    "#ff8000",
)

LINES = texts(
    "a red fox --seed 3\n# not this\n\na cat --steps 4 --negative 'a b' --size 64x64\n", "--count 2 -- x\n", "x\n" * 40
)

CONFIG = texts(
    'steps = 20\nguidance = 7.5\nmem-limit = "2GiB"\nmodel = "demo"\n',
    'lora = ["a.safetensors:0.5"]\nsize = "64x64"\nno-cache = true\n',
    'sampler = "euler"\nseed = 7\nprofile = "x"\n[table]\na = 1\n',
)

A1111 = texts(
    "a red fox\nNegative prompt: ugly\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, "
    'Size: 64x64, Model: demo, Clip skip: 2, Lora hashes: "a: b"',
    "x\nSteps: 4, Sampler: Euler a, Size: 512x512, Denoising strength: 0.5, Hires upscale: 2, Hires steps: 0,"
    ' Note: "a, \\"b"',
    "Steps: 1, Hires resize: 0x1024, Hires upscaler: ESRGAN, Seed: 5, Size: 8x8",
)

COMFYUI = plain(
    {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 1,
                "steps": 20,
                "cfg": 8,
                "sampler_name": "euler",
                "scheduler": "karras",
                "denoise": 0.5,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "demo.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
        "7": {"class_type": "ConditioningCombine", "inputs": {"conditioning": ["6", 0]}},
    },
    {"1": {"class_type": "KSampler", "inputs": {"positive": ["1", 0], "model": ["1", 0], "latent_image": ["1", 0]}}},
)


def records() -> list[bytes]:
    """Our own JSON in a picture."""
    from sdcli.images.metadata import SCHEMA

    least = {
        "schema": SCHEMA,
        "prompt": "a fox",
        "negative": "",
        "steps": 4,
        "guidance": 7.5,
        "seed": 1,
        "width": 64,
        "height": 64,
        "model": "demo",
        "dtype": "fp32",
        "sampler": "DDIMScheduler",
        "device": "cpu",
    }
    more = {
        "emphasis": "a1111",
        "loras": [{"name": "a", "file": "/x/a.safetensors", "weight": 0.5, "sha256": "00"}],
        "parts": {"vae": "/x"},
        "embeddings": ["/e"],
        "outpaint": [0, 8, 0, 8],
        "inpaint_area": "whole",
        "mask": "alpha",
        "hires": {"width": 128, "height": 128, "steps": 2, "strength": 0.5, "upscaler": "latent"},
        "clip_skip": 2,
        "reference_sha256": ["00"],
        "init_sha256": "00",
    }
    return plain(least, {**least, **more})()


def pictures() -> list[bytes]:
    """PNG of several kinds, JPEG and WebP, with texts, EXIF and a profile."""
    found = []
    for mode, options in (("RGB", {}), ("RGBA", {}), ("P", {"transparency": 0}), ("L", {}), ("1", {}), ("I;16", {})):
        found.append(_encoded(Image.new(mode, (9, 7), 1 if mode != "RGBA" else (1, 2, 3, 4)), "PNG", **options))
    image, info = Image.new("RGB", (8, 8), (9, 8, 7)), PngInfo()
    info.add_text("parameters", "x\nSteps: 4, Seed: 1", zip=True)
    info.add_itxt("prompt", '{"1": {"class_type": "KSampler", "inputs": {"seed": 1}}}', zip=True)
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, '{"schema": "x"}'
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "x\nSteps: 4".encode("utf-16-be")
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found.append(_encoded(image, "PNG", pnginfo=info, icc_profile=profile, exif=exif.tobytes()))
    found += [_encoded(image, kind, exif=exif.tobytes()) for kind in ("JPEG", "WEBP")]
    found.append(_encoded(Image.new("CMYK", (8, 8)), "JPEG", progressive=True))
    found.append(_encoded(image, "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8))], lossless=True))
    found.append(_encoded(image, "PNG", save_all=True, append_images=[Image.new("RGB", (8, 8))]))
    return found


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def sealed(*blobs: bytes) -> list[bytes]:
    return [hashlib.sha256(blob).digest() + blob for blob in blobs]
