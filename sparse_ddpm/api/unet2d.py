"""The network as diffusers' pipelines want it: what they do with a ``UNet2DModel``, on our engine.

This module imports torch and diffusers, and is itself imported when it is asked for.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.api.engines import MAX_ROWS, Worker
from sparse_ddpm.api.sampler import Sampler
from sparse_ddpm.errors import ConfigError, EngineError, MissingDependencyError, expected
from sparse_ddpm.sampling import alphas_cumprod
from sparse_ddpm.ticket import DiffusionConfig

try:
    import torch
    from diffusers.configuration_utils import FrozenDict
    from diffusers.models.unets.unet_2d import UNet2DOutput
except ImportError as error:
    needed = 'torch and diffusers: pip install "sparse-ddpm[diffusers]"'
    raise MissingDependencyError(expected("UNet2D", needed, f"no {error.name}")) from error

PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
"""diffusers' names of our objectives."""

ALL_TIMESTEPS = 4096
"""A ticket of no more timesteps gets its time table for all of them at once."""


@runtime_checkable
class OnDevice(Protocol):
    """An engine that keeps its input, its output and the number of the step on its device."""

    @property
    def input(self) -> torch.Tensor: ...
    @property
    def output(self) -> torch.Tensor: ...
    @property
    def step(self) -> torch.Tensor: ...
    def replay(self) -> None: ...


