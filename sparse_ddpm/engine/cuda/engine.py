"""The GPU engine: a `CudaPlan` in static buffers, a whole step as one CUDA graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from sparse_ddpm_kernels.triton.layout import padded_images

from sparse_ddpm.engine.base import Engine, Images, check_batch, check_timesteps
from sparse_ddpm.engine.cuda.counted import listening
from sparse_ddpm.engine.cuda.launches import Launches
from sparse_ddpm.engine.cuda.plan import CudaPlan, make_cuda_plan
from sparse_ddpm.engine.cuda.sampler import SamplerState
from sparse_ddpm.engine.cuda.tuned import Tuned, layer_key, layer_of
from sparse_ddpm.errors import EngineError, expected
from sparse_ddpm.program import Conv, Program

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Kernels run in Triton's interpreter, on the CPU: for tests, and correct in float32 alone."""


def cuda_device(index: int = 0) -> torch.device:
    """The GPU, or the CPU for the interpreter. `EngineError` where there is none."""
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise EngineError(
            expected(
                "device cuda",
                "a GPU and a torch built for it",
                f"torch {torch.__version__}, which finds none",
            )
        )
    return torch.device("cuda", index)


def gpu_name() -> str:
    """The device's name. `EngineError` where there is none."""
    device = cuda_device()
    return "interpreter" if INTERPRETED else torch.cuda.get_device_name(device)


