"""Linear attention fused with the norms and 1x1 convolutions around it.

``residual + norm2(bias + W mix)``, ``mix`` the linear attention of ``q, k, v = W norm1(x)``: five
operations of a Program that the CPU engine runs a block of pixels at a time, so that no normalised
pixel, q, k, v or mix is ever stored whole. Two facts of the weights are used:

* A channel norm returns vectors of mean 0 and length sqrt(C) at most, so a row w of W returns
  numbers of at most ``|w * gain - mean(w * gain)| sqrt(C)``. Where that is small, exponentials
  cannot overflow, and softmax, which no shift changes, needs no maximum.
* Rows that pruning has emptied return 0 for every pixel. A value e whose v is empty, or that W does
  not read, is left out. exp(k[d]) = 1 where k[d] is empty: those d share one row of the context,
  the mean of v. exp(q[d]) = 1 where q[d] is empty: those rows of the context are added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.engine.panels import Panels, choose_group, make_panels
from sparse_ddpm.formats import CSR
from sparse_ddpm.program import ChannelNorm, Conv, LinearAttention, Operation, Program

LINE = 16
"""Floats of a vector of images, and what blocks of pixels are whole multiples of."""

MOST_EXPONENT = 80.0
"""Largest x whose exp(x) may be added up: float32 ends at exp(88.7)."""

BLOCK = 256
"""Floats of one channel in a block, at most: as many as a register tile of G = 1 has."""

SLOT_BYTES = 1 << 20
MOST_CHUNKS = 16
LEAST_CHUNKS = 4
"""An image is cut into LEAST_CHUNKS to MOST_CHUNKS parts that threads may take, as many as have
contexts of SLOT_BYTES together."""


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A 1x1 convolution on a block in scratch: panels whose rows are numbered within their head.

    ``panels.columns`` are rows of scratch; ``heads``: panels of each head; ``entries``: panel
    entries of ``group`` numbers each.
    """

    panels: Panels
    heads: tuple[int, ...]
    bias: NDArray[np.float32]
    """By slot, ``[panels, group]``."""
    group: int
    reason: str
    dense: bool

    @property
    def entries(self) -> int:
        return len(self.panels.columns)


@dataclass(frozen=True, slots=True)
class Head:
    """What is left of a head: rows of q and k with weights, the first ``both`` of the same d.

    ``v``: rows of v with weights that the output convolution reads. ``context``: see engine.h.
    """

    both: int
    q: int
    k: int
    v: int
    context: int

    def rows(self, dim_head: int) -> int:
        """Rows of the context before merging."""
        return self.k + (self.k < dim_head)

    def terms(self, dim_head: int) -> int:
        """Rows of the context after merging."""
        return self.both + (self.q < dim_head) + (self.q > self.both)


@dataclass(frozen=True, slots=True, eq=False)
class LinearBlock:
    """Five operations as one. ``heads``: those that reach the output, without their dead rows.

    ``pixels``: of a block; ``stride``: floats between a block's channels in scratch; ``chunks``:
    parts of an image with a context of their own; ``slot``: numbers of a context; ``floats``: of
    all contexts in the arena; ``bound``: the largest possible \\|q\\| and \\|k\\|.
    """

    norm: ChannelNorm
    qkv: Conv
    mix: LinearAttention
    project: Conv
    out_norm: ChannelNorm
    heads: tuple[Head, ...]
    q: Weight
    k: Weight
    v: Weight
    output: Weight
    pixels: int
    stride: int
    chunks: int
    slot: int
    floats: int
    bound: float

    @property
    def operations(self) -> tuple[Operation, ...]:
        return self.norm, self.qkv, self.mix, self.project, self.out_norm

    @property
    def inside(self) -> frozenset[str]:
        """The values that are never stored."""
        return frozenset(operation.out for operation in self.operations[:-1])

    @property
    def inputs(self) -> tuple[str, ...]:
        residual = self.out_norm.residual
        return (self.norm.x,) if residual in (None, self.norm.x) else (self.norm.x, str(residual))

    @property
    def weights(self) -> tuple[Weight, Weight, Weight, Weight]:
        return self.q, self.k, self.v, self.output

    @property
    def flops_per_pixel(self) -> int:
        """Executed: the convolutions' panels and the products with the context."""
        entries = sum(weight.entries * weight.group for weight in self.weights)
        dim = self.mix.dim_head
        products = sum(head.v * (head.rows(dim) + head.terms(dim)) for head in self.heads)
        return 2 * (entries + products)

    @property
    def reason(self) -> str:
        dim, heads = self.mix.dim_head, self.mix.heads
        live = ", ".join(
            f"{sum(getattr(head, name) for head in self.heads)} of {heads * dim} {name}"
            for name in ("q", "k", "v")
        )
        groups = ", ".join(
            f"{name} {weight.group}{' dense' * weight.dense}"
            for name, weight in zip(("q", "k", "v", "out"), self.weights, strict=True)
        )
        return (
            f"{self.pixels} pixels at a time through five operations; rows in use: {live}; "
            f"|q| and |k| stay below {self.bound:.1f}, so exp needs no maximum; "
            f"G of {groups}"
        )


