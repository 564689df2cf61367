"""A sampler's state on the device, and its step around the network's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sparse_ddpm_kernels.triton.sampler import (
    FINE,
    advance,
    initial_noise,
    sampler_update,
    seed_bits,
)

from sparse_ddpm.engine.base import Images
from sparse_ddpm.engine.cuda.launches import Launches
from sparse_ddpm.errors import EngineError, expected


class SamplerState:
    """Buffers of a batch of images that are being drawn. One at a time for each `Launches`."""

    def __init__(self, launches: Launches, batch: int) -> None:
        self._launches = launches
        program, device = launches.plan.program, launches.device
        self.x = torch.zeros((batch, *program.input_shape), device=device)
        self.previous = torch.zeros_like(self.x)
        self.seed = torch.zeros(1, dtype=torch.int64, device=device)
        self.seeds = torch.zeros(batch, dtype=torch.int64, device=device)
        self.images = torch.zeros(batch, dtype=torch.int64, device=device)
        self.bad_step = torch.zeros(1, dtype=torch.int32, device=device)
        self.table = torch.zeros((1, 7), device=device)
        self._input = launches.view(program.input)
        self._output = launches.view(program.output)

    def set_table(self, table: NDArray[np.float32]) -> bool:
        """Coefficients ``[S, 7]``; whether they took new memory, so that graphs are void."""
        fresh = torch.from_numpy(table)
        if len(table) > len(self.table):
            self.table = fresh.to(self._launches.device, copy=True)
            return True
        self.table[: len(table)].copy_(fresh)
        return False

    def begin(self, seed: int | NDArray[Any], image_indices: NDArray[Any]) -> None:
        """Initial noise, step 0. ``seed``: of all images, or ``[batch]``."""
        self.images.copy_(torch.from_numpy(_bits(image_indices)))
        if isinstance(seed, int):
            self.seed.fill_(seed_bits(seed))
        else:
            self.seeds.copy_(torch.from_numpy(_bits(seed)))
        self.bad_step.fill_(FINE)
        self._launches.step.zero_()
        self._input.zero_()  # the images that fill the batch up
        following = self._input.permute(3, 0, 1, 2)
        seeds = self._seeds(not isinstance(seed, int))
        initial_noise(self.x, seeds, self.images, following=following)

    def step(self, clip: bool, own_seeds: bool) -> None:
        """The network, the update of the state, the counter; with one seed or each image's own."""
        self._launches.network()
        sampler_update(
            self.x,
            self._output.permute(3, 0, 1, 2),
            self.previous,
            self.table,
            self._launches.step,
            seed=self._seeds(own_seeds),
            images=self.images,
            clip=clip,
            following=self._input.permute(3, 0, 1, 2),
            bad_step=self.bad_step,
        )
        advance(self._launches.step)

    def _seeds(self, own: bool) -> torch.Tensor:
        return self.seeds if own else self.seed

    def finish(self) -> Images:
        """The images. `EngineError` if the network's output was not finite in some step."""
        bad = int(self.bad_step.item())
        if bad != FINE:
            what = f"network output in step {bad}"
            raise EngineError(expected(what, "finite values", "NaN or infinity"))
        images: Images = self.x.cpu().numpy().copy()
        return images


def _bits(words: NDArray[Any]) -> NDArray[np.int64]:
    """Words of 64 bits as the int64 that have theirs."""
    return np.asarray(words).astype(np.uint64).view(np.int64)
