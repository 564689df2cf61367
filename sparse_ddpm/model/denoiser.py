"""What every trainable network is: masks on its weights, by parameter name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.model.layers import Masked


class Denoiser(nn.Module):
    """``forward(x [N, C, H, W], t [N]) -> [N, C, H, W]``.

    Parameters carry the names and shapes of `sparse_ddpm.ticket.parameters_of`.
    """

    def masked(self) -> dict[str, Masked]:
        """The module behind each weight that can carry a mask, by parameter name."""
        return {
            f"{path}.weight": module
            for path, module in self.named_modules()
            if isinstance(module, Masked)
        }

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Install masks by parameter name (1 survives, 0 is gone); parameters not named are dense.

        Raises `ConfigError` for a name without a weight and for a shape that is not the weight's.
        """
        modules = self.masked()
        for name, mask in masks.items():
            if name not in modules:
                raise ConfigError(expected("mask", "the name of a weight", repr(name)))
            weight = modules[name].weight
            if mask.shape != weight.shape:
                raise ConfigError(
                    expected(f"mask of {name}", tuple(weight.shape), tuple(mask.shape))
                )
        for name, module in modules.items():
            module.mask = masks[name].to(module.weight) if name in masks else None

    def effective_weights(self) -> dict[str, Tensor]:
        """Masked and standardised weights by parameter name, 0 where pruned, detached.

        With standardisation over all weights: what survives, see `Masked.surviving_weight`.
        """
        with torch.no_grad():
            return {name: m.surviving_weight().detach() for name, m in self.masked().items()}
