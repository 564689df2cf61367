"""The oracle itself, operation by operation, against torch's own functions in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

from sparse_ddpm.engine import make_engine
from sparse_ddpm.engine.reference import ReferenceEngine, evaluate
from sparse_ddpm.errors import EngineError
from sparse_ddpm.formats import CSR
from sparse_ddpm.lower import lower
from sparse_ddpm.program import (
    Add,
    Attention,
    ChannelNorm,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    Operation,
    SpaceToDepth,
    Upsample2x,
)
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket

RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape)


def vector(n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return random(n).astype(np.float32)


def check(operation: Operation, values: dict[str, Any], wanted: Any, film: Any = None) -> None:
    got = evaluate(operation, values, np.zeros(0) if film is None else film)
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 5), (9, 2)])
def test_conv(size: int, height: int, width: int) -> None:
    x, residual = random(2, 3, height, width), random(2, 5, height, width)
    dense = np.where(RNG.random((5, 3 * size * size)) < 0.4, random(5, 3 * size * size), 0)
    dense[1] = 0
    weight, bias = CSR.from_dense(dense), vector(5)
    wanted = F.conv2d(
        torch.from_numpy(x),
        torch.from_numpy(weight.to_dense().astype(np.float64)).reshape(5, 3, size, size),
        torch.from_numpy(bias).double(),
        padding=size // 2,
    )
    check(Conv("y", "x", weight, size, bias), {"x": x}, wanted)
    check(
        Conv("y", "x", weight, size, bias, "r"),
        {"x": x, "r": residual},
        wanted + torch.from_numpy(residual),
    )
    film = random(9)
    moved = wanted + torch.from_numpy(film[2:7])[:, None, None]
    check(Conv("y", "x", weight, size, bias, film=2), {"x": x}, moved, film)


@pytest.mark.parametrize("silu", [True, False])
def test_norm_act(silu: bool) -> None:
    x, residual, film = 3 * random(2, 6, 4, 5) + 1, random(2, 6, 4, 5), random(20)
    gamma, beta = vector(6), vector(6)
    normed = F.group_norm(
        torch.from_numpy(x), 3, torch.from_numpy(gamma).double(), torch.from_numpy(beta).double()
    )
    scale = torch.from_numpy(film[5:11])[None, :, None, None]
    shift = torch.from_numpy(film[11:17])[None, :, None, None]
    for offset, wanted in ((None, normed), (5, normed * (scale + 1) + shift)):
        acted = F.silu(wanted) if silu else wanted
        check(NormAct("y", "x", 3, gamma, beta, offset, silu), {"x": x}, acted, film)
        fused = NormAct("y", "x", 3, gamma, beta, offset, silu, residual="r")
        check(fused, {"x": x, "r": residual}, acted + torch.from_numpy(residual), film)


def test_channel_norm() -> None:
    x, residual, gain = 3 * random(2, 6, 4, 5) + 1, random(2, 6, 4, 5), vector(6)
    channels_last = torch.from_numpy(x).permute(0, 2, 3, 1)
    wanted = F.layer_norm(channels_last, (6,), torch.from_numpy(gain).double())
    wanted = wanted.permute(0, 3, 1, 2)
    check(ChannelNorm("y", "x", gain), {"x": x}, wanted)
    wanted = wanted + torch.from_numpy(residual)
    check(ChannelNorm("y", "x", gain, residual="r"), {"x": x, "r": residual}, wanted)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 4)])
def test_attention(height: int, width: int) -> None:
    qkv = 2 * random(2, 3 * 2 * 5, height, width)
    q, k, v = torch.from_numpy(qkv).reshape(2, 3, 2, 5, -1).transpose(-1, -2).unbind(1)
    wanted = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
    check(Attention("y", "x", 2, 5), {"x": qkv}, wanted.reshape(2, 10, height, width))
    q, k = q.softmax(-1) / 5**0.5, k.softmax(-2)
    wanted = (q @ (k.transpose(-1, -2) @ v)).transpose(-1, -2) / (height * width)
    check(LinearAttention("y", "x", 2, 5), {"x": qkv}, wanted.reshape(2, 10, height, width))


def test_movement() -> None:
    x, b = random(2, 3, 4, 6), random(2, 5, 4, 6)
    tx, tb = torch.from_numpy(x), torch.from_numpy(b)
    check(SpaceToDepth("y", "x"), {"x": x}, F.pixel_unshuffle(tx, 2))
    check(Upsample2x("y", "x"), {"x": x}, F.interpolate(tx, scale_factor=2, mode="nearest"))
    check(Concat("y", "x", "b"), {"x": x, "b": b}, torch.cat([tx, tb], dim=1))
    check(Add("y", "x", "x"), {"x": x}, tx + tx)


def test_engine_checks_its_arguments() -> None:
    config = UNetConfig(dim=4, dim_mults=(1,), channels=1, image_size=4, groups=2, heads=1)
    program = lower(synthetic_ticket(config, 0.5))
    engine = make_engine(program, "numpy", batch=2)
    assert isinstance(engine, ReferenceEngine)
    x = np.zeros((2, 1, 4, 4), np.float32)
    with pytest.raises(EngineError, match="set_schedule before"):
        engine.run(x, 0)
    engine.set_schedule(np.array([10, 0]))
    assert engine.run(x, 1).shape == x.shape
    for bad, step, message in (
        (x, 2, r"step: expected 0 to 1, got 2"),
        (x, -1, "step: expected"),
        (x[:1], 0, r"engine input: expected float32 \(2, 1, 4, 4\)"),
        (x.astype(np.float64), 0, "engine input: expected float32"),
        (x.tolist(), 0, "engine input: expected float32"),
    ):
        with pytest.raises(EngineError, match=message):
            engine.run(bad, step)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="timesteps"):
        engine.set_schedule(np.array([np.nan]))
    with pytest.raises(EngineError, match="batch: expected"):
        make_engine(program, "numpy", batch=0)
    with pytest.raises(EngineError, match="device: expected"):
        make_engine(program, "abacus")
