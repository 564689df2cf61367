"""Channels that nobody reads, taken out of every operation that makes or carries them."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.formats import CSR, Dense, Matrix
from sparse_ddpm.lower.constants import fold_constants
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
    TimeEmbedding,
    Upsample2x,
)

Kept = NDArray[np.bool_]
"""Of one value ``[C]``: which of its channels the new Program has."""


def remove_dead(program: Program) -> Program:
    """`fold_constants`, then `remove_dead_channels`."""
    return remove_dead_channels(fold_constants(program))


def remove_dead_channels(program: Program) -> Program:
    """Leave out every channel, operation and row of the time table that no output depends on.

    A convolution reads the channels that it has a weight other than 0 for; a norm reads all of a
    group, attention all of a head's queries and keys. Channels go where every operation can do
    without them: groups and heads go as a whole, a sum's two sides lose the same, and of four
    channels that SpaceToDepth makes of one all stay or none. Requires nothing. Ensures the same
    output, and that the input image stays as it is. Values that stay keep their names.
    """
    kept = _kept(program)
    if all(keep.all() for keep in kept.values()):
        return program
    films = _Films(program.time)
    names: dict[str, str] = {}
    operations: list[Operation] = []
    for op in program.operations:
        if not kept[op.out].any():
            continue
        if isinstance(op, Concat) and not (kept[op.a].any() and kept[op.b].any()):
            side = op.a if kept[op.a].any() else op.b
            names[op.out] = names.get(side, side)
            continue
        operations.append(_renamed(_cut(op, kept, films), names))
    output = names.get(program.output, program.output)
    return dataclasses.replace(
        program, operations=tuple(operations), output=output, time=films.time()
    )


def _kept(program: Program) -> dict[str, Kept]:
    """The smallest sets of channels that the operations can be cut to."""
    kept = {name: np.zeros(shape[0], dtype=bool) for name, shape in program.shapes.items()}
    kept[program.input][:] = True
    kept[program.output][:] = True
    before = -1
    while (now := sum(int(keep.sum()) for keep in kept.values())) != before:
        before = now
        for op in reversed(program.operations):
            _spread(op, kept)
    return kept


def _spread(op: Operation, kept: dict[str, Kept]) -> None:
    """Keep what ``op`` needs of its inputs, and of its output what it cannot help making."""
    out = kept[op.out]
    match op:
        case Conv(x=x, weight=weight):
            kept[x] |= weight.to_dense()[out].any(axis=0).reshape(len(kept[x]), -1).any(axis=1)
            if out.any() and op.residual is None and not kept[x].any():
                # No weights at all, a bias alone: something must still say how large an image is.
                kept[x][0] = True
        case NormAct(x=x, groups=groups):
            _join(kept, op.out, x)
            of_group = kept[x].reshape(groups, -1)
            kept[x] |= of_group.any(axis=1).repeat(of_group.shape[1])
            _join(kept, op.out, x)
        case ChannelNorm(x=x):
            if out.any() or kept[x].any():
                out[:] = kept[x][:] = True
        case Attention(qkv=x, heads=heads) | LinearAttention(qkv=x, heads=heads):
            live = out.reshape(heads, -1).any(axis=1)
            live |= kept[x].reshape(3, heads, -1).any(axis=(0, 2))
            dim_head = len(out) // heads
            out |= live.repeat(dim_head)
            kept[x] |= np.tile(live.repeat(dim_head), 3)
        case SpaceToDepth(x=x):
            kept[x] |= out.reshape(-1, 4).any(axis=1)
            out |= kept[x].repeat(4)
        case Upsample2x(x=x):
            _join(kept, op.out, x)
        case Concat(a=a, b=b):
            first = len(kept[a])
            kept[a] |= out[:first]
            kept[b] |= out[first:]
            out |= np.concatenate([kept[a], kept[b]])
        case Add(a=a, b=b):
            _join(kept, op.out, a, b)
    if isinstance(op, Conv | NormAct | ChannelNorm) and op.residual is not None:
        _join(kept, op.out, op.residual)


def _join(kept: dict[str, Kept], *names: str) -> None:
    """Make the values keep the same channels."""
    union = np.logical_or.reduce([kept[name] for name in names])
    for name in names:
        kept[name] |= union


def _renamed(op: Operation, names: dict[str, str]) -> Operation:
    """``op``, reading what stands in for values that are gone."""
    changes = {
        field: names[getattr(op, field)]
        for field in ("x", "a", "b", "qkv", "residual")
        if getattr(op, field, None) in names
    }
    return dataclasses.replace(op, **changes)  # type: ignore[arg-type]


def _cut(op: Operation, kept: dict[str, Kept], films: _Films) -> Operation:
    """``op`` on the channels that are left."""
    out = kept[op.out]
    match op:
        case Conv(x=x, size=size, residual=residual):
            columns = kept[x]
            if columns.any():
                weight = _cut_matrix(op.weight, out, columns.repeat(size * size))
            else:
                assert residual is not None
                x, size = residual, 1
                weight = CSR.from_dense(np.zeros((int(out.sum()),) * 2, np.float32))
            bias = None if op.bias is None else op.bias[out]
            film = films.take(op.film, out)
            return dataclasses.replace(op, x=x, weight=weight, size=size, bias=bias, film=film)
        case NormAct(groups=groups, gamma=gamma, beta=beta, film=start):
            return dataclasses.replace(
                op,
                groups=int(out.reshape(groups, -1).any(axis=1).sum()),
                gamma=gamma[out],
                beta=beta[out],
                film=films.take(start, np.concatenate([out, out])),
            )
        case Attention(heads=heads, memory=memory) | LinearAttention(heads=heads, memory=memory):
            live = out.reshape(heads, -1).any(axis=1)
            memory = None if memory is None else memory[:, live]
            return dataclasses.replace(op, heads=int(live.sum()), memory=memory)
        case _:
            # A ChannelNorm keeps all or nothing; the rest hold no numbers.
            return op


def _cut_matrix(matrix: Matrix, rows: Kept, columns: Kept) -> Matrix:
    """Some rows and columns of ``matrix``; blocks that are cut become single weights."""
    if rows.all() and columns.all():
        return matrix
    dense = matrix.to_dense()[rows][:, columns]
    if isinstance(matrix, Dense):
        return Dense.from_dense(dense)
    return CSR.from_dense(dense, matrix.stored()[rows][:, columns])


class _Films:
    """The rows of the time embedding's last map that are still asked for, in a new order."""

    def __init__(self, time: TimeEmbedding) -> None:
        self._time = time
        self._rows: list[NDArray[np.intp]] = []
        self._starts: dict[tuple[int, bytes], int] = {}
        self._count = 0

    def take(self, film: int | None, keep: Kept) -> int | None:
        """Where the kept ones of the rows from ``film`` on begin."""
        if film is None:
            return None
        key = film, keep.tobytes()
        if key not in self._starts:
            self._starts[key] = self._count
            self._rows.append(film + np.flatnonzero(keep))
            self._count += int(keep.sum())
        return self._starts[key]

    def time(self) -> TimeEmbedding:
        """The embedding that makes these rows."""
        # Of a network in which no time is left, the first row: there is no matrix without rows.
        rows = np.concatenate([*self._rows, np.zeros(int(not self._rows), dtype=np.intp)])
        film = self._time.film
        dense = film.to_dense()[rows]
        matrix: Matrix = Dense.from_dense(dense)
        if not isinstance(film, Dense):
            matrix = CSR.from_dense(dense, film.stored()[rows])
        return dataclasses.replace(self._time, film=matrix, film_bias=self._time.film_bias[rows])