class CudaEngine(Engine):
    """Runs a Program with the Triton kernels, one CUDA graph a step.

    ``dtype``: of activations and weights, ``float16``, ``bfloat16`` or (slow, exact) ``float32``;
    sums, statistics, input and output are float32. A float16 is at most 65504; what is more becomes
    infinity. ``keep_all``: every value keeps a buffer of its own. ``kernel``: of every convolution,
    one of `sparse_ddpm.engine.cuda.choose.KINDS`; default by measurement where there is one (see
    `tune`), else by estimate. ``graph``: capture steps; without, kernels are launched one by one.
    ``overlap``: convolutions with panels begin before the kernel ahead of them ends (programmatic
    dependent launch, Hopper and later; not measured yet, so not the default).
    Environment: ``SPARSE_DDPM_POISON=1`` fills activations with NaN before every step (for tests).
    Raises `EngineError` on unusable arguments or without a GPU.
    """

    def __init__(
        self,
        program: Program,
        batch: int = 1,
        dtype: str = "float16",
        *,
        keep_all: bool = False,
        kernel: str | None = None,
        graph: bool = True,
        overlap: bool = False,
        tuned: Tuned | None = None,
    ) -> None:
        self.device = cuda_device()
        if INTERPRETED and dtype != "float32":
            wanted = "float32, all that it computes rightly"
            raise EngineError(expected("dtype in Triton's interpreter", wanted, repr(dtype)))
        self.program = program
        self.batch = check_batch(batch)
        self.dtype = dtype
        self.keep_all = keep_all
        self.kernel = kernel
        self.gpu = gpu_name()
        self.tuned = Tuned.load(self.gpu, triton.__version__) if tuned is None else tuned
        self.plan = self._plan()
        self._launches = Launches(self.plan, self.device, self._tiles(), overlap)
        self._poison = os.environ.get("SPARSE_DDPM_POISON") == "1"
        self._captured = graph and not INTERPRETED and not self._poison
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}
        self._table = np.zeros((0, self._launches.films.width), np.float32)
        self._tracer: CudaEngine | None = self if keep_all else None
        self._state: SamplerState | None = None
        self._timesteps: NDArray[np.float64] | None = None

    @property
    def description(self) -> str:
        if INTERPRETED:
            return f"cuda in Triton's interpreter, {self.dtype}"
        return f"cuda {self.gpu}, Triton {triton.__version__}, {self.dtype}"

    @property
    def memory_bytes(self) -> int:
        """Of activations and workspaces, allocated."""
        return self._launches.bytes

    def _plan(self) -> CudaPlan:
        return make_cuda_plan(
            self.program,
            self.batch,
            self.dtype,
            keep_all=self.keep_all,
            kernel=self.kernel,
            measured=self._measured(),
        )

    def _keys(self) -> Mapping[str, str]:
        images = padded_images(self.batch)
        return MappingProxyType(
            {
                op.out: layer_key(layer_of(self.program, op), images, self.dtype)
                for op in self.program.operations
                if isinstance(op, Conv)
            }
        )

    def _measured(self) -> Mapping[str, Mapping[str, float]]:
        layers = self.tuned.layers
        if not layers:
            return MappingProxyType({})
        return {out: layers[key].times for out, key in self._keys().items() if key in layers}

    def _tiles(self) -> dict[str, Any]:
        """Measured tiles of each convolution's chosen kernel, by what it makes."""
        layers = self.tuned.layers
        if not layers:
            return {}
        keys = self._keys()
        found: dict[str, Any] = {}
        for step in self.plan.steps:
            conv = step.conv
            key = "" if conv is None else keys[conv.operation.out]
            if conv is not None and key in layers and conv.choice.kind in layers[key].tiles:
                found[conv.operation.out] = dict(layers[key].tiles[conv.choice.kind])
        return found

    def set_schedule(self, timesteps: NDArray[Any]) -> None:
        t = check_timesteps(timesteps)
        self._table = self._launches.films.table(self.program, t)
        if self._launches.set_table(self._table):
            self._graphs.clear()
        self._timesteps = t

    def run(self, x: Images, step: int) -> Images:
        self.check_input(x, step, len(self._table))
        self._launches.x.copy_(torch.from_numpy(np.ascontiguousarray(x)))
        self._launches.step.fill_(step)
        self.replay()
        output: Images = self._launches.output.cpu().numpy()
        return output.copy() if INTERPRETED else output

    def replay(self) -> None:
        """One step on what lies on the device (`input`, `step`), to `output`; does not wait."""
        if self._poison:
            self._launches.poison()
        self._graph("step", self._launches.run)()

    def wait(self) -> None:
        """Until the device has done all that was queued."""
        if not INTERPRETED:
            torch.cuda.synchronize(self.device)

    @property
    def input(self) -> torch.Tensor:
        """Float32 ``[batch, C, H, W]`` on the device, what `replay` reads."""
        return self._launches.x

    @property
    def output(self) -> torch.Tensor:
        """Float32 ``[batch, C, H, W]`` on the device, what `replay` writes."""
        return self._launches.output

    @property
    def step(self) -> torch.Tensor:
        """Int32 ``[1]`` on the device: the row of the time table that `replay` takes."""
        return self._launches.step

    def sample(
        self,
        coefficients: NDArray[Any],
        *,
        clip: bool,
        seed: int | NDArray[Any],
        image_indices: NDArray[Any],
        progress: Callable[[int], object] = lambda step: None,
    ) -> Images:
        """Draw images ``image_indices`` ``[batch]`` of ``seed`` without leaving the device.

        ``seed``: one for all images, or ``[batch]``. ``coefficients`` ``[S, 7]``: p, q, r, s, w, u,
        v of a sampler's table, whose timesteps `set_schedule` was given; ``clip``: its own. A step
        is one CUDA graph, noise, update and counter included. ``progress(step)`` is called as each
        step is queued. Float32 ``[batch, C, H, W]``, in [-1, 1] where ``clip``. Raises
        `EngineError` for an output of the network that is not finite.
        """
        if np.shape(coefficients) != (len(self._table), 7):
            shape = (len(self._table), 7)
            raise EngineError(expected("coefficients", shape, np.shape(coefficients)))
        for name, words in (("image_indices", image_indices), ("seed", seed)):
            if not isinstance(words, int) and np.shape(words) != (self.batch,):
                raise EngineError(expected(name, (self.batch,), np.shape(words)))
        if self._poison:
            self._launches.poison()
        state = self._state
        if state is None:
            state = self._state = SamplerState(self._launches, self.batch)
        if state.set_table(np.asarray(coefficients, dtype=np.float32)):
            self._graphs.clear()
        self._launches.step.zero_()  # the first run, before the capture, reads its row
        own = not isinstance(seed, int)
        run = self._graph(f"sample clip={clip} seeds={own}", lambda: state.step(clip, own))
        state.begin(seed, image_indices)
        for step in range(len(coefficients)):
            run()
            progress(step)
        return state.finish()

    def _graph(self, name: str, body: Callable[[], None]) -> Callable[[], None]:
        """``body``, as a CUDA graph where graphs are wanted: captured once, and run once before.

        Who listens to torch's operations, as a FLOP counter does, hears nothing of a graph's.
        """
        if not self._captured or listening():
            return body
        if name not in self._graphs:
            # The first call compiles kernels, which a capture does not allow.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                body()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                body()
            self._graphs[name] = graph
        replay: Callable[[], None] = self._graphs[name].replay
        return replay

    def trace(self, x: Images, step: int) -> dict[str, Images]:
        """As `run`, but every value by name; the first call plans a second engine."""
        if self._tracer is None:
            self._tracer = CudaEngine(
                self.program,
                self.batch,
                self.dtype,
                keep_all=True,
                kernel=self.kernel,
                graph=False,
                tuned=self.tuned,
            )
        tracer = self._tracer
        if tracer is not self and self._timesteps is not None:
            tracer.set_schedule(self._timesteps)
        tracer.run(x, step)
        return {name: tracer._value(name) for name in self.program.shapes}

    def _value(self, name: str) -> Images:
        value = self._launches.view(name)[..., : self.batch]
        images: Images = value.permute(3, 0, 1, 2).float().cpu().contiguous().numpy().copy()
        return images

    def close(self) -> None:
        """Forget the graphs and the second engine; `run` captures again."""
        if self._tracer is not None and self._tracer is not self:
            self._tracer.close()
            self._tracer = None
        self._graphs.clear()

    def __enter__(self) -> CudaEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
