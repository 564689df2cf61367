"""Measured kernel times, stored for each GPU and Triton version.

A table decides where it knows a layer; where it does not, estimates do. Tables that come with the
package lie in ``tables``; what is measured on a user's machine is written to the folder
``SPARSE_DDPM_TUNED``, by default ``sparse-ddpm`` in the user's cache folder, and read first.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ddpm.engine.panels import union_columns
from sparse_ddpm.errors import EngineError, expected
from sparse_ddpm.files import write_atomically
from sparse_ddpm.program import Conv, NormAct, Program, SpaceToDepth, Upsample2x

SCHEMA = 1
PACKAGED = Path(__file__).parent / "tables"


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one layer: microseconds of each kind of kernel, and the tiles that took them."""

    times: Mapping[str, float]
    tiles: Mapping[str, Mapping[str, Any]]


@dataclass(slots=True)
class Tuned:
    """A table of `Measured` by `layer_key`. ``gpu`` and ``triton``: what it was measured on."""

    gpu: str
    triton: str
    layers: dict[str, Measured] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its file."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return f"{slug}-triton-{self.triton}.json"

    @classmethod
    def load(cls, gpu: str, triton: str) -> Tuned:
        """The user's table over the packaged one; empty where there is neither."""
        table = cls(gpu, triton)
        for folder in (PACKAGED, user_folder()):
            path = folder / table.name
            if path.is_file():
                table.layers.update(_read(path))
        return table

    def save(self, folder: Path | None = None) -> Path:
        """Write the table to ``folder``, by default the user's; its path."""
        target = (user_folder() if folder is None else folder) / self.name
        target.parent.mkdir(parents=True, exist_ok=True)
        layers = {
            key: {"times": dict(item.times), "tiles": {k: dict(v) for k, v in item.tiles.items()}}
            for key, item in sorted(self.layers.items())
        }
        document = {"schema": SCHEMA, "gpu": self.gpu, "triton": self.triton, "layers": layers}
        text = json.dumps(document, indent=1) + "\n"
        write_atomically(target, lambda file: file.write(text.encode()))
        return target


def user_folder() -> Path:
    """Where tables that are measured on this machine are kept."""
    named = os.environ.get("SPARSE_DDPM_TUNED")
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "sparse-ddpm"


def layer_of(program: Program, operation: Conv) -> Program:
    """A convolution with what may run in its kernel, as a Program of its own: what is tuned.

    That is the space to depth or upsampling before it and the norm after it, where nothing else
    reads what lies between; residuals and what time does to the norm are left out.
    """
    uses = program.uses()
    before = [
        op
        for op in program.operations
        if isinstance(op, SpaceToDepth | Upsample2x) and op.out == operation.x and uses[op.out] == 1
    ]
    after = [
        replace(op, residual=None, film=None)
        for op in program.operations
        if isinstance(op, NormAct)
        and op.x == operation.out
        and uses[op.x] == 1
        and operation.residual is None
    ]
    first = before[0].x if before else operation.x
    last = after[0].out if after else operation.out
    operations = (*before, replace(operation, residual=None, film=None), *after)
    return Program(operations, first, program.shapes[first], last, program.time)


def layer_key(layer: Program, images: int, dtype: str) -> str:
    """What a `layer_of` takes time for; its weights by how many columns rows share, two digits."""
    operation = next(op for op in layer.operations if isinstance(op, Conv))
    others = [type(op).__name__ for op in layer.operations if op is not operation]
    shape, weight = layer.shapes[operation.out], operation.weight
    stored = weight.stored()
    unions = [
        np.count_nonzero(union_columns(stored, group)) * group / max(stored.size, 1)
        for group in (1, 16, 64)
    ]
    density = " ".join(f"{share:.2g}" for share in unions)
    also = f" with {', '.join(others)}" if others else ""
    return (
        f"{weight.shape[0]}x{weight.shape[1]} k{operation.size} {shape[1]}x{shape[2]} "
        f"n{images} {dtype} density {density}{also}"
    )


def _read(path: Path) -> dict[str, Measured]:
    try:
        document = json.loads(path.read_text())
        if document["schema"] != SCHEMA:
            raise EngineError(expected(f"schema of {path}", SCHEMA, document["schema"]))
        return {
            key: Measured(dict(item["times"]), dict(item["tiles"]))
            for key, item in document["layers"].items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(expected(f"tuned table {path}", "a table of layers", error)) from error
