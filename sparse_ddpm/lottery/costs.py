"""How often each weight is used: the part of its cost that the architecture alone decides."""

from __future__ import annotations

from sparse_ddpm.lottery.pruning import prunable
from sparse_ddpm.ticket import Architecture, UNet2DConfig


def pixels_of(config: Architecture) -> dict[str, int]:
    """Pixels of one image that each weight of a prunable parameter is multiplied with, by name.

    0 for FiLM maps: they are run once per schedule, not once per image.
    """
    levels = config.levels if isinstance(config, UNet2DConfig) else len(config.dim_mults)
    last = levels - 1
    return {
        p.name: 0 if len(p.shape) == 2 else (config.image_size >> _halvings(p.name, last)) ** 2
        for p in prunable(config)
    }


def _halvings(name: str, last: int) -> int:
    """How often the images were halved where the output of a convolution is."""
    parts = name.split(".")
    if parts[0] in ("mid", "mid_block"):
        return last
    if parts[0] not in ("down", "down_blocks", "up", "up_blocks"):
        return 0
    index = int(parts[1])
    if parts[0].startswith("down"):
        return min(index + (parts[2] in ("down", "downsamplers")), last)
    return max(last - index - (parts[2] in ("up", "upsamplers")), 0)
