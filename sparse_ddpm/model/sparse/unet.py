"""A masked U-Net whose steps on the CPU cost what its surviving weights cost."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sparse_ddpm_kernels import training as native
from torch import Tensor

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.model.denoiser import Denoiser
from sparse_ddpm.model.sparse.backward import Backward, operation
from sparse_ddpm.model.sparse.memory import zeros
from sparse_ddpm.model.sparse.steps import Steps
from sparse_ddpm.model.unet import UNet
from sparse_ddpm.ticket import Architecture
from sparse_ddpm.ticket.config import UNetConfig

LANES = 16
"""Images of a pass; a multiple of every vector."""


def missing() -> str:
    """Why there are no kernels here; empty where there are."""
    try:
        native.default_isa()
    except native.KernelError as error:
        return str(error)
    return ""


def unsupported(config: Architecture) -> str:
    """What about a network these kernels cannot do; empty where they can."""
    if not isinstance(config, UNetConfig):
        return f"a {type(config).__name__}"
    if config.weight_standardization == "full":
        return "weight standardisation over pruned weights"
    for name, value in (
        ("block_norm", "group"),
        ("attention_norm", "layer"),
        ("attention_values", "mean"),
    ):
        if getattr(config, name) != value:
            return f"{name} {getattr(config, name)}"
    return ""


class SparseUNet:
    """``model`` with its present masks: x ``[N, C, H, W]``, t ``[N]`` to ``[N, C, H, W]``.

    Float32 throughout; gradients go to the parameters of ``model``, exactly 0 where masked. What
    it returns depends neither on ``threads`` nor on timing. Only the last forward pass can be
    differentiated. After `Denoiser.set_masks` make another one. Raises `ConfigError` for a model
    that is `unsupported`, and `sparse_ddpm_kernels.KernelError` without the library.
    """

    def __init__(self, model: Denoiser, threads: int = 1, isa: str | None = None) -> None:
        name = f"a {type(model).__name__}"
        reason = unsupported(model.config) if isinstance(model, UNet) else name
        if reason:
            raise ConfigError(expected("sparse kernels", "another network", reason))
        assert isinstance(model, UNet)
        self.model = model
        isa = isa or native.default_isa()
        self._built = Steps(model, LANES)
        self.weights = self._built.weights
        back = Backward(self._built.steps)
        forward = [operation(step) for step in self._built.steps]
        self._passes = native.Passes(isa, LANES)
        self._scratch = -(-back.floats // LANES) * LANES
        needed = self._passes.scratch([*forward, *back.operations])
        self._forward = (native.Op * len(forward))(*forward)
        self._backward = (native.Op * len(back.operations))(*back.operations)
        self._workspace = [zeros(self._scratch + needed) for _ in range(threads)]
        self._arenas: list[NDArray[np.float32]] = []
        self._values = zeros(self.weights.count)
        self._run = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        model = self.model
        time = F.silu(model.time(t))
        film = torch.cat([linear(time) for linear in self._built.films], dim=1)
        out: Tensor = _Pass.apply(self, x, film, *self.weights.parameters)  # type: ignore[no-untyped-call]
        return out

    def forward(self, x: NDArray[np.float32], film: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images ``[N, C, H, W]`` and FiLM ``[jobs, rows, LANES]`` to the result."""
        jobs = len(film)
        while len(self._arenas) < jobs:
            self._arenas.append(zeros(self._built.arena.floats))
        self._run += 1
        self.weights.gather(self._values)
        out = np.empty_like(x)
        self._go(self._forward, x, out, film)
        return out

    def backward(
        self, dout: NDArray[np.float32], film: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], list[Tensor]]:
        """Gradients of ``film`` and of the parameters, from that of the last result."""
        dfilm = np.zeros_like(film)
        gradients = np.zeros((len(film), self.weights.own), np.float32)
        self._go(self._backward, dout, None, film, dfilm, gradients)
        total = gradients[0]
        for part in gradients[1:]:
            total += part
        found = [torch.zeros_like(parameter) for parameter in self.weights.parameters]
        self.weights.scatter(self._values, total, found)
        return dfilm, found

    def _go(
        self,
        operations: ctypes.Array[native.Op],
        given: NDArray[np.float32],
        out: NDArray[np.float32] | None,
        film: NDArray[np.float32],
        dfilm: NDArray[np.float32] | None = None,
        gradients: NDArray[np.float32] | None = None,
    ) -> None:
        jobs = (native.Job * len(film))()
        for i, job in enumerate(jobs):
            part = slice(i * LANES, (i + 1) * LANES)
            job.arena = self._arenas[i].ctypes.data
            job.values = self._values.ctypes.data
            job.film = film[i].ctypes.data
            job.input = given[part].ctypes.data
            job.images = len(given[part])
            if out is not None:
                job.out = out[part].ctypes.data
            if dfilm is not None and gradients is not None:
                job.film_gradient = dfilm[i].ctypes.data
                job.gradients = gradients[i].ctypes.data
        places = [space.ctypes.data for space in self._workspace]
        self._passes.run(operations, jobs, places, self._scratch)


class _Pass(torch.autograd.Function):
    """One forward pass over all images, and its gradients."""

    @staticmethod
    def forward(ctx: Any, unet: SparseUNet, x: Tensor, film: Tensor, *_: Tensor) -> Tensor:
        count, rows = film.shape
        jobs = -(-count // LANES)
        lanes = torch.zeros((jobs * LANES, rows), dtype=torch.float32)
        lanes[:count] = film
        apart = lanes.reshape(jobs, LANES, rows).transpose(1, 2).contiguous().numpy()
        out = unet.forward(x.detach().float().contiguous().numpy(), apart)
        ctx.unet, ctx.film, ctx.count, ctx.run = unet, apart, count, unet._run
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        unet: SparseUNet = ctx.unet
        if unet._run != ctx.run:
            raise RuntimeError("backward: expected the last forward pass, got one before it.")
        dout = gradients[0].float().contiguous().numpy()
        dfilm, found = unet.backward(dout, ctx.film)
        flat = torch.from_numpy(dfilm).transpose(1, 2).reshape(-1, dfilm.shape[1])
        return (None, None, flat[: ctx.count], *found)
