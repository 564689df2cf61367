"""The forward process and what the network learns, on torch tensors.

Images are float32 in [-1, 1]; timesteps are int64 in [0, T). Coefficients are made in float64.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.ticket.config import DiffusionConfig

LOSSES = ("l1", "l2")


class Diffusion:
    """Noising, targets and loss for one schedule and one objective.

    ``alphas_cumprod`` is alpha_bar, float64 ``[T]`` in [0, 1] (Ho et al. 2020, eq. 4). Raises
    `ConfigError` if it does not have one value in range for each timestep.
    """

    def __init__(self, config: DiffusionConfig, alphas_cumprod: NDArray[np.float64]) -> None:
        abar = np.asarray(alphas_cumprod, np.float64)
        if abar.shape != (config.timesteps,):
            raise ConfigError(expected("alphas_cumprod", f"[{config.timesteps}]", abar.shape))
        if not bool(np.all((abar >= 0.0) & (abar <= 1.0))):
            raise ConfigError(expected("alphas_cumprod", "values from 0 to 1", repr(abar)))
        self.config = config
        self._signal = torch.from_numpy(np.sqrt(abar)).float()
        self._noise = torch.from_numpy(np.sqrt(1.0 - abar)).float()

    def to(self, device: torch.device) -> Diffusion:
        """The same process with its coefficients on ``device``; changes nothing of this one."""
        moved = object.__new__(Diffusion)
        moved.config = self.config
        moved._signal, moved._noise = self._signal.to(device), self._noise.to(device)
        return moved

    def _coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (like.ndim - 1))
        return self._signal[t].reshape(shape), self._noise[t].reshape(shape)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """``sqrt(abar) x0 + sqrt(1 - abar) noise`` for x0, noise ``[N, C, H, W]`` and t ``[N]``."""
        signal, scale = self._coefficients(t, x0)
        return signal * x0 + scale * noise

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should return: the noise (eps), the image (x0), or v.

        ``v = sqrt(abar) noise - sqrt(1 - abar) x0`` (Salimans & Ho 2022, section 4).
        """
        if self.config.objective == "eps":
            return noise
        if self.config.objective == "x0":
            return x0
        signal, scale = self._coefficients(t, x0)
        return signal * noise - scale * x0


def loss(prediction: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean absolute (``l1``) or squared (``l2``) error over all elements, in float32: a scalar.

    Raises `ConfigError` for another kind.
    """
    if kind not in LOSSES:
        raise ConfigError(expected("loss", f"one of {', '.join(LOSSES)}", repr(kind)))
    measure = F.l1_loss if kind == "l1" else F.mse_loss
    return measure(prediction.float(), target.float())