class UNet2D(torch.nn.Module):
    """A ticket's network in place of a ``diffusers.UNet2DModel``.

    diffusers' ``DDPMPipeline`` and ``DDIMPipeline``, and loops of one's own around any scheduler,
    take it for one: ``config.sample_size``, ``config.in_channels``, ``dtype``, ``device``, and
    ``unet(sample, timestep).sample``. It has no parameters and no gradients, float32 goes in and
    comes out whatever the engine computes in, and it stays on the engine's device: it runs where
    it was loaded. Safe on many threads and in forked processes, as its `Sampler` is.

    >>> unet = UNet2D.load("mnist")
    >>> pipeline = DDIMPipeline(unet=unet, scheduler=unet.scheduler(DDIMScheduler))
    >>> images = pipeline(batch_size=4, num_inference_steps=50).images
    """

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sampler = sampler
        program = sampler.program
        channels, height, width = program.input_shape
        frozen_dict: Any = FrozenDict
        self.config = frozen_dict(
            sample_size=height if height == width else (height, width),
            in_channels=channels,
            out_channels=program.shapes[program.output][0],
            center_input_sample=False,
            class_embed_type=None,
            num_class_embeds=None,
        )
        self._known: NDArray[np.float64] = np.zeros(0)
        self._device = torch.device("cpu")
        if sampler.device == "cuda":
            from sparse_ddpm.engine.cuda.engine import cuda_device

            self._device = cuda_device()
        self.eval()

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, **settings: Any) -> Self:
        """Of a ticket: path, name and settings as for `Sampler.load`."""
        return cls(Sampler.load(path, **settings))

    @property
    def dtype(self) -> torch.dtype:
        """Of what goes in and comes out: float32."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where the engine is: ``cpu``, or ``cuda`` if the sampler was loaded for it."""
        return self._device

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """The network's output for ``sample`` ``[N, C, H, W]``, in its dtype and on its device.

        ``timestep``: a number or a tensor of one, for all images, or of N, one each; it need not be
        an integer. Images of other timesteps are other runs of the engine. Raises `ConfigError` for
        arguments that do not fit the network, and `EngineError` where a gradient is wanted.
        """
        self._check(sample, class_labels)
        t = _timesteps(timestep, len(sample))
        known = self._schedule(t)
        x = sample.detach().to(self.device, torch.float32).contiguous()
        values = sorted(set(t.tolist()))
        if len(values) == 1:
            out = self._run(x, known, values[0])
        else:
            out = torch.empty_like(x)
            for value in values:
                these = torch.from_numpy(np.flatnonzero(t == value)).to(self.device)
                out[these] = self._run(x[these], known, value)
        out = out.to(sample.device, sample.dtype)
        return UNet2DOutput(sample=out) if return_dict else (out,)

    def prepare(self, timesteps: Iterable[float] | torch.Tensor) -> None:
        """Compute now what depends on ``timesteps`` alone, as of ``scheduler.timesteps``.

        Never needed. A ticket of at most `ALL_TIMESTEPS` timesteps gets all of its own at the first
        call; others, and fractions, are worked out when first seen and kept.
        """
        values = timesteps.tolist() if isinstance(timesteps, torch.Tensor) else list(timesteps)
        self._schedule(_finite(np.asarray(values, np.float64).reshape(-1)))

    def scheduler_config(self) -> dict[str, Any]:
        """What a diffusers scheduler must be told of the ticket.

        ``trained_betas`` and their number, ``prediction_type``, whether x0 is clipped (which
        ``DPMSolverMultistepScheduler`` cannot), and trailing timesteps, as `Sampler` takes.
        """
        return scheduler_config(self.sampler.ticket.diffusion)

    def scheduler(self, kind: Callable[..., Any], **settings: Any) -> Any:
        """A scheduler of class ``kind`` for this ticket: ``unet.scheduler(DDIMScheduler)``.

        Gets what it knows of `scheduler_config`, and ``settings`` above that.
        """
        takes = inspect.signature(kind).parameters
        own = {name: value for name, value in self.scheduler_config().items() if name in takes}
        return kind(**(own | settings))

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"{dict(self.config)}, {self.sampler.description}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """``to``, ``half``, ``cuda`` and the like: refuse what would not be done."""
        probe = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if probe.device.type != self.device.type:
            wanted = f"{self.device.type}, where its engine is (load it with device=...)"
            raise EngineError(expected("device of the network", wanted, probe.device.type))
        if probe.dtype != self.dtype:
            wanted = "float32 in and out (load it with dtype=... for the engine's own)"
            raise EngineError(expected("dtype of the network", wanted, probe.dtype))
        return self

    def _check(self, sample: torch.Tensor, class_labels: torch.Tensor | None) -> None:
        wanted = self.sampler.program.input_shape
        if not isinstance(sample, torch.Tensor) or tuple(sample.shape[1:]) != wanted:
            got = tuple(sample.shape) if isinstance(sample, torch.Tensor) else type(sample).__name__
            shape = f"a tensor [N, {', '.join(map(str, wanted))}]"
            raise ConfigError(expected("sample", shape, got))
        if not sample.is_floating_point():
            raise ConfigError(expected("sample", "floating-point numbers", sample.dtype))
        if class_labels is not None:
            raise ConfigError(expected("class_labels", "none: no ticket has classes", "some"))
        if sample.requires_grad and torch.is_grad_enabled():
            raise EngineError(
                expected("sample", "no gradient (torch.no_grad()): engines have none", "one")
            )

    def _schedule(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """All timesteps known so far, ``t`` among them: engines get rows for all of them at once.

        So a pipeline of 50 steps does not build 50 tables, each one row longer than the last.
        """
        known = self._known
        if not np.isin(t, known).all():
            count = self.sampler.ticket.diffusion.timesteps
            own = count <= ALL_TIMESTEPS and np.isin(t, np.arange(count)).all()
            new = np.unique(np.arange(count, dtype=np.float64) if own else t)
            both = np.union1d(known, new)
            # Another thread may do the same now: what one forgets of the other is found again.
            self._known = known = both if len(both) <= MAX_ROWS else new
        return known

    def _run(self, x: torch.Tensor, known: NDArray[np.float64], t: float) -> torch.Tensor:
        """Batch by batch: a pipeline's batch may be more than an engine should take at once."""
        step = int(np.searchsorted(known, t))
        if not len(x):
            return torch.empty_like(x)
        parts = []
        for part in x.split(self.sampler.batch_size):
            with self.sampler.workers.lend() as worker:
                parts.append(self._batch(worker, part, known, step))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _batch(
        self, worker: Worker, x: torch.Tensor, known: NDArray[np.float64], step: int
    ) -> torch.Tensor:
        if self.sampler.device != "cuda":
            return torch.from_numpy(worker.run(x.numpy(), known, step))
        planned = worker.planned(len(x))
        engine = planned.engine
        assert isinstance(engine, OnDevice)
        row = planned.row(known, step)
        engine.input.copy_(x)
        engine.step.fill_(row)
        engine.replay()
        return engine.output.clone()


def scheduler_config(diffusion: DiffusionConfig) -> dict[str, Any]:
    """What diffusers' schedulers call the settings of a ticket: keyword arguments of theirs."""
    alpha_bar = alphas_cumprod(diffusion)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    return {
        "num_train_timesteps": diffusion.timesteps,
        "trained_betas": (1.0 - alpha_bar / before).tolist(),
        "prediction_type": PREDICTION_TYPES[diffusion.objective],
        "clip_sample": diffusion.clip,
        "clip_sample_range": 1.0,
        "timestep_spacing": "trailing",
    }


def _timesteps(timestep: torch.Tensor | float, images: int) -> NDArray[np.float64]:
    """One for each image, ``[N]``."""
    values = timestep.detach().cpu() if isinstance(timestep, torch.Tensor) else timestep
    try:
        t = np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ConfigError(expected("timestep", "numbers", repr(timestep)[:80])) from error
    if len(t) not in (1, images):
        raise ConfigError(expected("timestep", f"1 or {images} numbers", len(t)))
    return np.broadcast_to(_finite(t), images)


def _finite(t: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(t).all():
        raise ConfigError(expected("timestep", "finite numbers", t.tolist()[:8]))
    return t
