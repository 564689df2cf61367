"""A benchmark's outcomes as a table for people and as rows for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sparse_ddpm.bench.engines import OURS
from sparse_ddpm.bench.run import Outcome

HEADER = (
    f"{'engine':<22} {'dtype':<9} {'step ms':>9} {'p10':>9} {'p90':>9} {'images/s':>9} "
    f"{'peak MiB':>8} {'in steps':>8} {'error':>8}"
)


def result_row(outcome: Outcome) -> dict[str, Any]:
    """One entry of ``results``: times in ms, memory in MiB.

    ``peak_mib``: the process's largest resident memory, building included; ``step_peak_mib``: since
    the building; ``error``: relative RMS against float64; ``idle_cpu_s``: while others were timed.
    """
    times = outcome.times
    assert times is not None
    return {
        "engine": outcome.spec.name,
        "dtype": outcome.spec.dtype,
        "batch": outcome.batch,
        "step_ms": _ms(outcome.step_s),
        "p10_ms": _ms(times.percentile(10)),
        "p90_ms": _ms(times.percentile(90)),
        "min_ms": _ms(min(times.steps)),
        "steps": len(times.steps),
        "images_per_s": outcome.batch / outcome.step_s,
        "peak_mib": _round(outcome.peak_mib),
        "step_peak_mib": _round(outcome.step_peak_mib),
        "error": outcome.error,
        "idle_cpu_s": round(times.idle_cpu_s, 4),
        **outcome.built,
    }


def problem_row(outcome: Outcome) -> dict[str, Any]:
    """One entry of ``missing`` or ``failed``."""
    return {
        "engine": outcome.spec.name,
        "dtype": outcome.spec.dtype,
        "batch": outcome.batch,
        "reason": outcome.problem,
        "error": outcome.error if outcome.error != float("inf") else None,
    }


def table(outcomes: Sequence[Outcome], ratios: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines for a terminal: per batch the engines, the fastest first, then what went wrong."""
    for ratio in ratios:
        batch = ratio["batch"]
        here = [o for o in outcomes if o.batch == batch]
        yield f"batch {batch}"
        yield HEADER
        for outcome in sorted((o for o in here if o.times is not None), key=lambda o: o.step_s):
            row = result_row(outcome)
            yield (
                f"{row['engine']:<22} {row['dtype']:<9} {row['step_ms']:>9.3f} "
                f"{row['p10_ms']:>9.3f} {row['p90_ms']:>9.3f} {row['images_per_s']:>9.1f} "
                f"{row['peak_mib']:>8.0f} {row['step_peak_mib']:>8.0f} {row['error']:>8.1e}"
            )
        for outcome in here:
            if outcome.times is None:
                what = "missing" if outcome.missing else "failed"
                yield f"{outcome.spec.label:<22} {what}: {outcome.problem}"
        for outcome in here:
            if outcome.times is not None and outcome.times.restless:
                yield f"{outcome.spec.label} kept its threads busy while others were timed"
        for key, words in (
            ("vs_fastest_fp32_peer", "the fastest float32 peer"),
            ("vs_fastest_peer", "the fastest peer of any precision"),
        ):
            if ratio[key] is not None:
                rival = ratio[key.removeprefix("vs_")]
                yield f"{OURS} steps {ratio[key]:.2f}x as fast as {words} ({rival})"
        for dtype, times in ratio["vs_dense"].items():
            yield f"{OURS} {dtype} steps {times:.2f}x as fast as with every weight stored"
        yield ""


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 4)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
