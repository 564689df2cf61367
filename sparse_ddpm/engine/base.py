"""What every engine does, and the checks of its arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import EngineError, expected
from sparse_ddpm.program import Operation, Program

Images = NDArray[np.float32]


class AnyStep(Protocol):
    """What every engine's plan says of an operation, or of several that run as one."""

    @property
    def operation(self) -> Operation:
        """The one, or the last of them."""
        ...

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All of them, in the Program's order."""
        ...

    @property
    def kernel(self) -> str:
        """What runs, in a few words."""
        ...

    @property
    def reason(self) -> str:
        """Why that."""
        ...

    @property
    def flops(self) -> int:
        """What convolutions execute for one image, filled-in zeros included."""
        ...


class AnyPlan(Protocol):
    """What every engine's plan can be asked."""

    @property
    def program(self) -> Program: ...
    @property
    def batch(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def steps(self) -> Sequence[AnyStep]: ...
    @property
    def arena_bytes(self) -> int:
        """Bytes of all activations together."""
        ...


class Engine(ABC):
    """Runs one Program at one batch size. Not thread-safe: one engine, one caller at a time."""

    program: Program
    batch: int

    @abstractmethod
    def set_schedule(self, timesteps: NDArray[Any]) -> None:
        """Compute the time table for ``timesteps`` ``[S]``; later steps are rows of it."""

    @abstractmethod
    def run(self, x: Images, step: int) -> Images:
        """One denoising step: float32 ``[batch, C, H, W]`` to the network's output, same shape."""

    @abstractmethod
    def trace(self, x: Images, step: int) -> dict[str, Images]:
        """As `run`, but every value of the Program by name, ``[batch, C, H, W]`` each."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What runs, in a few words, for people: "cpu avx512, 2 threads"."""

    def check_input(self, x: Images, step: int, steps: int) -> None:
        """Raise `EngineError` unless ``x`` and ``step`` are what `run` takes."""
        wanted = (self.batch, *self.program.input_shape)
        if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.shape != wanted:
            got = f"{x.dtype} {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
            raise EngineError(expected("engine input", f"float32 {wanted}", got))
        if steps == 0:
            raise EngineError(expected("engine", "set_schedule before the first step", "none"))
        if not 0 <= step < steps:
            raise EngineError(expected("step", f"0 to {steps - 1}", step))

    def close(self) -> None:  # noqa: B027 - nothing to release unless an engine says so
        """Release what the engine holds outside Python."""


@runtime_checkable
class DeviceSampler(Protocol):
    """An engine that also makes the sampler's steps, so that images stay on its device."""

    def sample(
        self,
        coefficients: NDArray[Any],
        *,
        clip: bool,
        seed: int | NDArray[Any],
        image_indices: NDArray[Any],
        progress: Callable[[int], object] = ...,
    ) -> Images:
        """Images ``image_indices`` ``[batch]`` of ``seed``, one for all or ``[batch]``.

        ``coefficients`` ``[S, 7]``: a table's columns.
        """
        ...


def check_batch(batch: object) -> int:
    """``batch`` as an int; `EngineError` unless it is at least 1."""
    if type(batch) is not int or not 1 <= batch <= 65_536:
        raise EngineError(expected("batch", "an integer from 1 to 65536", repr(batch)))
    return batch


def check_timesteps(timesteps: NDArray[Any]) -> NDArray[np.float64]:
    """``timesteps`` as float64 ``[S]``, S >= 1; `EngineError` unless finite and of one axis."""
    t = np.asarray(timesteps, dtype=np.float64)
    if t.ndim != 1 or len(t) == 0 or not np.isfinite(t).all():
        raise EngineError(expected("timesteps", "one axis of finite numbers", f"shape {t.shape}"))
    return t
