"""Values in the engine's layout, random or poisoned, and how far a result is from float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sparse_ddpm_kernels.triton.layout import Layout

TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 8e-3}
"""Of one kernel: relative RMS error against float64 on the same rounded inputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """``view``: ``[C, H, W, N]`` of ``storage`` in ``layout``."""

    layout: Layout
    storage: torch.Tensor
    view: torch.Tensor

    def halo_is_zero(self) -> bool:
        rest = self.storage.clone()
        self.layout.view(rest).zero_()
        return not bool(rest.count_nonzero())


class Values:
    """Makes values of ``dtype`` on ``device``; the same ones for the same ``seed``."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        self.rng = np.random.default_rng(seed)

    def array(self, *shape: int) -> NDArray[np.float32]:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def floats(self, *shape: int) -> torch.Tensor:
        """Normal, float32, contiguous."""
        return torch.from_numpy(self.array(*shape)).to(self.device)

    def normal(self, layout: Layout) -> Value:
        """Normal inside, zeros in the halo."""
        value = self.blank(layout)
        value.view.copy_(self.floats(*value.view.shape))
        return value

    def poisoned(self, layout: Layout) -> Value:
        """NaN inside, zeros in the halo."""
        value = self.blank(layout)
        value.view.fill_(math.nan)
        return value

    def blank(self, layout: Layout) -> Value:
        storage = layout.allocate(self.dtype, self.device)
        return Value(layout, storage, layout.view(storage))


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """RMS of the difference over RMS of ``wanted``; infinity where anything is not finite."""
    exact = wanted.double()
    difference = (got.double() - exact).square().mean().sqrt()
    scale = exact.square().mean().sqrt()
    found = float(difference / scale.clamp_min(1e-300))
    return found if math.isfinite(found) else math.inf
