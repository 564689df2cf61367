"""One function for each operation of a Program: it adds the nodes and returns the output's name.

Activations are float32 ``[N, C, H, W]`` with N unknown; operators are those of opset 17.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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
from sparse_ddpm.program.operations import Vector
from sparse_ddpm.program.program import Shape
from sparse_ddpm_export.graph import Graph
from sparse_ddpm_export.packing import weight_initializer


@dataclass(frozen=True, slots=True)
class Context:
    """What the functions need: the graph, shapes of values, the tensor ``film`` [N, columns]."""

    graph: Graph
    shapes: Mapping[str, Shape]
    film: str
    packed: bool


def emit(context: Context, operation: Operation, tensors: Mapping[str, str]) -> str:
    """Add ``operation``; ``tensors`` maps the values made so far to names of tensors."""
    graph, out = context.graph, operation.out
    match operation:
        case Conv(x=x):
            y = _conv(context, operation, tensors[x])
        case NormAct(x=x):
            y = _norm_act(context, operation, tensors[x])
        case ChannelNorm(x=x):
            y = _channel_norm(context, operation, tensors[x])
        case Attention(qkv=qkv):
            return _attention(context, operation, tensors[qkv])
        case LinearAttention(qkv=qkv):
            return _linear_attention(context, operation, tensors[qkv])
        case SpaceToDepth(x=x):
            return _space_to_depth(context, operation, tensors[x])
        case Upsample2x(x=x):
            return _upsample(context, operation, tensors[x])
        case Concat(a=a, b=b):
            return graph.node("Concat", tensors[a], tensors[b], out=out, axis=1)
        case Add(a=a, b=b):
            return graph.node("Add", tensors[a], tensors[b], out=out)
    if operation.residual is None:
        return y
    return graph.node("Add", y, tensors[operation.residual], out=out)


def _inner(operation: Conv | NormAct | ChannelNorm) -> str:
    """The name of what comes before the residual: the value's own where there is none."""
    return operation.out if operation.residual is None else f"{operation.out}/before_residual"


