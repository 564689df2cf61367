"""A masked U-Net whose steps on the CPU cost what its surviving weights cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sparse_ddpm_kernels import training as native
from torch import Tensor

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.model.denoiser import Denoiser
from sparse_ddpm.model.sparse.engine import WIDE, Engine, job_sizes
from sparse_ddpm.model.sparse.memory import zeros
from sparse_ddpm.model.unet import UNet
from sparse_ddpm.ticket import Architecture
from sparse_ddpm.ticket.config import UNetConfig


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
        ("memory", 0),
    ):
        if getattr(config, name) != value:
            return f"{name} {getattr(config, name)}"
    return ""


class SparseUNet:
    """``model`` with its present masks: x ``[N, C, H, W]``, t ``[N]`` to ``[N, C, H, W]``.

    Float32 throughout; gradients go to the parameters of ``model``, exactly 0 where masked.
    Nothing depends on timing, and on ``threads`` only how images are parted into jobs, which
    changes sums in their last bits. Only the last forward pass can be differentiated. After
    `Denoiser.set_masks` make another one. Raises `ConfigError` for a model that is `unsupported`,
    and `sparse_ddpm_kernels.KernelError` without the library.
    """

    def __init__(self, model: Denoiser, threads: int = 1, isa: str | None = None) -> None:
        name = f"a {type(model).__name__}"
        reason = unsupported(model.config) if isinstance(model, UNet) else name
        if reason:
            raise ConfigError(expected("sparse kernels", "another network", reason))
        assert isinstance(model, UNet)
        self.model, self._threads = model, threads
        self._isa = isa or native.default_isa()
        self._engines: dict[int, Engine] = {}
        first = self._engine(job_sizes(WIDE, 1, self._isa)[0])
        self.weights, self._films = first.weights, first.films
        self._values = zeros(self.weights.count)
        self._gradients: list[NDArray[np.float32]] = []
        self._run = 0

    def _engine(self, lanes: int) -> Engine:
        if lanes not in self._engines:
            self._engines[lanes] = Engine(self.model, lanes, self._isa, self._threads)
        return self._engines[lanes]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        time = F.silu(self.model.time(t))
        film = torch.cat([linear(time) for linear in self._films], dim=1)
        out: Tensor = _Pass.apply(self, x, film, *self.weights.parameters)  # type: ignore[no-untyped-call]
        return out

    def forward(self, x: NDArray[np.float32], film: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images ``[N, C, H, W]`` and FiLM ``[N, rows]`` to the result."""
        self._run += 1
        self.weights.gather(self._values)
        out = np.empty_like(x)
        jobs, _ = self._jobs(x, film)
        for job, part in jobs:
            job.out = out[part].ctypes.data
        self._go([job for job, _ in jobs])
        return out

    def backward(
        self, dout: NDArray[np.float32], film: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], list[Tensor]]:
        """Gradients of ``film`` and of the parameters, from that of the last result."""
        jobs, films = self._jobs(dout, film, backward=True)
        dfilms = [np.zeros_like(part) for part in films]
        while len(self._gradients) < len(jobs):
            self._gradients.append(zeros(self.weights.own))
        gradients = self._gradients[: len(jobs)]
        for (job, _), dfilm, gradient in zip(jobs, dfilms, gradients, strict=True):
            job.film_gradient, job.gradients = dfilm.ctypes.data, gradient.ctypes.data
        self._go([job for job, _ in jobs])
        total = gradients[0]
        for gradient in gradients[1:]:
            total += gradient
        found = [torch.zeros_like(parameter) for parameter in self.weights.parameters]
        self.weights.scatter(self._values, total, found)
        return np.concatenate([part.T for part in dfilms])[: len(film)], found

    def _jobs(
        self, given: NDArray[np.float32], film: NDArray[np.float32], *, backward: bool = False
    ) -> tuple[list[tuple[native.Job, slice]], list[NDArray[np.float32]]]:
        """A job for each part of the images, and its FiLM ``[rows, lanes]``."""
        jobs: list[tuple[native.Job, slice]] = []
        films = []
        first = 0
        for lanes in job_sizes(len(given), self._threads, self._isa):
            part = slice(first, min(first + lanes, len(given)))
            films.append(np.zeros((film.shape[1], lanes), np.float32))
            films[-1][:, : part.stop - first] = film[part].T
            index = sum(job.lanes == lanes for job, _ in jobs)
            job = self._engine(lanes).job(index, backward=backward)
            job.values, job.film = self._values.ctypes.data, films[-1].ctypes.data
            job.input, job.images = given[part].ctypes.data, part.stop - first
            jobs.append((job, part))
            first = part.stop
        return jobs, films

    def _go(self, jobs: list[native.Job]) -> None:
        native.run((native.Job * len(jobs))(*jobs), self._threads)


class _Pass(torch.autograd.Function):
    """One forward pass over all images, and its gradients."""

    @staticmethod
    def forward(ctx: Any, unet: SparseUNet, x: Tensor, film: Tensor, *_: Tensor) -> Tensor:
        films = film.detach().float().contiguous().numpy()
        out = unet.forward(x.detach().float().contiguous().numpy(), films)
        ctx.unet, ctx.film, ctx.run = unet, films, unet._run
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        unet: SparseUNet = ctx.unet
        if unet._run != ctx.run:
            raise RuntimeError("backward: expected the last forward pass, got one before it.")
        dout = gradients[0].float().contiguous().numpy()
        dfilm, found = unet.backward(dout, ctx.film)
        return (None, None, torch.from_numpy(dfilm), *found)
