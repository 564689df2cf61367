"""Costs of one image from measured times, to be put into `sparse_ddpm/engine/costs.py`.

python benchmarks/cost_model.py [MODEL:SPARSITY:PATTERN ...] --batch 1 --json FILE
python benchmarks/cost_fit.py FILE

Least squares of relative errors, no cost below 0, of each G and place of the pixels. Layers that
upsample are left out: their copies do it on the way. Prints the table, and the errors as comments.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sparse_ddpm_kernels.ceiling import peak_flops

from sparse_ddpm.engine.costs import (
    GROUPS,
    MAX_COPIED_SIZE,
    NEAR_BYTES,
    VECTOR,
    Fit,
    vectors_in_place,
)

PLACES = ("pointwise", "in place", "copies")


def cases(layers: Sequence[dict[str, Any]], place: str, group: int) -> Iterator[tuple[Fit, float]]:
    """How often a layer takes each part of a `Fit`, and its microseconds."""
    for layer in layers:
        size, (_, height, width) = layer["size"], layer["shape"]
        rows, copied = layer["matrix"][0], place == "copies"
        kinds = (place == "pointwise") == (size == 1)
        if not kinds or layer["name"].endswith(".up") or group > max(rows, 1):
            continue
        if copied and size > MAX_COPIED_SIZE:
            continue
        vectors = max(1.0, height * width / VECTOR)
        multiplied = vectors_in_place(size, (height, width)) if place == "in place" else vectors
        entries, panels = layer["entries"][str(group)], -(-rows // group)
        far = layer["weight_bytes"] / (layer["weight_bytes"] + NEAR_BYTES)
        parts = Fit(
            entry=entries * multiplied,
            fetch=entries * far / vectors,
            channel=panels * group * multiplied,
            panel=panels,
            copy=layer["copies"] * vectors if copied else 0.0,
        )
        yield parts, layer["measured_us"][f"{group}{'c' if copied else ''}"]


def fit(layers: Sequence[dict[str, Any]], place: str, group: int, peak: float) -> tuple[Fit, float]:
    """The best `Fit`, and the median of its relative errors. ``peak``: multiply-adds of a vector
    in a microsecond.
    """
    parts, times = zip(*cases(layers, place, group), strict=True)
    wanted: NDArray[np.float64] = np.array(times) * peak
    weighed = np.array(parts) / wanted[:, None]
    found, _ = nnls(weighed, np.ones(len(wanted)))
    error = float(np.median(np.abs(weighed @ found - 1.0)))
    return Fit(*(float(f"{each:.3g}") for each in found)), error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    document = json.loads(options.file.read_text())
    layers = [layer for layer in document["layers"] if layer["batch"] == 1]
    peak = peak_flops(threads=1) / (2 * VECTOR) / 1e6
    print(f'"{document["dtype"]}": MappingProxyType(\n    {{')
    for place in PLACES:
        print(f'        "{place}": (')
        for group in GROUPS:
            found, error = fit(layers, place, group, peak)
            numbers = found if place == "copies" else found[:-1]
            print(f"            Fit({', '.join(map(str, numbers))}),  # {error:.1%}")
        print("        ),")
    print("    }\n),")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
