"""Whether the tensors of a LoRA go together, and with the weight that they change: told by their shapes alone.

Sides of length 1 at the end say nothing: a 1 x 1 convolution is a matrix.
"""

from __future__ import annotations

import math
from typing import NoReturn

from sdcli.domain import AdapterKind, Origin
from sdcli.errors import SdcliError, echo

Tensors = dict[str, Origin]
Shape = tuple[int, ...]


def check_shapes(
    where: str, kind: AdapterKind, tensors: Tensors, name: str, shape: Shape, remedy: str
) -> tuple[Tensors, int | None]:
    """The tensors by their roles in weights/adapters.py, and the rank that alpha is divided by, if there is one.

    Raises SdcliError naming what does not fit the weight `name` of that shape; `remedy` is what to do about it.
    """
    checked = _Checked(where, dict(tensors), name, shape, remedy)
    rank = {"lora": checked.lora, "loha": checked.loha, "lokr": checked.lokr}[kind]()
    checked.magnitude()
    return checked.tensors, rank


class _Checked:
    def __init__(self, where: str, tensors: Tensors, name: str, shape: Shape, remedy: str) -> None:
        self.tensors, self._where, self._name, self._shape, self._remedy = tensors, where, name, shape, remedy
        self._out, self._into = shape[0], shape[1]
        self._kernel = math.prod(shape[2:])

    def lora(self) -> int:
        """up (out, rank), down (rank, in, kernel); with a mid, (rank, rank, kernel), down is (rank, in)."""
        self._require("down", "up")
        down, up = self._of("down"), self._of("up")
        rank = down[0]
        if "mid" in self.tensors:
            mid = self._of("mid")
            self._together(mid == (up[1], rank, self._kernel) and down[2] == 1, "up", "mid", "down")
        else:
            self._together(up[1] == rank, "up", "down")
        kernel = self._kernel if "mid" in self.tensors else down[2]
        self._fits((up[0], down[1], kernel), up[2] == 1)
        return self._at_least_1(rank)

    def loha(self) -> int:
        """w_a (out, rank) and w_b (rank, in x kernel); with t, (rank, rank, kernel), (rank, out) and (rank, in)."""
        self._require("w1_a", "w1_b", "w2_a", "w2_b")
        sides = set()
        for one in ("1", "2"):
            a, b = self._flat(f"w{one}_a"), self._flat(f"w{one}_b")
            if f"t{one}" in self.tensors:
                t = self._of(f"t{one}")
                self._together(t[:2] == (a[0], b[0]), f"t{one}", f"w{one}_a", f"w{one}_b")
                sides.add((a[1], b[1] * t[2]))
            else:
                self._together(a[1] == b[0], f"w{one}_a", f"w{one}_b")
                sides.add((a[0], b[1]))
        self._together(len(sides) == 1, "w1_a", "w1_b", "w2_a", "w2_b")
        ((out, into),) = sides
        self._fits((out, into), True)
        return self._at_least_1(self._flat("w1_b")[0])

    def lokr(self) -> int | None:
        """w1 (a, b) and w2 (c, d, kernel) of a weight (a c, b d, kernel); each whole, or w_a w_b, or w2 with t."""
        ranks = []
        if "w1" not in self.tensors:
            self._require("w1_a", "w1_b")
            a, b = self._flat("w1_a"), self._flat("w1_b")
            self._together(a[1] == b[0], "w1_a", "w1_b")
            one = a[0], b[1]
            ranks.append(b[0])
        else:
            one = self._flat("w1")
        if "w2" in self.tensors:
            two = self._flat("w2")
        else:
            self._require("w2_a", "w2_b")
            a, b = self._flat("w2_a"), self._flat("w2_b")
            if "t2" in self.tensors:
                t = self._of("t2")
                self._together(t[:2] == (a[0], b[0]), "t2", "w2_a", "w2_b")
                two = a[1], b[1] * t[2]
            else:
                self._together(a[1] == b[0], "w2_a", "w2_b")
                two = a[0], b[1]
            ranks.append(b[0])
        self._fits((one[0] * two[0], one[1] * two[1]), True)
        return self._at_least_1(ranks[-1]) if ranks else None

    def magnitude(self) -> None:
        """A number for each output, or for each input; of as many the tensor's shape tells which (LyCORIS)."""
        per_output = "magnitude" in self.tensors  # PEFT's name, whatever the shape
        stored = self.tensors.pop("magnitude", None) or self.tensors.pop("dora_scale", None)
        if stored is None:
            return
        if "dora_scale" in self.tensors:
            self._together(False, "magnitude", "dora_scale")
        shape = stored.shape
        if stored.numel == self._out and (per_output or len(shape) < 2 or shape[0] == self._out):
            self.tensors["magnitude"] = stored
        elif len(shape) > 1 and shape[1] == self._into == stored.numel:
            self.tensors["input_magnitude"] = stored
        else:
            self._misfit(f"has magnitudes {shape}")

    def _of(self, role: str) -> tuple[int, int, int]:
        """Its sides: two, and the numbers of a kernel."""
        shape = self.tensors[role].shape
        if len(shape) < 2:
            self._together(False, role)
        return shape[0], shape[1], math.prod(shape[2:])

    def _flat(self, role: str) -> tuple[int, int]:
        """The same with the kernel in the second."""
        first, second, kernel = self._of(role)
        return first, second * kernel

    def _require(self, *roles: str) -> None:
        for role in roles:
            if role not in self.tensors:
                raise SdcliError(f"{self._where} lacks its {role}: fetch it again")

    def _together(self, fits: bool, *roles: str) -> None:
        if not fits:
            shapes = ", ".join(f"{role} {self.tensors[role].shape}" for role in roles if role in self.tensors)
            raise SdcliError(f"{self._where} has tensors that do not go together, {shapes}: fetch it again")

    def _fits(self, sides: tuple[int, ...], matrix: bool) -> None:
        whole = self._out, self._into, self._kernel
        if not matrix or sides != (whole if len(sides) == 3 else (self._out, self._into * self._kernel)):
            self._misfit(f"is for a weight of {sides[:2] if sides[2:] == (1,) else sides}")

    def _misfit(self, what: str) -> NoReturn:
        raise SdcliError(f"{self._where} {what}, and the model's {echo(self._name)} has {self._shape}: {self._remedy}")

    def _at_least_1(self, rank: int) -> int:
        if rank < 1:
            raise SdcliError(f"{self._where} has a rank of {rank}: fetch it again")
        return rank
