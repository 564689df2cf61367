"""The Program: operations in order, the shapes of their values, and the time embedding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sparse_ddpm.errors import ProgramError, expected
from sparse_ddpm.program.operations import (
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
    inputs_of,
)
from sparse_ddpm.program.time_table import TimeEmbedding

Shape = tuple[int, int, int]
"""Channels, height, width of one image's activation."""


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """``output = operations(input, row of the time table)``.

    ``shapes`` is derived: the `Shape` of every value by name, in the order they are made.
    Raises `ProgramError` when a value is read before it is made or made twice, or when any shape
    disagrees; the message names the operation.
    """

    operations: tuple[Operation, ...]
    input: str
    input_shape: Shape
    output: str
    time: TimeEmbedding
    shapes: Mapping[str, Shape] = field(init=False)

    def __post_init__(self) -> None:
        shapes: dict[str, Shape] = {self.input: self.input_shape}
        for operation in self.operations:
            for name in inputs_of(operation):
                if name not in shapes:
                    raise ProgramError(
                        expected(f"input of {operation.out}", "a value made earlier", repr(name))
                    )
            if operation.out in shapes:
                raise ProgramError(expected(f"value {operation.out}", "made once", "made twice"))
            shapes[operation.out] = _shape(operation, shapes, self.time.columns)
        if self.output not in shapes:
            raise ProgramError(expected("program output", "a value made", repr(self.output)))
        object.__setattr__(self, "shapes", MappingProxyType(shapes))

    def uses(self) -> Counter[str]:
        """How often each value is read; the output once more, by whoever runs the Program."""
        read = Counter(name for operation in self.operations for name in inputs_of(operation))
        read[self.output] += 1
        return read


def _shape(operation: Operation, shapes: Mapping[str, Shape], film_columns: int) -> Shape:
    """The shape of what ``operation`` makes, its own consistency checked."""

    def require(good: bool, part: str, wanted: object, got: object) -> None:
        if not good:
            raise ProgramError(expected(f"{operation.out}: {part}", wanted, got))

    channels, height, width = shapes[inputs_of(operation)[0]]
    result: Shape
    match operation:
        case Conv(weight=weight, size=size, bias=bias, film=film):
            require(size % 2 == 1, "size", "an odd number", size)
            columns = channels * size * size
            require(weight.shape[1] == columns, "weight columns", columns, weight.shape[1])
            result = (weight.shape[0], height, width)
            good = bias is None or bias.shape == (result[0],)
            require(good, "bias", (result[0],), None if bias is None else bias.shape)
            good = film is None or 0 <= film <= film_columns - result[0]
            require(good, "film", f"0 to {film_columns - result[0]}", film)
        case NormAct(groups=groups, gamma=gamma, beta=beta, film=film):
            require(
                groups > 0 and channels % groups == 0, "groups", f"divisor of {channels}", groups
            )
            require(gamma.shape == (channels,), "gamma", (channels,), gamma.shape)
            require(beta.shape == (channels,), "beta", (channels,), beta.shape)
            good = film is None or 0 <= film <= film_columns - 2 * channels
            require(good, "film", f"0 to {film_columns - 2 * channels}", film)
            result = (channels, height, width)
        case ChannelNorm(gain=gain):
            require(gain.shape == (channels,), "gain", (channels,), gain.shape)
            result = (channels, height, width)
        case (
            Attention(heads=heads, dim_head=dim_head, memory=memory)
            | LinearAttention(heads=heads, dim_head=dim_head, memory=memory)
        ):
            hidden = heads * dim_head
            require(channels == 3 * hidden, "channels of qkv", 3 * hidden, channels)
            good = memory is None or (memory.ndim == 4 and memory.shape[:3] == (2, heads, dim_head))
            found = None if memory is None else memory.shape
            require(good, "memory", (2, heads, dim_head, "M"), found)
            result = (hidden, height, width)
        case SpaceToDepth():
            require(height % 2 == 0 and width % 2 == 0, "image", "even sides", (height, width))
            result = (4 * channels, height // 2, width // 2)
        case Upsample2x():
            result = (channels, 2 * height, 2 * width)
        case Concat(b=b):
            require(shapes[b][1:] == (height, width), "image of b", (height, width), shapes[b][1:])
            result = (channels + shapes[b][0], height, width)
        case Add(b=b):
            require(
                shapes[b] == (channels, height, width), "b", (channels, height, width), shapes[b]
            )
            result = (channels, height, width)
    if isinstance(operation, Conv | NormAct | ChannelNorm) and operation.residual is not None:
        require(
            shapes[operation.residual] == result, "residual", result, shapes[operation.residual]
        )
    return result
