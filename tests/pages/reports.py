"""Reports of runs that never were, as pages take them."""

from __future__ import annotations

from typing import Any

from sdcli.units import MIB

ABOUT = {
    "command": "sdcli txt2img 'a fox' --mem-limit 600MiB",
    "machine": {"processor": "An Imaginary Processor", "cores": "2", "torch": "2.99"},
    "made": "2031-02-03 04:05 UTC",
}


def report(limit_mib: int | None = 600, *, peak_mib: int = 560, step_s: float = 7.53, **other: Any) -> dict[str, Any]:
    """Of one run of four stages, of which the first two are short."""
    stages = {"start": (1.7, 180), "encode_prompt": (0.2, 201), "denoise": (30.1, peak_mib), "decode": (9.3, 358)}
    series, at_s = [], 0.01
    for name, (seconds, most_mib) in stages.items():
        for look in range(1, 51):
            share = 0.7 + 0.006 * look
            series.append([round(at_s + seconds * (look - 1) / 50, 3), int(most_mib * MIB * share), name])
        at_s += seconds
    table = {
        "schema": "sdcli.report/1",
        "images": [{"path": "outputs/a-fox-7.png", "seed": 7, "width": 512, "height": 512}],
        "model": {"ref": "synthetic:sd15", "family": "Stable Diffusion 1.5", "sha256": None},
        "device": "cpu",
        "dtype": "bf16",
        "threads": 2,
        "memory": {
            "limit_bytes": None if limit_mib is None else limit_mib * MIB,
            "metric": "footprint",
            "baseline_bytes": 181 * MIB,
            "predicted_peak_bytes": (peak_mib + 24) * MIB,
            "peak_bytes": peak_mib * MIB,
            "samples": 4321,
            "period_ms": 10.0,
            "series": series,
        },
        "plan": {"reasons": ["270 MiB stay in memory", "guidance in two passes"]},
        "stages": [
            {
                "name": name,
                "load_s": 0.11,
                "run_s": seconds,
                "predicted_peak_bytes": (most_mib + 24) * MIB,
                "peak_bytes": most_mib * MIB,
            }
            for name, (seconds, most_mib) in list(stages.items())[1:]
        ],
        "steps": {"count": 4, "median_s": step_s, "bytes_read_median": 1234567},
        "events": [{"step": 3, "what": "an event"}],
        "total_s": 41.5,
        "sdcli_version": "0.1.0",
        "torch_version": "2.99",
        "outcome": "ok",
        "error": "",
        "prompt": "a fox",
        "request": {"width": 512, "height": 512},
        "thumbnails": [],
    }
    return table | other


def two_models() -> list[dict[str, Any]]:
    """Of runs of two models under the same ceilings."""
    models = {"synthetic:sd15": 1.6, "synthetic:sdxl": 4.2}
    return [
        report(limit, peak_mib=peak, step_s=step_s * slow, model={"ref": ref, "family": "SD", "sha256": None})
        for ref, step_s in models.items()
        for limit, peak, slow in ((2048, 1976, 1.0), (1024, 985, 1.1), (600, 560, 1.2))
    ]


def bench() -> list[dict[str, Any]]:
    """Of a run under each of several ceilings, of which one does not fit and one was crossed."""
    fitting = [
        report(limit, peak_mib=peak, step_s=step_s)
        for limit, peak, step_s in ((2867, 1998, 1.64), (2048, 1976, 1.64), (1024, 985, 1.78), (600, 560, 1.82))
    ]
    nothing = {"stages": [], "steps": {"count": 0, "median_s": None}, "images": [], "plan": None}
    unfit = report(300, outcome="will_not_fit", error="will not fit", **nothing)
    unfit["memory"] |= {"series": [], "peak_bytes": 0, "predicted_peak_bytes": None}
    return [*fitting, unfit, report(450, outcome="killed", error="the ceiling of 450 MiB was crossed", images=[])]


def wide() -> list[dict[str, Any]]:
    """Of one run, whose stages have the longest names and figures."""
    names = ("encode_references", "encode_prompt", "encode_image_2", "denoise_2", "decode")
    sizes = {"load_s": 123.4, "run_s": 4567.8, "predicted_peak_bytes": 10_804 * MIB, "peak_bytes": 10_752 * MIB}
    return [report(12_000, peak_mib=10_752, stages=[{"name": name, **sizes} for name in names])]