def fuse(
    program: Program, lanes: int, group: int | None
) -> tuple[Mapping[str, LinearBlock], Mapping[str, str]]:
    """The blocks of ``program`` by the value they make, and why other linear attentions are not.

    The reasons go by the name of the attention's own value.
    """
    blocks: dict[str, LinearBlock] = {}
    reasons: dict[str, str] = {}
    for operation in program.operations:
        if isinstance(operation, LinearAttention):
            reasons[operation.out] = "not fused: its neighbours are not those of a block"
    for out, found in linear_attentions(program).items():
        block = _make_block(program, *found, lanes=lanes, group=group)
        if isinstance(block, str):
            reasons[found[2].out] = block
        else:
            blocks[out] = block
            del reasons[found[2].out]
    return MappingProxyType(blocks), MappingProxyType(reasons)


Five = tuple[ChannelNorm, Conv, LinearAttention, Conv, ChannelNorm]
"""A linear attention with the norms and 1x1 convolutions around it."""


def linear_attentions(program: Program) -> Mapping[str, Five]:
    """Every `Five` of a Program whose values nothing else reads, by the value that it makes."""
    uses = program.uses()
    makers = {operation.out: operation for operation in program.operations}
    found = {op.out: _around(op, makers, uses) for op in program.operations}
    return {out: five for out, five in found.items() if five is not None}


def _around(
    last: Operation, makers: Mapping[str, Operation], uses: Mapping[str, int]
) -> Five | None:
    """The five operations that end in ``last``, each read by the next alone."""

    def maker(name: str) -> Operation | None:
        return makers.get(name) if uses[name] == 1 else None

    if not isinstance(last, ChannelNorm):
        return None
    project = maker(last.x)
    if not isinstance(project, Conv) or project.size != 1 or project.residual is not None:
        return None
    if project.film is not None:
        return None
    mix = maker(project.x)
    if not isinstance(mix, LinearAttention) or mix.memory is not None:
        return None
    qkv = maker(mix.qkv)
    if not isinstance(qkv, Conv) or qkv.size != 1 or qkv.residual is not None:
        return None
    if qkv.film is not None:
        return None
    norm = maker(qkv.x)
    if not isinstance(norm, ChannelNorm) or norm.residual is not None:
        return None
    return norm, qkv, mix, project, last


