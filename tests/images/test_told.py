"""What pictures of ours and of other programs say of themselves is read back; what is damaged or huge is not."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli.errors import SdcliError
from sdcli.images.encode import encode_picture
from sdcli.images.metadata import Provenance, provenance_json
from sdcli.images.texts import texts_in
from sdcli.images.told import read_told

A1111 = """a (red:1.2) fox, <lora:fur:0.8>
in two lines
Negative prompt: ugly, blurred: very
Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 123456789, Size: 512x768, \
Model hash: 6ce0161689, Model: "v1-5, pruned", Denoising strength: 0.7, Clip skip: 2, Hires upscale: 2, \
ADetailer prompt: "a face, \\"smiling\\"", \
Version: v1.10.1"""

SD_CPP = """a fox
Negative prompt: ugly
Steps: 20, CFG scale: 7.000000, Guidance: 3.500000, Seed: 42, Size: 512x512, Model: sd15.safetensors, RNG: cuda, \
Sampler: euler_a, Version: stable-diffusion.cpp"""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


COMFY = {
    "3": node(
        "KSampler",
        seed=7,
        steps=30,
        cfg=8.0,
        sampler_name="dpmpp_2m",
        scheduler="karras",
        denoise=1,
        model=["10", 0],
        positive=["6", 0],
        negative=["7", 0],
        latent_image=["5", 0],
    ),
    "4": node("CheckpointLoaderSimple", ckpt_name="sub/sd15.safetensors"),
    "5": node("EmptyLatentImage", width=640, height=512, batch_size=1),
    "6": node("CLIPTextEncode", text="a fox", clip=["4", 1]),
    "7": node("CLIPTextEncode", text="ugly", clip=["4", 1]),
    "10": node("LoraLoader", lora_name="fur.safetensors", strength_model=0.8, model=["4", 0]),
    "8": node("VAEDecode", samples=["3", 0]),
}


def png(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text) if not text.isascii() else info.add_text(name, text)
    Image.new("RGB", (16, 8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_our_own_record_is_read_back_from_every_format(provenance: Provenance, tmp_path: Path, suffix: str) -> None:
    provenance = dataclasses.replace(provenance, prompt='a "fox" 🦊,\nשועל', seed=2**64 - 1, schedule="karras")
    path = tmp_path / f"fox{suffix}"
    path.write_bytes(encode_picture(bytes(16 * 8 * 3), 16, 8, suffix, provenance, edited=False, keep_text=True))
    told = read_told(path)
    assert (told.writer, told.width, told.height) == ("sdcli", 16, 8)
    assert told.record == json.loads(provenance_json(provenance))


def test_a1111s_text(tmp_path: Path) -> None:
    told = read_told(png(tmp_path / "a.png", parameters=A1111))
    assert told.writer == "a1111"
    assert told.values == {
        "prompt": "a (red:1.2) fox, <lora:fur:0.8>\nin two lines",
        "negative": "ugly, blurred: very",
        "steps": "25",
        "sampler": "DPM++ 2M",
        "schedule": "Karras",
        "guidance": "6.5",
        "seed": "123456789",
        "size": "512x768",
        "model": "v1-5, pruned",
        "strength": "0.7",
        "clip_skip": "2",
        "hires": "2",
    }
    assert told.unknown == {"ADetailer prompt": 'a face, "smiling"'}


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
def test_a1111s_text_in_a_jpeg(tmp_path: Path, order: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode(order)
    Image.new("RGB", (16, 8)).save(tmp_path / "a.jpg", exif=exif.tobytes())
    assert read_told(tmp_path / "a.jpg").values == read_told(png(tmp_path / "a.png", parameters=A1111)).values


def test_sd_cpps_text(tmp_path: Path) -> None:
    values = read_told(png(tmp_path / "a.png", parameters=SD_CPP)).values
    assert (values["sampler"], values["guidance"], values["size"]) == ("euler_a", "7.000000", "512x512")


def test_comfyuis_graph(tmp_path: Path) -> None:
    told = read_told(png(tmp_path / "a.png", prompt=json.dumps(COMFY), workflow="{}"))
    assert (told.writer, told.unknown) == ("comfyui", {"LoraLoader": "a node"})
    assert told.values == {
        "prompt": "a fox",
        "negative": "ugly",
        "seed": "7",
        "steps": "30",
        "guidance": "8.0",
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "model": "sub/sd15.safetensors",
        "size": "640x512",
    }


KLEIN = {
    "1": node(
        "SamplerCustomAdvanced",
        noise=["2", 0],
        guider=["3", 0],
        sampler=["4", 0],
        sigmas=["5", 0],
        latent_image=["6", 0],
    ),
    "2": node("RandomNoise", noise_seed=["12", 0]),
    "3": node("CFGGuider", model=["7", 0], positive=["8", 0], negative=["9", 0], cfg=1),
    "4": node("KSamplerSelect", sampler_name="euler"),
    "5": node("Flux2Scheduler", steps=4, width=640, height=512),
    "6": node("EmptyFlux2LatentImage", width=640, height=512, batch_size=1),
    "7": node("UNETLoader", unet_name="flux-2-klein-4b.safetensors", weight_dtype="default"),
    "8": node("CLIPTextEncode", text="a fox", clip=["10", 0]),
    "9": node("ConditioningZeroOut", conditioning=["8", 0]),
    "10": node("CLIPLoader", clip_name="qwen_3_4b.safetensors", type="flux2"),
    "11": node("VAEDecode", samples=["1", 0]),
    "12": node("PrimitiveInt", value=42),
}
"""As ComfyUI's own example of FLUX.2 [klein] has its nodes."""


