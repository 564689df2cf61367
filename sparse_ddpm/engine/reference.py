"""The reference engine: numpy, float64, one obvious function per operation.

The oracle of every test. Weights are made dense and every zero is multiplied, so nothing here
shares an assumption with the fast engines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.engine.base import Engine, Images, check_batch, check_timesteps
from sparse_ddpm.program import (
    Add,
    Attention,
    ChannelNorm,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    Operation,
    Program,
    SpaceToDepth,
    Upsample2x,
)

Array = NDArray[np.float64]
"""Activations, ``[N, C, H, W]``."""


class ReferenceEngine(Engine):
    """Slow and obvious. Inputs and outputs are float32, everything between is float64."""

    def __init__(self, program: Program, batch: int = 1) -> None:
        self.program = program
        self.batch = check_batch(batch)
        self._table: Array = np.zeros((0, program.time.columns))

    @property
    def description(self) -> str:
        return "numpy reference, float64"

    def set_schedule(self, timesteps: NDArray[Any]) -> None:
        self._table = self.program.time.table(check_timesteps(timesteps))

    def run(self, x: Images, step: int) -> Images:
        return self.values(x, step)[self.program.output].astype(np.float32)

    def trace(self, x: Images, step: int) -> dict[str, Images]:
        return {name: v.astype(np.float32) for name, v in self.values(x, step).items()}

    def values(self, x: Images, step: int) -> dict[str, Array]:
        """Every value by name, in float64."""
        self.check_input(x, step, len(self._table))
        values = {self.program.input: x.astype(np.float64)}
        for operation in self.program.operations:
            values[operation.out] = evaluate(operation, values, self._table[step])
        return values


def evaluate(operation: Operation, values: dict[str, Array], film: Array) -> Array:
    """One operation on float64 values ``[N, C, H, W]``; ``film`` is one row of the time table."""
    match operation:
        case Conv():
            out = _conv(values[operation.x], operation, film)
        case NormAct():
            out = _norm_act(values[operation.x], operation, film)
        case ChannelNorm():
            x = values[operation.x]
            deviation = np.sqrt(x.var(axis=1, keepdims=True) + operation.eps)
            out = (x - x.mean(axis=1, keepdims=True)) / deviation * _per_channel(operation.gain)
        case Attention():
            q, k, v, _ = _heads(values[operation.qkv], operation)
            weights = _softmax(np.einsum("nhdi,nhdj->nhij", q, k) / np.sqrt(operation.dim_head), -1)
            return _merge(np.einsum("nhij,nhdj->nhdi", weights, v), values[operation.qkv])
        case LinearAttention():
            q, k, v, pixels = _heads(values[operation.qkv], operation)
            q = _softmax(q, 2) / np.sqrt(operation.dim_head)
            context = np.einsum("nhdm,nhem->nhde", _softmax(k, 3), v / pixels)
            return _merge(np.einsum("nhde,nhdi->nhei", context, q), values[operation.qkv])
        case SpaceToDepth():
            x = values[operation.x]
            n, c, h, w = x.shape
            tiles = x.reshape(n, c, h // 2, 2, w // 2, 2)
            return tiles.transpose(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
        case Upsample2x():
            return values[operation.x].repeat(2, axis=2).repeat(2, axis=3)
        case Concat():
            return np.concatenate([values[operation.a], values[operation.b]], axis=1)
        case Add():
            return values[operation.a] + values[operation.b]
    return out if operation.residual is None else out + values[operation.residual]


def _per_channel(vector: NDArray[Any]) -> Array:
    return vector.astype(np.float64)[:, None, None]


def _conv(x: Array, operation: Conv, film: Array) -> Array:
    n, channels, height, width = x.shape
    size, pad = operation.size, operation.size // 2
    weight = operation.weight.to_dense().astype(np.float64).reshape(-1, channels, size, size)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((n, len(weight), height, width))
    for i in range(size):
        for j in range(size):
            window = padded[:, :, i : i + height, j : j + width].reshape(n, channels, -1)
            out += (weight[:, :, i, j] @ window).reshape(out.shape)
    if operation.bias is not None:
        out += _per_channel(operation.bias)
    if operation.film is not None:
        out += _per_channel(film[operation.film : operation.film + len(weight)])
    return out


def _norm_act(x: Array, operation: NormAct, film: Array) -> Array:
    n, channels = x.shape[:2]
    groups = x.reshape(n, operation.groups, -1)
    deviation = np.sqrt(groups.var(axis=2, keepdims=True) + operation.eps)
    y = ((groups - groups.mean(axis=2, keepdims=True)) / deviation).reshape(x.shape)
    y = y * _per_channel(operation.gamma) + _per_channel(operation.beta)
    if operation.film is not None:
        scale = film[operation.film : operation.film + channels]
        shift = film[operation.film + channels : operation.film + 2 * channels]
        y = y * (_per_channel(scale) + 1.0) + _per_channel(shift)
    # exp of a large positive argument overflows to inf, and y / inf is the right limit
    with np.errstate(over="ignore"):
        return np.asarray(y / (1.0 + np.exp(-y)) if operation.silu else y)


def _heads(qkv: Array, operation: Attention | LinearAttention) -> tuple[Array, Array, Array, int]:
    """q, and k and v with the memory, ``[N, heads, dim_head, pixels]``; the image's pixels."""
    n = len(qkv)
    split = qkv.reshape(n, 3, operation.heads, operation.dim_head, -1)
    q, k, v = split[:, 0], split[:, 1], split[:, 2]
    if operation.memory is not None:
        shape = (n, *operation.memory.shape[1:])
        more = operation.memory.astype(np.float64)
        k, v = (
            np.concatenate([np.broadcast_to(part, shape), own], axis=3)
            for part, own in zip(more, (k, v), strict=True)
        )
    return q, k, v, q.shape[3]


def _merge(heads: Array, qkv: Array) -> Array:
    """``[N, heads, dim_head, pixels]`` to ``[N, hidden, H, W]``."""
    return heads.reshape(len(heads), -1, *qkv.shape[2:])


def _softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))
