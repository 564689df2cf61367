"""Which kernels a round trains with: torch's dense ones, or ours that do what survives."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.lottery.pruning import Masks, density_of
from sparse_ddpm.lottery.settings import Settings
from sparse_ddpm.model.build import Denoiser
from sparse_ddpm.model.sparse import SparseUNet, missing, unsupported
from sparse_ddpm.ticket.config import Pattern

BREAK_EVEN = {"bf16": (0.55, 0.7), "float32": (0.8, 0.9)}
"""By torch's precision: densities up to which ours are faster, for units of less than four output
channels and of more. `benchmarks/training.py` measures them."""

Function = Callable[[Tensor, Tensor], Tensor]
"""x ``[N, C, H, W]`` and t ``[N]`` to the prediction."""


def resolve_kernels(settings: Settings) -> str:
    """``torch`` where the sparse kernels cannot be had, else what the settings say.

    Raises `ConfigError` where they cannot be had and the settings insist.
    """
    if settings.kernels == "torch":
        return "torch"
    reason = f"device {settings.device}" if settings.device != "cpu" else ""
    reason = reason or unsupported(settings.architecture) or missing()
    if reason and settings.kernels == "sparse":
        raise ConfigError(expected("kernels", "torch or auto here", f"'sparse' ({reason})"))
    return "torch" if reason else settings.kernels


def is_sparse(settings: Settings, density: float) -> bool:
    """Whether masks of that density are trained with the sparse kernels; settings are resolved."""
    if settings.kernels != "auto":
        return settings.kernels == "sparse"
    few, many = BREAK_EVEN[settings.precision]
    return density <= (few if Pattern.parse(settings.pattern).rows < 4 else many)


def step_function(settings: Settings, model: Denoiser, masks: Masks) -> tuple[str, Function]:
    """The name of the kernels, and ``model`` with its present ``masks`` on them."""
    if is_sparse(settings, density_of(masks)):
        return "sparse", SparseUNet(model, settings.threads or 1)
    return "torch", model
