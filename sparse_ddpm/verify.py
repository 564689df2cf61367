"""Is the sparse engine right? Every value of the Program against masked dense torch.

The torch model knows nothing of Programs, formats or panels: it multiplies every zero. Hooks on
its modules give the value of each operation by name, in float64. Where torch is not installed the
numpy reference engine stands in, which shares the lowering but none of the kernels.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.api import Sampler
from sparse_ddpm.engine import default_dtype
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.program import Program
from sparse_ddpm.sampling import make_table, sample_loop
from sparse_ddpm.sampling.noise import normal
from sparse_ddpm.ticket import Ticket

Values = dict[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a precision may be from float64. ``operation``: any value inside the network, and
    ``output``, its output: relative, see `Verification`. Of an image after all steps ``image`` is
    the largest difference, in [-1, 1], and ``psnr`` the least that it needs, dB.
    """

    operation: float
    output: float
    psnr: float
    image: float = math.inf


EXACT = Tolerance(operation=1e-5, output=1e-5, psnr=60.0, image=1e-3)
# Roundings add up along the network, and a norm of few pixels or channels may enlarge them.
ROUNDED = Tolerance(operation=1e-1, output=1e-2, psnr=40.0)
TOLERANCES: Mapping[str, Tolerance] = MappingProxyType(
    {"float32": EXACT, "float16": ROUNDED, "bfloat16": ROUNDED}
)
WHOLE_BFLOAT16 = Tolerance(operation=2e-1, output=5e-2, psnr=30.0)
"""Of an engine that stores every value with bfloat16's eight bits."""
BATCH = 2
"""Images that go through the operations together; whole images are drawn one by one."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found. ``operations``: the worst relative error of each value by name.

    In float32 an error is the largest difference over the largest magnitude; in 16 bits, where
    every value is rounded, it is the RMS of the difference over the RMS.
    """

    oracle: str
    engine: str
    dtype: str
    whole_bfloat16: bool
    steps: int
    operations: dict[str, float]
    unmatched: tuple[str, ...]
    """Values that the oracle does not have by name: concatenations, and the sums that weight
    standardisation over pruned zeros needs."""
    output_error: float
    image_error: float
    """Largest difference of an image in [-1, 1]."""
    image_psnr: float
    """Of the same image, dB over its range of 2; infinity where there is no difference."""

    @property
    def tolerance(self) -> Tolerance:
        return WHOLE_BFLOAT16 if self.whole_bfloat16 else TOLERANCES[self.dtype]

    @property
    def worst(self) -> tuple[str, float]:
        return max(self.operations.items(), key=lambda item: item[1])

    @property
    def passed(self) -> bool:
        most = self.tolerance
        # A comparison with NaN is false, so NaN fails.
        return (
            all(error <= most.operation for error in self.operations.values())
            and self.output_error <= most.output
            and self.image_error <= most.image
            and self.image_psnr >= most.psnr
        )


def verify(
    ticket: Ticket,
    *,
    device: str = "auto",
    threads: int | None = None,
    dtype: str | None = None,
    steps: int = 50,
    seed: int = 0,
    oracle: str = "auto",
    progress: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Compare the engine with the oracle, value by value at three steps, then whole images.

    ``oracle``: ``torch``, ``numpy``, or ``auto`` (torch where it is installed).
    """
    dtype = default_dtype(device) if dtype is None else dtype
    error_of = relative_error if dtype == "float32" else relative_rms
    if oracle == "auto":
        oracle = "torch" if importlib.util.find_spec("torch") else "numpy"
    table = make_table(ticket.diffusion, sampler="ddim", steps=steps)
    with Sampler(ticket, device=device, threads=threads, dtype=dtype) as sampler:
        program = sampler.program
        wanted_values = torch_values(ticket) if oracle == "torch" else reference_values(program)
        engine = sampler.engine(BATCH)
        engine.set_schedule(table.timesteps)
        worst: dict[str, float] = {}
        output_error = 0.0
        for row in sorted({0, steps // 2, steps - 1}):
            progress(f"operations at step {row + 1} of {steps}")
            x = normal(seed, np.arange(BATCH), row, program.input_shape)
            got = engine.trace(x, row)
            wanted = wanted_values(x, float(table.timesteps[row]))
            for name in program.shapes:
                if name in wanted and name != program.input:
                    error = error_of(got[name], wanted[name])
                    worst[name] = max(worst.get(name, 0.0), error)
            output_error = max(output_error, error_of(engine.run(x, row), wanted[program.output]))
        engine = sampler.engine(1)
        engine.set_schedule(table.timesteps)

        def oracle_run(x: NDArray[np.float32], row: int) -> NDArray[np.float32]:
            progress(f"an image, step {row + 1} of {steps}")
            values = wanted_values(x, float(table.timesteps[row]))
            return values[program.output].astype(np.float32)

        images = [
            sample_loop(
                run, table, seed=seed, image_indices=np.array([0]), shape=program.input_shape
            )
            for run in (engine.run, oracle_run)
        ]
        return Verification(
            oracle=oracle,
            engine=engine.description,
            dtype=dtype,
            whole_bfloat16=device == "cuda" and dtype == "bfloat16",
            steps=steps,
            operations=worst,
            unmatched=tuple(n for n in program.shapes if n not in worst and n != program.input),
            output_error=output_error,
            image_error=float(np.abs(images[0] - images[1]).max()),
            image_psnr=psnr(*images),
        )


def relative_error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Largest absolute difference over the largest magnitude wanted; inf where not finite."""
    if not np.isfinite(got).all() or not np.isfinite(wanted).all():
        return float("inf")
    scale = float(np.abs(wanted).max())
    difference = float(np.abs(got.astype(np.float64) - wanted).max())
    return difference / scale if scale > 0 else difference


def relative_rms(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """RMS of the difference over that of what is wanted; inf where not finite."""
    if not np.isfinite(got).all() or not np.isfinite(wanted).all():
        return float("inf")
    scale = _rms(wanted)
    difference = _rms(got.astype(np.float64) - wanted)
    return difference / scale if scale > 0 else difference


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Peak signal over noise of images in [-1, 1], dB: their range of 2 over the RMS difference.

    Infinity for equal images, NaN where one is not finite.
    """
    noise = _rms(a.astype(np.float64) - b)
    return 20.0 * math.log10(2.0 / noise) if noise != 0 else math.inf


def _rms(x: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def reference_values(program: Program) -> Callable[[NDArray[Any], float], Values]:
    """A function from images ``[N, C, H, W]`` and t to every value, by the numpy engine."""

    def values(x: NDArray[Any], t: float) -> Values:
        reference = ReferenceEngine(program, batch=len(x))
        reference.set_schedule(np.array([t]))
        return {**reference.values(x, 0)}

    return values


def torch_values(ticket: Ticket) -> Callable[[NDArray[Any], float], Values]:
    """A function from images ``[N, C, H, W]`` and t to every module's output, in float64."""
    import torch

    from sparse_ddpm.model.build import build_model

    model = build_model(ticket.architecture)
    model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in ticket.weights.items()})
    model.set_masks({k: torch.from_numpy(v.copy()) for k, v in ticket.masks.items()})
    model = model.double().eval()
    found: Values = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                found[name] = output.numpy()

        return keep

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(hook(name))

    def values(x: NDArray[Any], t: float) -> Values:
        found.clear()
        with torch.no_grad():
            model(torch.from_numpy(x).double(), torch.full((len(x),), t, dtype=torch.float64))
        return dict(found)

    return values