def test_a_graph_whose_sampler_is_of_several_nodes(tmp_path: Path) -> None:
    told = read_told(png(tmp_path / "a.png", prompt=json.dumps(KLEIN)))
    assert told.values == {
        "prompt": "a fox",
        "seed": "42",
        "steps": "4",
        "guidance": "1",
        "sampler": "euler",
        "model": "flux-2-klein-4b.safetensors",
        "size": "640x512",
    }
    assert set(told.unknown) == {"CLIPLoader", "ConditioningZeroOut"}


def test_words_that_were_zeroed_are_no_negative_prompt(tmp_path: Path) -> None:
    graph = {**COMFY, "3": {**COMFY["3"], "inputs": {**COMFY["3"]["inputs"], "negative": ["9", 0]}}}
    graph["9"] = node("ConditioningZeroOut", conditioning=["6", 0])
    assert "negative" not in read_told(png(tmp_path / "a.png", prompt=json.dumps(graph))).values


def test_both_prompts_of_sdxls_node_and_a_second_sampler_are_told(tmp_path: Path) -> None:
    graph = {**COMFY, "6": node("CLIPTextEncodeSDXL", text_g="a fox", text_l="a cat"), "20": COMFY["3"]}
    told = read_told(png(tmp_path / "a.png", prompt=json.dumps(graph)))
    assert told.values["prompt"] == "a fox"
    assert set(told.unknown) == {"LoraLoader", "text_l", "another KSampler"}


def test_a_graph_in_a_circle_ends(tmp_path: Path) -> None:
    graph = {
        "1": node("KSampler", positive=["2", 0], model=["2", 0]),
        "2": node("Odd", conditioning=["2", 0], model=["2", 0]),
    }
    graph["1"]["inputs"]["steps"] = 4
    assert read_told(png(tmp_path / "a.png", prompt=json.dumps(graph))).values == {"steps": "4"}


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"parameters": "just words"},
        {"parameters": ""},
        {"prompt": "[1, 2]"},
        {"prompt": '{"1": 2}'},
        {"prompt": "[" * 100_000},
        {"sdcli": '{"schema": "other"}'},
        {"Comment": "Steps: 20"},
    ],
    ids=lambda texts: str(texts)[:40],
)
def test_a_picture_that_says_nothing_is_told_of(tmp_path: Path, texts: dict[str, str]) -> None:
    with pytest.raises(SdcliError, match="does not say how it was made"):
        read_told(png(tmp_path / "a.png", **texts))


@pytest.mark.parametrize(
    "data", [b"", b"words", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + b"\xff" * 99, b"\xff\xd8\xff\xe0abc"]
)
def test_what_is_no_picture_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(SdcliError) as caught:
        read_told(tmp_path / "a.png")
    assert str(caught.value).isprintable()
    with pytest.raises(SdcliError, match="is not a file"):
        read_told(tmp_path)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_compressed_texts_are_read_and_bombs_are_not(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (16, 8)).save(image, "PNG")
    head, rest = image.getvalue()[:33], image.getvalue()[33:]
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"x" * 2**26))
    damaged = chunk(b"iTXt", b"parameters\0\1\0\0\0not zlib")
    good = chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(A1111.encode()))
    (tmp_path / "a.png").write_bytes(head + bomb + damaged + good + rest)
    assert texts_in(tmp_path / "a.png").by_name == {"parameters": A1111}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_picture_that_claims_to_be_huge_is_one_line(tmp_path: Path, kind: str) -> None:
    written = io.BytesIO()
    Image.new("RGB", (8, 8)).save(written, kind, exif=_described("{}"))
    raw = bytearray(written.getvalue())
    at = raw.index(b"VP8X") + 12 if kind == "WEBP" else raw.index(b"\xff\xc0") + 5
    raw[at : at + (6 if kind == "WEBP" else 4)] = b"\xff" * (6 if kind == "WEBP" else 4)
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(SdcliError, match="is a damaged picture"):
        texts_in(tmp_path / "a")


def _described(text: str) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = text
    return exif.tobytes()


@pytest.mark.parametrize(
    "line", ["Steps: 20, " + "a:" * 300_000, "Steps: 20" + ', a: "' * 150_000, "Steps: 2 " * 100_000]
)
def test_long_lines_take_no_long_time(tmp_path: Path, line: str) -> None:
    path, began = png(tmp_path / "a.png", parameters=line), time.process_time()
    read_told(path)
    assert time.process_time() - began < 5
