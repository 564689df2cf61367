"""An exponential moving average of the weights, the network that is sampled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Averages the parameters of ``model``: ``average += (1 - d) (parameter - average)``.

    In the first updates d is lower, ``(1 + k) / (10 + k)`` for update k, so that a short round
    does not remember where it began; later d is ``decay``. The average starts at the parameters,
    so an entry that is exactly zero in the model and stays so is exactly zero here: made from a
    masked model, the average is masked. A new round makes a new EMA.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters = [p.detach() for p in model.parameters()]
        self._names = [name for name, _ in model.named_parameters()]
        self._average = [p.clone() for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present parameters."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, self._parameters, 1.0 - decay)
        self.updates += 1

    def weights(self) -> dict[str, Tensor]:
        """The averages by parameter name; not copies."""
        return dict(zip(self._names, self._average, strict=True))

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Continue from averages that `weights` gave after ``updates`` updates."""
        for name, average in zip(self._names, self._average, strict=True):
            average.copy_(weights[name])
        self.updates = updates
