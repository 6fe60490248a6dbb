"""Counts a job before it runs: every stage of the family's network goes once without memory, in each of its ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from sdcli.devices.base import DTYPES, Device
from sdcli.devices.dry import DryDevice
from sdcli.domain import Component, Model, Request, StageName
from sdcli.engine.dry_run import DryRun
from sdcli.engine.masking import beside_rows
from sdcli.families.contract import Stage
from sdcli.families.registry import family_of
from sdcli.families.rounds import stages_of
from sdcli.messages import Count, Counted, Message
from sdcli.models.opened import open_model
from sdcli.plan.counts import Counts, StageCount, WayCount, counts_to_json
from sdcli.plan.ways import SCRATCHES, way_of_steps
from sdcli.uses import WeightUse
from sdcli.weights.borrow import Borrow, Note
from sdcli.weights.dry_adapters import add_dry
from sdcli.weights.match import require_match
from sdcli.weights.sliced import would_lie


def _noted_by(run: DryRun, device: Device, packed: bool) -> Note:
    """Has a dry run know the weights that a stage borrows. Raises SdcliError where the model's files lack some.

    What changes a weight goes beside its layer, where that computes with `packed` weights on the device.
    """

    def note(
        module: nn.Module,
        component: Component,
        dtype: torch.dtype,
        parts: tuple[str, ...],
        fetched: type[nn.Module] | None,
        sliced: type[nn.Module] | None,
    ) -> None:
        shapes = {name: p.shape for name, p in module.named_parameters() if name.startswith(parts)}
        require_match(component, shapes, parts)
        nn.Module.to(module, dtype)  # not the library's own, which asks for what the worker leaves out
        run.know(component.name, module, parts)
        for name, layer in module.named_modules():
            if fetched is not None and isinstance(layer, fetched) and f"{name}.".startswith(parts):
                run.copies(component.name, f"{name}.weight", layer)
            if sliced is not None and isinstance(layer, sliced) and f"{name}.".startswith(parts):
                origin = component.weights()[f"{name}.weight"]
                lies = f"{name}.weight" not in component.adapters and would_lie(origin, dtype, device.name == "cpu")
                run.slices(component.name, f"{name}.weight", layer, lies)
        for name, adapters in component.adapters.items():
            if name.startswith(parts):
                add_dry(module.get_submodule(name.rpartition(".")[0]), adapters, device, dtype, packed)

    return note


def count_all(asked: Count, device: Device) -> Iterator[Message]:
    """Answers for each request, in their order."""
    model = open_model(asked.model.path, asked.model)
    for request in asked.requests:
        counts = count(model, request, device, DTYPES[asked.dtype])
        device.release()  # modules refer to themselves in circles, and would be there when the first stage begins
        yield Counted(counts_to_json(counts).encode("ascii"))


def count(model: Model, request: Request, device: Device, dtype: torch.dtype) -> Counts:
    """Counts of every stage that the request takes. Raises SdcliError where the files do not match the network."""
    rounds = [_Counting(model, one, device, dtype) for one in request.rounds]
    counts = dict[StageName, StageCount]()
    for stage in stages_of(model, request):
        if stage.round:
            rounds[stage.round].go_on_from(rounds[0])
        counts[stage.name] = rounds[stage.round].stage(stage)
    return counts


class _Counting:
    """One after another, since a stage takes what the ones before it gave."""

    def __init__(self, model: Model, request: Request, device: Device, dtype: torch.dtype) -> None:
        self._model, self._request, self._device, self._dtype = model, request, DryDevice(device), dtype
        self._real = device
        self._network = import_module(family_of(model).network)
        pixels = torch.empty(1, 3, request.height, request.width, device="meta")
        self._state: dict[str, dict[str, torch.Tensor]] = {"pixels": {"rgb": pixels}}
        if request.masked:
            self._state["pixels"]["mask"] = pixels[:, :1]
        for index, (width, height) in enumerate(request.references):
            levels = torch.empty(1, 3, height, width, dtype=torch.uint8, device="meta")
            self._state.setdefault("references", {})[str(index)] = levels
        geometry = family_of(model).geometry(model)
        shape = geometry.latent_channels, *geometry.latent_shape(request)
        self._latents = torch.empty(1, *shape, device="meta")

    def go_on_from(self, first: _Counting) -> None:
        """With the words that were encoded in the first round."""
        self._state |= {
            name: given for name, given in first._state.items() if name.startswith(("conditioning", "turns"))
        }

    def stage(self, stage: Stage) -> StageCount:
        """All its ways. Weights are as one sample sees them."""
        if stage.times == "steps":
            return self._steps(stage)
        ways, weights = dict[str, WayCount](), tuple[WeightUse, ...]()
        for way in stage.ways or ("",):
            run = DryRun()
            with self._entered(stage, run, way) as work:
                given = work(self._latents) if stage.times in ("pictures", "to_pixels") else work(self._state)
            if stage.times == "once":
                self._state |= given
            del given
            ways[way], weights = _counted(run), weights or run.weights
        return StageCount(weights, ways)

    def _steps(self, stage: Stage) -> StageCount:
        ways, weights = dict[str, WayCount](), tuple[WeightUse, ...]()
        conditioning = self._state["conditioning"]
        others = [t for name, given in self._state.items() if name.startswith("conditioning ") for t in given.values()]
        every = max(len(tensor) for tensor in conditioning.values())
        if "surroundings" in self._state:
            beside = self._network.beside(
                self._model, self._state["surroundings"], self._latents[:, :1], torch.empty_like(self._latents)
            )
            conditioning = {**beside_rows(conditioning, beside)}
        fused = self._device.fused_attention(self._dtype)
        for scratch_bytes in (0,) if fused else SCRATCHES:
            for samples in {1, every}:
                run = DryRun()
                some = {name: tensor[:samples] for name, tensor in conditioning.items()}
                with self._entered(stage, run, "", scratch_bytes) as work:
                    latents = self._latents.expand(samples, -1, -1, -1)
                    kept = [torch.empty_like(tensor) for tensor in others]
                    work(latents, torch.empty((), device="meta"), some, self._request.guidance)
                    del kept
                ways[way_of_steps(samples, scratch_bytes)] = _counted(run)
                weights = run.weights if samples == 1 else weights
        return StageCount(weights, ways)

    @contextmanager
    def _entered(self, stage: Stage, run: DryRun, way: str, scratch_bytes: int = 0) -> Iterator[Any]:
        note = _noted_by(run, self._real, stage.times == "steps")
        borrow = Borrow(self._device, self._dtype, way=way, scratch_bytes=scratch_bytes, dry=note)
        with getattr(self._network, stage.function)(self._model, self._request, borrow) as work, run:
            yield work


def _counted(run: DryRun) -> WayCount:
    return WayCount(run.peak_bytes, run.heap_peak_bytes, run.flops, len(run.kernels))
