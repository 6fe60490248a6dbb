"""Weights in the CPU library's own layout: bytes, and a description that oneDNN understands.

`opaque` makes one of bytes that lie anywhere, a memory-mapped file for instance.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

from sdcli.weights.arena import Arena


def description(packed: torch.Tensor) -> bytes:
    """oneDNN's description of a packed weight: layout, shape and type."""
    return bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())


def size_of(packed: torch.Tensor) -> int:
    """Bytes of a packed weight, by its description."""
    return int(torch.ops.mkldnn._nbytes(packed))


def raw_bytes(packed: torch.Tensor) -> memoryview:
    """The bytes of a packed weight, as long as it lives."""
    return memoryview((ctypes.c_uint8 * size_of(packed)).from_address(torch.ops.mkldnn.data_ptr(packed)))


def opaque(
    address: int, shape: tuple[int, ...], dtype: torch.dtype, described: bytes, owner: object = None
) -> torch.Tensor:
    """The packed weight whose bytes are at `address`, in memory that lives as long as `owner` does.

    By torch's C interface for compiled models (torch/csrc/inductor/aoti_torch/c/shim.h). Raises RuntimeError if torch
    refuses.
    """
    library = _torch_library()
    sides, strides = (ctypes.c_int64 * len(shape))(*shape), (ctypes.c_int64 * len(shape))()
    handle = ctypes.c_void_p()
    failed = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(address),
        ctypes.c_int64(len(shape)),
        sides,
        strides,
        ctypes.c_int64(0),
        ctypes.c_int32(_code(f"dtype_{str(dtype).removeprefix('torch.')}")),
        ctypes.c_int32(_code("device_type_cpu")),
        ctypes.c_int32(0),
        ctypes.byref(handle),
        ctypes.c_int32(_code("layout__mkldnn")),
        (ctypes.c_uint8 * len(described)).from_buffer_copy(described),
        ctypes.c_int64(len(described)),
    )
    if failed:
        raise RuntimeError("torch makes no packed weight of given bytes")
    wrap = ctypes.pythonapi.PyCapsule_New
    wrap.restype, wrap.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    steal = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs  # its singular keeps a reference for ever
    tensor: torch.Tensor = steal([wrap(handle, None, None)])[0]
    tensor.lies_in = owner  # type: ignore[attr-defined]  # kept alive by the tensor that looks into it
    return tensor


def seen_as_packed(plain: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as the library's, in the plain layout, read where it lies. Raises as `opaque` does."""
    shape = tuple(plain.shape)
    return opaque(plain.data_ptr(), shape, plain.dtype, _plain_description(shape, plain.dtype), plain)


def moved(packed: torch.Tensor, arena: Arena) -> torch.Tensor:
    """A packed weight, copied into the arena."""
    room = arena.take(size_of(packed))
    ctypes.memmove(room.data_ptr(), torch.ops.mkldnn.data_ptr(packed), len(room))
    return opaque(room.data_ptr(), tuple(packed.shape), packed.dtype, description(packed), room)


@functools.lru_cache(maxsize=128)
def _plain_description(shape: tuple[int, ...], dtype: torch.dtype) -> bytes:
    layout = torch._mkldnn  # type: ignore[attr-defined]  # torch has no types for it
    return description(torch.empty(shape, dtype=dtype, layout=layout))


@functools.cache
def _torch_library() -> Any:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


@functools.cache
def _code(name: str) -> int:
    """torch's number for a type, a device or a layout."""
    return int(getattr(_torch_library(), f"aoti_torch_{name}")())
