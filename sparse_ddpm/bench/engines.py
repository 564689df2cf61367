"""The engines that a benchmark compares, by name: what each needs and how exact it must be."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, EngineError, expected

OURS = "sparse-ddpm"
DENSE = "sparse-ddpm-dense"
"""Ours with every weight stored, pruned ones too: what sparsity alone is worth is told by it."""
EXTRA = 'pip install ".[peers]"'

TOLERANCES: Mapping[str, float] = {"float32": 1e-3, "bfloat16": 5e-2}
OUR_TOLERANCES: Mapping[str, float] = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-2}
"""Largest relative RMS error of an output against float64, by dtype, to be timed at all: of peers,
and of ours, which we promise."""
CUDA_TOLERANCES: Mapping[str, float] = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
"""Of ours on a GPU, where weights and activations all have a bfloat16's eight bits."""


def label(name: str, dtype: str) -> str:
    """What to show of an engine: ours says its dtype, a peer's name says it already."""
    return f"{name} {dtype}" if name in (OURS, DENSE) else name


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One column of the comparison.

    ``builder``: ``module:function`` within this package, imported in the worker alone; called as
    ``function(Job, **options)`` it returns a `Runner`. ``packages``: import names it needs.
    """

    name: str
    dtype: str
    builder: str
    packages: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"

    @property
    def label(self) -> str:
        return label(self.name, self.dtype)

    @property
    def own(self) -> bool:
        """Whether it is this package's engine and no peer."""
        return self.name in (OURS, DENSE)

    @property
    def tolerance(self) -> float:
        if not self.own:
            return TOLERANCES[self.dtype]
        return (CUDA_TOLERANCES if self.device == "cuda" else OUR_TOLERANCES)[self.dtype]

    def missing(self) -> str | None:
        """Why the engine cannot run here, or None."""
        if self.own:
            return None if self.device == "cuda" else _lacking(self.dtype)
        if self.device == "cuda" and "torch" not in self.packages:
            return "runs on the CPU, not on a GPU"
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f"{', '.join(absent)} not installed: {EXTRA}" if absent else None


@dataclass(frozen=True, slots=True)
class Job:
    """What to build: a ticket file at one batch size. ``timesteps``: the schedule, ``[S]``."""

    ticket: str
    batch: int
    threads: int
    device: str
    timesteps: tuple[float, ...]


class Runner(Protocol):
    """An engine in its worker, ready for one input."""

    description: str
    """What runs, in a few words."""
    details: dict[str, Any]
    """Numbers of its own, such as ``arena_bytes``."""

    def load(self, x: NDArray[np.float32]) -> None:
        """Take the input of all steps to come, ``[batch, C, H, W]``."""

    def step(self, index: int) -> Any:
        """One denoising step at timestep ``timesteps[index]``: the output, in its own form."""

    def array(self, output: Any) -> NDArray[np.float32]:
        """A step's output as ``[batch, C, H, W]``."""


def _torch(name: str, dtype: str, **options: Any) -> EngineSpec:
    return EngineSpec(name, dtype, "torch_peer:build", ("torch",), options)


PEERS: Mapping[str, EngineSpec] = {
    spec.name: spec
    for spec in (
        _torch("torch", "float32"),
        _torch("torch-compile", "float32", compiled=True),
        _torch("torch-bf16", "bfloat16", precision="autocast"),
        _torch("torch-bf16-whole", "bfloat16", precision="whole"),
        _torch("torch-compile-bf16", "bfloat16", precision="whole", compiled=True),
        EngineSpec("onnxruntime", "float32", "onnx_peers:build_ort", ("onnx", "onnxruntime")),
        EngineSpec("openvino", "float32", "onnx_peers:build_openvino", ("onnx", "openvino")),
        EngineSpec(
            "openvino-bf16",
            "bfloat16",
            "onnx_peers:build_openvino",
            ("onnx", "openvino"),
            {"precision": "bf16"},
        ),
    )
}


def _lacking(dtype: str) -> str | None:
    from sparse_ddpm.engine.precision import lacking

    try:
        return lacking(dtype)
    except EngineError:
        return None  # no library: the worker that tries says so


def ours(dtype: str, device: str = "auto", *, dense: bool = False) -> EngineSpec:
    """This package's engine; ``dense``: with every weight stored, pruned ones too."""
    if dtype not in OUR_TOLERANCES:
        raise ConfigError(expected("dtype", f"one of {', '.join(OUR_TOLERANCES)}", repr(dtype)))
    options = {"dtype": dtype, "dense": dense}
    return EngineSpec(DENSE if dense else OURS, dtype, "ours:build", (), options, device)


def select_peers(words: Sequence[str], device: str = "auto") -> tuple[EngineSpec, ...]:
    """``all``, ``none``, or names separated by spaces or commas; `ConfigError` for another."""
    return tuple(replace(spec, device=device) for spec in _peers(words))


def _peers(words: Sequence[str]) -> tuple[EngineSpec, ...]:
    names = [name for word in words for name in word.split(",") if name]
    if names == ["all"]:
        return tuple(PEERS.values())
    if names == ["none"]:
        return ()
    for name in names:
        if name not in PEERS:
            wanted = f"all, none, or names among {', '.join(PEERS)}"
            raise ConfigError(expected("peers", wanted, repr(name)))
    return tuple(PEERS[name] for name in dict.fromkeys(names))
