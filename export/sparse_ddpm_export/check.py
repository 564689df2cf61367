"""The check after export: the standard's own, then onnxruntime against our engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from sparse_ddpm.engine import make_engine
from sparse_ddpm.errors import EngineError, MissingDependencyError, expected
from sparse_ddpm.program import Program
from sparse_ddpm.sampling import Table, normal, sample_loop
from sparse_ddpm_export.form import Form
from sparse_ddpm_export.halves import prepare
from sparse_ddpm_export.sampler import Baked

STEP_TOLERANCE = 1e-4
"""Of one call of the network: the largest difference over the largest magnitude."""
IMAGE_TOLERANCE = 1e-3
"""Of images in [-1, 1]: the largest difference."""
BATCH = 2
SEED = 20_201_126


class Check:
    """Checks files made from one Program. ``device``: the engine that they are held against.

    Raises `EngineError` where a file disagrees, `MissingDependencyError` without onnxruntime.
    """

    def __init__(self, program: Program, form: Form | None = None, device: str = "auto") -> None:
        self._program, _ = prepare(program, form)
        self._engine = make_engine(self._program, device, batch=BATCH)
        self._indices = np.arange(BATCH)

    def denoiser(self, content: bytes, timesteps: int) -> float:
        """The first, a middle and the last of ``timesteps``; returns the largest error."""
        session = open_session(content)
        chosen = np.unique([0, timesteps // 2, timesteps - 1])
        self._engine.set_schedule(chosen)
        worst = 0.0
        for step, timestep in enumerate(chosen):
            x = normal(SEED, self._indices, step, self._program.input_shape)
            t = np.full(BATCH, timestep, np.float32)
            found = session.run(["model_output"], {"x": x, "t": t})[0]
            worst = max(worst, _relative(found, self._engine.run(x, step)))
        return _within("denoiser", worst, STEP_TOLERANCE)

    def sampler(self, content: bytes, table: Table, baked: Baked | None = None) -> float:
        """All steps, on the images of one seed; returns the largest difference of a pixel."""
        session = open_session(content)
        shape, seed = self._program.input_shape, baked.seed if baked else SEED
        feeds: dict[str, Any] = {}
        if baked is None:
            feeds["noise"] = normal(seed, self._indices, 0, shape)
            if table.u.any():
                feeds["step_noise"] = step_noise(table, seed, self._indices, shape)
        found = session.run(["images"], feeds)[0][:BATCH]
        self._engine.set_schedule(table.timesteps)
        wanted = sample_loop(
            self._engine.run, table, seed=seed, image_indices=self._indices, shape=shape
        )
        # A file with one image in it has no second one.
        error = float(np.abs(found - wanted[: len(found)]).max())
        return _within("sampler", error, IMAGE_TOLERANCE)

    def step(self, content: bytes, table: Table) -> float:
        """Every step, one after the other, as `sampler`."""
        session = open_session(content)
        shape = self._program.input_shape
        names = [value.name for value in session.get_inputs()]
        x = x0 = normal(SEED, self._indices, 0, shape)
        for step in range(table.steps):
            at_hand: Mapping[str, Any] = {
                "x": x,
                "step": np.array(step),
                "noise": normal(SEED, self._indices, step + 1, shape),
                "x0_previous": x0,
            }
            x, x0 = session.run(["x_next", "x0"], {name: at_hand[name] for name in names})
        self._engine.set_schedule(table.timesteps)
        wanted = sample_loop(
            self._engine.run, table, seed=SEED, image_indices=self._indices, shape=shape
        )
        return _within("step", float(np.abs(x - wanted).max()), IMAGE_TOLERANCE)

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def __enter__(self) -> Check:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def step_noise(
    table: Table, seed: int, indices: NDArray[np.int64], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """What a sampler's file takes as ``step_noise``: float32 ``[S, N, C, H, W]``."""
    return np.stack([normal(seed, indices, step + 1, shape) for step in range(table.steps)])


def open_session(content: bytes) -> Any:
    """An ``onnxruntime.InferenceSession`` of a file that ``onnx.checker`` finds good."""
    try:
        import onnxruntime
    except ImportError as error:
        wanted = "to be installed for the check after export: pip install 'sparse-ddpm[onnx]'"
        raise MissingDependencyError(expected("onnxruntime", wanted, error)) from None
    try:
        onnx.checker.check_model(content, full_check=True)
        return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = " ".join(str(error).split())
        raise EngineError(expected("exported file", "a model that loads", reason)) from error


def _relative(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    if found.shape != wanted.shape:
        raise EngineError(expected("exported file's output", wanted.shape, found.shape))
    return float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-30))


def _within(what: str, error: float, tolerance: float) -> float:
    if not error <= tolerance:
        raise EngineError(
            expected(f"exported {what}", f"within {tolerance} of our engine", f"{error:.2g}")
        )
    return error
