"""One function for each operation of a Program: it adds the nodes and returns the output's name.

Activations are float32 ``[N, C, H, W]`` with N unknown; operators are those of opset 17, which
later ones still have, but for `_channel_mean`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sparse_ddpm.lower.select import selection
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
from sparse_ddpm.program.operations import Vector
from sparse_ddpm.program.program import Shape
from sparse_ddpm_export.graph import Graph
from sparse_ddpm_export.weights import weight_initializer


@dataclass(frozen=True, slots=True)
class Context:
    """What the functions need: the graph, the shapes of values, and ``film``.

    ``film`` gives, for an operation that depends on time, the names of what `film_of` makes:
    tensors that broadcast with ``[N, C, H, W]``.
    """

    graph: Graph
    shapes: Mapping[str, Shape]
    film: Callable[[Conv | NormAct], tuple[str, ...]]


def emit_program(context: Context, program: Program, x: str) -> str:
    """Add all operations, on the tensor ``x``; return the name of the network's output."""
    tensors = {program.input: x}
    for operation in program.operations:
        tensors[operation.out] = emit(context, operation, tensors)
    return tensors[program.output]


def emit(context: Context, operation: Operation, tensors: Mapping[str, str]) -> str:
    """Add ``operation``; ``tensors`` maps the values made so far to names of tensors."""
    graph, out = context.graph, operation.out
    match operation:
        case Conv(bias=bias, residual=str(residual), film=None) if _weightless(operation):
            # What the passes make of a sum with a constant.
            if bias is None:
                return tensors[residual]
            shift = graph.trained(_per_channel(bias), f"{out}.bias")
            return graph.node("Add", tensors[residual], shift, out=out)
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


def _weightless(operation: Conv) -> bool:
    return not operation.weight.to_dense().any()


def _inner(operation: Conv | NormAct | ChannelNorm) -> str:
    """The name of what comes before the residual: the value's own where there is none."""
    return operation.out if operation.residual is None else f"{operation.out}/before_residual"


def _conv(context: Context, operation: Conv, x: str) -> str:
    graph, out, size = context.graph, operation.out, operation.size
    if (channels := selection(operation)) is not None:
        indices = graph.constant(channels, f"{out}.channels")
        return graph.node("Gather", x, indices, out=out, axis=1)
    cin = context.shapes[operation.x][0]
    weight = operation.weight.to_dense().reshape(-1, cin, size, size)
    inputs = [x, weight_initializer(graph, weight, f"{out}.weight")]
    window = {"kernel_shape": [size, size], "pads": [size // 2] * 4}
    if operation.film is not None:
        y = graph.node("Conv", *inputs, out=f"{out}/before_bias", **window)
        return graph.node("Add", y, *context.film(operation), out=_inner(operation))
    if operation.bias is not None:
        inputs.append(graph.trained(operation.bias, f"{out}.bias"))
    return graph.node("Conv", *inputs, out=_inner(operation), **window)


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
    if operation.film is None:
        scale, shift = _affine(graph, operation)
    else:
        scale, shift = context.film(operation)
    y = graph.node("Mul", y, scale, out=f"{out}/scaled")
    y = graph.node("Add", y, shift, out=f"{out}/shifted" if operation.silu else _inner(operation))
    if not operation.silu:
        return y
    gate = graph.node("Sigmoid", y, out=f"{out}/gate")
    return graph.node("Mul", y, gate, out=_inner(operation))


def _affine(graph: Graph, operation: NormAct) -> tuple[str, str]:
    """Scale and shift of a group norm, ``[C, 1, 1]`` each."""
    scale = graph.trained(_per_channel(operation.gamma), f"{operation.out}.weight")
    return scale, graph.trained(_per_channel(operation.beta), f"{operation.out}.bias")


def film_of(graph: Graph, rows: str, operation: Conv | NormAct) -> tuple[str, ...]:
    """What time gives an operation, tensors ``[S, C, 1, 1]`` for S rows of the time table.

    Of a group norm scale and shift, its own and FiLM's in one; of a convolution its bias.
    ``rows``: the tensor ``[S, columns]``.
    """
    out, start = operation.out, operation.film
    assert start is not None

    def columns(first: int, name: str) -> str:
        ends = [graph.integers([n], f"column_{n}") for n in (first, first + channels, 1)]
        part = graph.node("Slice", rows, ends[0], ends[1], ends[2], out=f"{out}/{name}_row")
        return graph.reshape(part, (0, channels, 1, 1), f"{out}/{name}")

    if isinstance(operation, Conv):
        channels = operation.weight.shape[0]
        shift = columns(start, "film_shift")
        if operation.bias is None:
            return (shift,)
        bias = graph.trained(_per_channel(operation.bias), f"{out}.bias")
        return (graph.node("Add", bias, shift, out=f"{out}/shift"),)
    channels = len(operation.gamma)
    gamma, beta = _affine(graph, operation)
    one = graph.scalar(1.0, "one")
    factor = graph.node("Add", columns(start, "film_scale"), one, out=f"{out}/film_factor")
    scale = graph.node("Mul", gamma, factor, out=f"{out}/scale")
    moved = graph.node("Mul", beta, factor, out=f"{out}/film_bias")
    shift = graph.node("Add", moved, columns(start + channels, "film_shift"), out=f"{out}/shift")
    return scale, shift


def _channel_norm(context: Context, operation: ChannelNorm, x: str) -> str:
    graph, out = context.graph, operation.out
    mean = _channel_mean(graph, x, f"{out}/mean")
    centred = graph.node("Sub", x, mean, out=f"{out}/centred")
    squares = graph.node("Mul", centred, centred, out=f"{out}/squares")
    variance = _channel_mean(graph, squares, f"{out}/variance")
    padded = graph.node("Add", variance, graph.scalar(operation.eps, "eps"), out=f"{out}/padded")
    deviation = graph.node("Sqrt", padded, out=f"{out}/deviation")
    y = graph.node("Div", centred, deviation, out=f"{out}/normalized")
    gain = graph.trained(_per_channel(operation.gain), f"{out}.gain")
    return graph.node("Mul", y, gain, out=_inner(operation))


def _channel_mean(graph: Graph, x: str, out: str) -> str:
    # Opset 18 turned the axes from an attribute into an input.
    if graph.form.opset < 18:
        return graph.node("ReduceMean", x, out=out, axes=[1], keepdims=1)
    return graph.node("ReduceMean", x, graph.integers([1], "axis_1"), out=out, keepdims=1)


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
    sizes = graph.integers([operation.heads * operation.dim_head] * 3, f"{out}/sizes")
    parts = graph.nodes_out("Split", [x, sizes], [f"{name}_image" for name in names], axis=1)
    shape = (0, operation.heads, operation.dim_head, -1)
    heads = [graph.reshape(part, shape, name) for part, name in zip(parts, names, strict=True)]
    if operation.memory is None:
        return heads
    # The memory has no batch: a slice of what it is laid beside, times 0, gives it one.
    bounds = [graph.integers([n], f"at_{n}") for n in (0, 1)]
    one = graph.node("Slice", heads[0], *bounds, graph.integers([3], "axis_3"), out=f"{out}/one")
    nothing = graph.node("Mul", one, graph.scalar(0.0, "nothing"), out=f"{out}/nothing")
    for index, part in ((1, "k"), (2, "v")):
        kept = graph.constant(operation.memory[index - 1 : index], f"{out}/memory_{part}")
        wide = graph.node("Add", nothing, kept, out=f"{out}/memory_{part}_wide")
        heads[index] = graph.node("Concat", wide, heads[index], out=f"{out}/{part}_all", axis=3)
    return heads


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
