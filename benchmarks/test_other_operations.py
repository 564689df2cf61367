"""Everything that is not a convolution: norms, attention, and what moves data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparse_ddpm.program import (
    Add,
    Attention,
    ChannelNorm,
    Concat,
    LinearAttention,
    NormAct,
    SpaceToDepth,
    Upsample2x,
)

IMAGES = [(64, 32), (128, 16), (256, 8), (512, 4)]
HEADS, DIM_HEAD = 4, 32

pytestmark = pytest.mark.parametrize("batch", [1, 16])


@pytest.mark.parametrize(("channels", "side"), IMAGES)
@pytest.mark.parametrize("film", [None, 0], ids=["plain", "film"])
def test_norm_act(
    measure: Any, vector: Any, film: int | None, channels: int, side: int, batch: int
) -> None:
    op = NormAct("y", "x", 8, vector(channels), vector(channels), film)
    measure((channels, side, side), op, batch=batch)


@pytest.mark.parametrize(("channels", "side"), IMAGES)
def test_channel_norm(measure: Any, vector: Any, channels: int, side: int, batch: int) -> None:
    measure((channels, side, side), ChannelNorm("y", "x", vector(channels)), batch=batch)


@pytest.mark.parametrize("side", [4, 8, 16])
def test_attention(measure: Any, side: int, batch: int) -> None:
    shape = (3 * HEADS * DIM_HEAD, side, side)
    measure(shape, Attention("y", "x", HEADS, DIM_HEAD), batch=batch)


@pytest.mark.parametrize("side", [8, 16, 32])
def test_linear_attention(measure: Any, side: int, batch: int) -> None:
    shape = (3 * HEADS * DIM_HEAD, side, side)
    measure(shape, LinearAttention("y", "x", HEADS, DIM_HEAD), batch=batch)


@pytest.mark.parametrize("move", [SpaceToDepth, Upsample2x])
@pytest.mark.parametrize(("channels", "side"), [(64, 16), (256, 8)])
def test_move(measure: Any, move: Any, channels: int, side: int, batch: int) -> None:
    measure((channels, side, side), move("y", "x"), batch=batch)


def test_add(measure: Any, batch: int) -> None:
    before = ChannelNorm("b", "x", np.ones(128, np.float32))
    measure((128, 16, 16), before, Add("y", "b", "x"), batch=batch)


def test_concat_that_copies(measure: Any, batch: int) -> None:
    """The input of the network has a buffer of its own once it lies in another concatenation."""
    first = Concat("b", "x", "x")
    measure((128, 16, 16), first, Concat("y", "b", "b"), batch=batch)
