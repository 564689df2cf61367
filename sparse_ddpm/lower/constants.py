"""Constant channels: found, and folded into the biases of the convolutions that read them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.formats import CSR
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

Constants = NDArray[np.float64]
"""Of one value ``[C]``: what each channel is in every pixel of every image; NaN where it varies."""


def fold_constants(program: Program) -> Program:
    """Take out of the convolutions what reads a channel that is the same in every image.

    Such a channel begins with a row of no weights, which gives the bias alone. It goes through
    sums, moves and attention (a mean of equal values), and through a norm only where its whole
    group is constant: otherwise the norm makes it depend on the group's other channels. A 1x1
    convolution adds weight times constant to its bias, a larger one forgets a constant of 0 (zero
    padding makes any other vary at the border). Where one side of a sum is constant in all channels
    a convolution without weights adds it to the other. Ensures that no weight is left on a channel
    of which that is true; outputs are the same but for the rounding of biases to float32.
    """
    constants: dict[str, Constants] = {program.input: _varying(program.input_shape[0])}
    operations: list[Operation] = []
    for op in program.operations:
        folded = _fold(op, constants[op.x]) if isinstance(op, Conv) else op
        made = _made(folded, constants, program)
        operations.append(_shifted(folded, made, constants))
        constants[op.out] = made + constants[residual] if (residual := _residual(op)) else made
    return dataclasses.replace(program, operations=tuple(operations))


def _varying(channels: int) -> Constants:
    return np.full(channels, np.nan)


def _fold(op: Conv, x: Constants) -> Conv:
    known = ~np.isnan(x) if op.size == 1 else x == 0
    if not known.any():
        return op
    rows, taps = op.weight.shape[0], op.size**2
    weight = op.weight.to_dense().reshape(rows, len(x), taps)
    if not weight[:, known].any():
        return op
    stored = op.weight.stored().reshape(weight.shape) & ~known[:, None]
    matrix = CSR.from_dense(weight.reshape(rows, -1), stored.reshape(rows, -1))
    added = weight[:, known].astype(np.float64).sum(axis=2) @ x[known]
    bias = op.bias
    if added.any():
        bias = (added if bias is None else added + bias).astype(np.float32)
    return dataclasses.replace(op, weight=matrix, bias=bias)


def _residual(op: Operation) -> str | None:
    return op.residual if isinstance(op, Conv | NormAct | ChannelNorm) else None


def _shifted(op: Operation, made: Constants, constants: dict[str, Constants]) -> Operation:
    """``op``, or where it adds a constant to another value, a bias on that value."""
    match op:
        case Add(a=a, b=b):
            sides = [(constants[a], b), (constants[b], a)]
        case _:
            sides = [(made, residual)] if (residual := _residual(op)) else []
    for constant, other in sides:
        if not np.isnan(constant).any():
            none = CSR.from_dense(np.zeros((len(constant),) * 2, np.float32))
            return Conv(op.out, other, none, 1, constant.astype(np.float32), other)
    return op


def _made(op: Operation, constants: dict[str, Constants], program: Program) -> Constants:
    """What is constant in the value that ``op`` makes, before a residual."""
    match op:
        case Conv(x=x, weight=weight, bias=bias, film=film):
            out = np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64)
            varies = weight.to_dense().any(axis=1) | (film is not None)
            return np.where(varies, np.nan, out)
        case NormAct(x=x):
            return _norm_act(op, constants[x])
        case ChannelNorm(x=x, gain=gain, eps=eps):
            values = constants[x]
            out = (values - values.mean()) / np.sqrt(values.var() + eps) * gain
            return np.where(gain == 0, 0.0, out)
        case Attention(memory=memory) | LinearAttention(memory=memory) if memory is not None:
            return _varying(memory[0].size // memory.shape[3])
        case Attention(qkv=qkv):
            return constants[qkv][2 * len(constants[qkv]) // 3 :]
        case LinearAttention(qkv=qkv, dim_head=dim_head):
            _, height, width = program.shapes[qkv]
            values = constants[qkv][2 * len(constants[qkv]) // 3 :]
            return values / (height * width * math.sqrt(dim_head))
        case SpaceToDepth(x=x):
            return constants[x].repeat(4)
        case Upsample2x(x=x):
            return constants[x]
        case Concat(a=a, b=b):
            return np.concatenate([constants[a], constants[b]])
        case Add(a=a, b=b):
            return constants[a] + constants[b]


def _norm_act(op: NormAct, x: Constants) -> Constants:
    groups = x.reshape(op.groups, -1)
    deviation = np.sqrt(groups.var(axis=1, keepdims=True) + op.eps)
    y = ((groups - groups.mean(axis=1, keepdims=True)) / deviation).reshape(-1)
    # A gain of 0 hides what the group does.
    y = np.where(op.gamma == 0, 0.0, y) * op.gamma.astype(np.float64) + op.beta
    if op.film is not None:
        return _varying(len(x))
    with np.errstate(over="ignore"):
        return y / (1.0 + np.exp(-y)) if op.silu else y