def _conv(context: Context, operation: Conv, x: str) -> str:
    graph, out, size = context.graph, operation.out, operation.size
    cin = context.shapes[operation.x][0]
    weight = operation.weight.to_dense().reshape(-1, cin, size, size)
    inputs = [x, weight_initializer(graph, weight, f"{out}.weight", packed=context.packed)]
    if operation.bias is not None:
        inputs.append(graph.constant(operation.bias, f"{out}.bias"))
    return graph.node(
        "Conv", *inputs, out=_inner(operation), kernel_shape=[size, size], pads=[size // 2] * 4
    )


def _norm_act(context: Context, operation: NormAct, x: str) -> str:
    graph, out = context.graph, operation.out
    # Group norm is instance norm of [N, groups, the rest]: GroupNormalization came later (and was
    # put right only in opset 21).
    groups = graph.reshape(x, (0, operation.groups, -1), f"{out}/groups")
    ones = np.ones(operation.groups, dtype=np.float32)
    y = graph.node(
        "InstanceNormalization",
        groups,
        graph.constant(ones, f"ones_{operation.groups}"),
        graph.constant(0 * ones, f"zeros_{operation.groups}"),
        out=f"{out}/normalized_groups",
        epsilon=operation.eps,
    )
    y = graph.reshape(y, (0, *context.shapes[out]), f"{out}/normalized")
    scale = graph.constant(_per_channel(operation.gamma), f"{out}.weight")
    shift = graph.constant(_per_channel(operation.beta), f"{out}.bias")
    if operation.film is not None:
        scale, shift = _film(context, operation, scale, shift)
    y = graph.node("Mul", y, scale, out=f"{out}/scaled")
    y = graph.node("Add", y, shift, out=f"{out}/shifted" if operation.silu else _inner(operation))
    if not operation.silu:
        return y
    gate = graph.node("Sigmoid", y, out=f"{out}/gate")
    return graph.node("Mul", y, gate, out=_inner(operation))


def _film(context: Context, operation: NormAct, gamma: str, beta: str) -> tuple[str, str]:
    """Affine and FiLM as one scale and one shift ``[N, C, 1, 1]``: pixels are touched only once."""
    graph, out, start = context.graph, operation.out, operation.film
    assert start is not None
    channels = context.shapes[out][0]

    def columns(first: int, name: str) -> str:
        ends = [graph.integers([n], f"column_{n}") for n in (first, first + channels, 1)]
        part = graph.node("Slice", context.film, ends[0], ends[1], ends[2], out=f"{out}/{name}_row")
        return graph.reshape(part, (0, channels, 1, 1), f"{out}/{name}")

    one = graph.scalar(1.0, "one")
    factor = graph.node("Add", columns(start, "film_scale"), one, out=f"{out}/film_factor")
    scale = graph.node("Mul", gamma, factor, out=f"{out}/scale")
    moved = graph.node("Mul", beta, factor, out=f"{out}/film_bias")
    shift = graph.node("Add", moved, columns(start + channels, "film_shift"), out=f"{out}/shift")
    return scale, shift


def _channel_norm(context: Context, operation: ChannelNorm, x: str) -> str:
    graph, out = context.graph, operation.out
    mean = graph.node("ReduceMean", x, out=f"{out}/mean", axes=[1], keepdims=1)
    centred = graph.node("Sub", x, mean, out=f"{out}/centred")
    squares = graph.node("Mul", centred, centred, out=f"{out}/squares")
    variance = graph.node("ReduceMean", squares, out=f"{out}/variance", axes=[1], keepdims=1)
    padded = graph.node("Add", variance, graph.scalar(operation.eps, "eps"), out=f"{out}/padded")
    deviation = graph.node("Sqrt", padded, out=f"{out}/deviation")
    y = graph.node("Div", centred, deviation, out=f"{out}/normalized")
    gain = graph.constant(_per_channel(operation.gain), f"{out}.gain")
    return graph.node("Mul", y, gain, out=_inner(operation))


def _attention(context: Context, operation: Attention, x: str) -> str:
    graph, out = context.graph, operation.out
    q, k, v = _heads(context, operation, x)
    scale = graph.scalar(1.0 / math.sqrt(operation.dim_head), f"scale_{operation.dim_head}")
    q = graph.node("Mul", q, scale, out=f"{out}/q_scaled")
    k = graph.node("Transpose", k, out=f"{out}/k_transposed", perm=[0, 1, 3, 2])
    # [key j, query i]: then the values need no transposition.
    logits = graph.node("MatMul", k, q, out=f"{out}/logits")
    weights = graph.node("Softmax", logits, out=f"{out}/weights", axis=2)
    mixed = graph.node("MatMul", v, weights, out=f"{out}/mixed")
    return graph.reshape(mixed, (0, *context.shapes[out]), out)


def _linear_attention(context: Context, operation: LinearAttention, x: str) -> str:
    graph, out = context.graph, operation.out
    _, height, width = context.shapes[out]
    q, k, v = _heads(context, operation, x)
    q = graph.node("Softmax", q, out=f"{out}/q_softmax", axis=2)
    k = graph.node("Softmax", k, out=f"{out}/k_softmax", axis=3)
    k = graph.node("Transpose", k, out=f"{out}/k_transposed", perm=[0, 1, 3, 2])
    summed = graph.node("MatMul", v, k, out=f"{out}/summed")
    # Both scales at once, on the small [e, d] matrix.
    scale = 1.0 / (math.sqrt(operation.dim_head) * height * width)
    name = graph.scalar(scale, f"scale_{operation.dim_head}_{height}_{width}")
    summed = graph.node("Mul", summed, name, out=f"{out}/context")
    mixed = graph.node("MatMul", summed, q, out=f"{out}/mixed")
    return graph.reshape(mixed, (0, *context.shapes[out]), out)


def _heads(context: Context, operation: Attention | LinearAttention, x: str) -> list[str]:
    """q, k and v, each ``[N, heads, dim_head, H * W]``."""
    graph, out = context.graph, operation.out
    names = [f"{out}/{part}" for part in "qkv"]
    parts = graph.nodes_out("Split", [x], [f"{name}_image" for name in names], axis=1)
    shape = (0, operation.heads, operation.dim_head, -1)
    return [graph.reshape(part, shape, name) for part, name in zip(parts, names, strict=True)]


def _space_to_depth(context: Context, operation: SpaceToDepth, x: str) -> str:
    # ONNX's own SpaceToDepth orders the channels otherwise.
    graph, out = context.graph, operation.out
    channels, height, width = context.shapes[operation.x]
    tiles = graph.reshape(x, (0, channels, height // 2, 2, width // 2, 2), f"{out}/tiles")
    moved = graph.node("Transpose", tiles, out=f"{out}/moved", perm=[0, 1, 3, 5, 2, 4])
    return graph.reshape(moved, (0, *context.shapes[out]), out)


def _upsample(context: Context, operation: Upsample2x, x: str) -> str:
    graph = context.graph
    scales = graph.constant(np.array([1, 1, 2, 2], dtype=np.float32), "scales_2x")
    return graph.node(
        "Resize",
        x,
        "",
        scales,
        out=operation.out,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _per_channel(vector: Vector) -> Vector:
    return vector[:, None, None]