def _make_block(
    program: Program,
    norm: ChannelNorm,
    qkv: Conv,
    mix: LinearAttention,
    project: Conv,
    out_norm: ChannelNorm,
    *,
    lanes: int,
    group: int | None,
) -> LinearBlock | str:
    """The block, or why it cannot be."""
    if qkv.bias is not None:
        return "not fused: qkv has a bias"
    _, height, width = program.shapes[mix.out]
    hidden, dim = mix.heads * mix.dim_head, mix.dim_head
    weight = (qkv.weight.to_dense() * norm.gain.astype(np.float64)).astype(np.float32)
    bounds = _bounds(weight)
    bound = float(bounds[: 2 * hidden].max())
    most_v = max(1.0, float(bounds[2 * hidden :].max()))
    if bound + math.log(height * width * most_v) > MOST_EXPONENT:
        return f"not fused: |q| or |k| may reach {bound:.1f}, and exp must not overflow"
    out_weight = project.weight.to_dense()
    live = (weight != 0).any(axis=1).reshape(3, mix.heads, dim)
    live[2] &= (out_weight != 0).any(axis=0).reshape(mix.heads, dim)
    heads: list[Head] = []
    rows: tuple[list[NDArray[np.intp]], ...] = ([], [], [])
    slot = 0
    for index, (q, k, v) in enumerate(zip(*live, strict=True)):
        if not v.any():
            continue
        ordered = (
            np.concatenate([np.flatnonzero(q & k), np.flatnonzero(q & ~k)]),
            np.concatenate([np.flatnonzero(q & k), np.flatnonzero(k & ~q)]),
            np.flatnonzero(v),
        )
        for part, (chosen, found) in enumerate(zip(rows, ordered, strict=True)):
            chosen.append(part * hidden + index * dim + found)
        counts = [len(found) for found in ordered]
        heads.append(Head(int((q & k).sum()), counts[0], counts[1], counts[2], slot))
        slot += (counts[1] + 2) * (counts[2] + 1)
    q, k, v = (_weight(weight, chosen, group) for chosen in rows)
    columns = np.concatenate([*(chosen - 2 * hidden for chosen in rows[2]), np.empty(0, np.intp)])
    output = _weight(
        out_weight[:, columns.astype(np.intp)], [np.arange(len(out_weight))], group, project.bias
    )
    pixels, stride, chunks = _cut(height * width, lanes, slot)
    size = LINE * math.ceil(slot / LINE) if lanes == 1 else lanes * slot
    return LinearBlock(
        norm=norm,
        qkv=qkv,
        mix=mix,
        project=project,
        out_norm=out_norm,
        heads=tuple(heads),
        q=q,
        k=k,
        v=v,
        output=output,
        pixels=pixels,
        stride=stride,
        chunks=chunks,
        slot=slot,
        floats=chunks * size,
        bound=bound,
    )


def _bounds(weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest number that each row can return for a vector of mean 0 and length sqrt(C)."""
    rows = weight.astype(np.float64)
    centred = rows - rows.mean(axis=1, keepdims=True)
    bounds: NDArray[np.float64] = np.linalg.norm(centred, axis=1) * math.sqrt(weight.shape[1])
    return bounds


def _weight(
    matrix: NDArray[np.float32],
    heads: Iterable[NDArray[np.intp]],
    group: int | None,
    bias: NDArray[np.float32] | None = None,
) -> Weight:
    """Panels of the given rows, head by head; ``bias`` by row of ``matrix``."""
    parts = [CSR.from_dense(matrix[rows]) for rows in heads]
    rows = np.concatenate([*heads, np.empty(0, np.intp)]).astype(np.intp)
    choice = choose_group(CSR.from_dense(matrix[rows]), group)
    panels = [make_panels(part, choice.group) for part in parts]
    slots = np.concatenate([*(p.rows for p in panels), np.empty((0, choice.group), np.int32)])
    ends = np.cumsum([0, *(len(p.columns) for p in panels)])
    joined = Panels(
        ptr=np.concatenate(
            [[0], *(p.ptr[1:] + end for p, end in zip(panels, ends, strict=False))]
        ).astype(np.int64),
        columns=np.concatenate([*(p.columns for p in panels), np.empty(0, np.int32)]),
        values=np.concatenate([*(p.values for p in panels), np.empty((0, choice.group), "f4")]),
        rows=slots,
    )
    by_slot = np.zeros(slots.shape, np.float32)
    if bias is not None:
        by_slot[slots >= 0] = bias[slots[slots >= 0]]
    counts = tuple(len(p.rows) for p in panels)
    return Weight(joined, counts, by_slot, choice.group, choice.reason, choice.dense)


def _cut(pixels: int, lanes: int, slot: int) -> tuple[int, int, int]:
    """Pixels of a block, floats between its channels, and chunks of the image."""
    if lanes == 1:
        # At least two blocks for two threads, where that leaves each a few vectors.
        block = min(BLOCK, max(4 * LINE, LINE * math.ceil(pixels / (2 * LINE))))
        block = min(block, LINE * math.ceil(pixels / LINE))
        # A chunk is a block: sums over lanes are then taken in registers.
        return block, block, math.ceil(pixels / block)
    block = min(BLOCK // LINE, max(1, math.ceil(pixels / 2)))
    fitting = SLOT_BYTES // max(4 * slot * lanes, 1)
    chunks = min(max(fitting, LEAST_CHUNKS), MOST_CHUNKS, math.ceil(pixels / block))
    return block, LINE * block, chunks
