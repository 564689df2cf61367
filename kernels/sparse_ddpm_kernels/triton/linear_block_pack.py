"""The weights of a block of linear attention, as `linear_block` reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

CHANNELS = (16, 32, 64, 128)
"""Channels that a program can hold."""

DIMS = (16, 32)
"""Sizes of a head that it can."""

MOST_EXPONENT = 40.0
"""Largest \\|q\\| and \\|k\\|: exp(40) times any number of pixels is far below float32's end."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearBlockWeights:
    """``qkv``: ``[C, 3 * hidden]``, ``project``: ``[hidden, C]``, both of the activations' dtype.

    Columns of ``qkv``: q, k, v, head by head, with the first norm's gain, less the mean of each;
    q and k also times log2(e), as powers are those of 2. ``bias``, ``gain``: float32 ``[C]``, of
    the projection and of the second norm. All contiguous.
    """

    qkv: torch.Tensor
    project: torch.Tensor
    bias: torch.Tensor
    gain: torch.Tensor


def linear_block_fits(channels: int, heads: int, dim_head: int) -> bool:
    """Whether `linear_block` takes a block of this size."""
    return channels in CHANNELS and dim_head in DIMS and heads >= 1


def exponent_bound(norm_gain: NDArray[np.float32], qkv: NDArray[np.float32]) -> float:
    """The largest \\|q\\| or \\|k\\|. ``norm_gain``: ``[C]``, ``qkv``: ``[3 * hidden, C]``."""
    rows = _centred(norm_gain, qkv)[: 2 * len(qkv) // 3]
    return float(np.linalg.norm(rows, axis=1).max()) * math.sqrt(len(norm_gain))


def pack_linear_block(
    norm_gain: NDArray[np.float32],
    qkv: NDArray[np.float32],
    project: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    gain: NDArray[np.float32],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> LinearBlockWeights:
    """From the first norm's gain ``[C]``, ``[3 * hidden, C]``, ``[C, hidden]`` and two ``[C]``.

    ValueError if `exponent_bound` is above `MOST_EXPONENT`.
    """
    bound = exponent_bound(norm_gain, qkv)
    if bound > MOST_EXPONENT:
        raise ValueError(f"linear block: expected |q| and |k| up to {MOST_EXPONENT}, got {bound}.")
    wide = _centred(norm_gain, qkv)
    wide[: 2 * len(qkv) // 3] *= math.log2(math.e)
    shift = np.zeros(len(project), np.float32) if bias is None else bias

    import torch

    def tensor(array: NDArray[np.floating], kind: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(np.array(array, np.float32, order="C")).to(device, kind)

    return LinearBlockWeights(
        qkv=tensor(wide.T, dtype),
        project=tensor(project.T, dtype),
        bias=tensor(shift, torch.float32),
        gain=tensor(gain, torch.float32),
    )


def _centred(gain: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """``weight * gain``, each row less its mean."""
    rows: NDArray[np.float64] = weight.astype(np.float64) * gain.astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows
