"""The engine's table of measured kernels, filled by the layer section."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from sparse_ddpm_kernels.triton.layout import padded_images

from gpu.problems import DENSE, Problem
from sparse_ddpm.engine.cuda.tuned import Measured, Tuned, layer_key

VARIABLE = "SPARSE_DDPM_TUNED"


class Table:
    """``folder/<gpu>-triton-<version>.json``, as `sparse_ddpm.engine.cuda.tuned` reads it.

    A layer that the engine itself has measured stays as it is.
    """

    def __init__(self, folder: Path, gpu: str) -> None:
        self.folder = folder
        with _tables_in(folder):
            self.tuned = Tuned.load(gpu, triton.__version__)
        self._dense: dict[tuple[str, int], dict[str, Any]] = {}

    def add(self, problem: Problem, row: dict[str, Any]) -> None:
        """Take over the warm times and tiles of a row of the layer section, and save.

        Kinds that only the dense problem of the shape was timed with come from there: no pruned
        weight takes longer.
        """
        shape = problem.layer, problem.batch
        if problem.pattern == DENSE:
            self._dense[shape] = row.get("engines", {})
        changed = False
        images = padded_images(problem.batch)
        for dtype in {engine.get("dtype") for engine in row.get("engines", {}).values()}:
            found = {
                engine["kind"]: engine
                for engine in row["engines"].values()
                if dtype is not None and engine.get("dtype") == dtype and "warm" in engine
            }
            if not found:
                continue
            key = layer_key(problem.conv(), problem.shape, images, str(dtype))
            if key not in self.tuned.layers:
                dense = {
                    engine["kind"]: engine
                    for engine in self._dense.get(shape, {}).values()
                    if engine.get("dtype") == dtype and "warm" in engine
                }
                found = {**dense, **found}
                times = {kind: engine["warm"]["us"] for kind, engine in found.items()}
                tiles = {kind: e["tiles"] for kind, e in found.items() if e["tiles"]}
                self.tuned.layers[key] = Measured(times, tiles)
                changed = True
        if changed:
            self.save()

    def save(self) -> None:
        self.tuned.save(self.folder)


@contextlib.contextmanager
def _tables_in(folder: Path) -> Iterator[None]:
    """The user's tables lie in ``folder`` meanwhile."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
