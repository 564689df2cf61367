"""Lowering of the paper's U-Net. Mirrors the forward pass of the torch model, module by module."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.formats import BSR, CSR, Dense, Matrix
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
from sparse_ddpm.program.operations import Vector
from sparse_ddpm.ticket import Pattern, Ticket

STANDARDIZATION_EPS = 1e-5


def moments(
    weight: NDArray[np.float32], mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and ``sqrt(variance + eps)`` of each row over what survives: float64 ``[Cout]``.

    ``weight``: ``[Cout, ...]``, with exact zeros outside ``mask`` (None: all survive).
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    keep = np.ones_like(rows) if mask is None else mask.reshape(rows.shape).astype(np.float64)
    count = np.maximum(keep.sum(axis=1), 1.0)
    mean = rows.sum(axis=1) / count
    variance = np.square((rows - mean[:, None]) * keep).sum(axis=1) / count
    return mean, np.sqrt(variance + STANDARDIZATION_EPS)


def standardize(weight: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Each row to mean 0 and biased variance 1 over its surviving weights; zeros stay zeros.

    ``weight``: ``[Cout, ...]``, with exact zeros outside ``mask`` (None: all survive). Weight
    standardisation (Qiao 2019, arXiv 1903.10520), restricted to the mask; in float64.
    """
    mean, deviation = moments(weight, mask)
    rows = (weight.reshape(len(weight), -1) - mean[:, None]) / deviation[:, None]
    standardized: NDArray[np.float32] = rows.astype(np.float32).reshape(weight.shape)
    return standardized if mask is None else np.where(mask, standardized, np.float32(0.0))


def rank_one(
    weight: NDArray[np.float32], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A weight standardised over all its entries, zeros included, that stays sparse; and its mask.

    With s = sqrt(variance + eps) of an output channel, ``conv(x, (W - mean) / s)`` is
    ``(conv(x, W) - mean box(sum_c x)) / s``. ``weight``: ``[Cout, Cin, 3, 3]``; what is returned
    has one input channel more, which wants ``box(sum_c x)`` and holds ``-mean / s`` in its middle.
    """
    mean, deviation = moments(weight, None)
    cout, cin = weight.shape[:2]
    wide = np.zeros((cout, cin + 1, 3, 3), np.float32)
    wide[:, :cin] = weight / deviation[:, None, None, None]
    wide[:, cin, 1, 1] = -mean / deviation
    keep = np.zeros(wide.shape, bool)
    keep[:, :cin] = mask
    keep[:, cin, 1, 1] = True
    return wide, keep


def lower_unet(ticket: Ticket) -> Program:
    """The Program of a U-Net ticket, value for value what the torch model computes."""
    return _Lowering(ticket).program()


class _Lowering:
    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.config = ticket.architecture
        self.pattern = Pattern.parse(ticket.provenance.pattern)
        self.operations: list[Operation] = []
        self.films: list[str] = []
        self.film_columns = 0

    def program(self) -> Program:
        config = self.config
        levels = len(config.dim_mults)
        first = x = self.conv("init_conv", "x")
        skips: list[str] = []
        for level in range(levels):
            name = f"down.{level}"
            x = self.resnet_block(f"{name}.block1", x)
            skips.append(x)
            x = self.attention(f"{name}.attn", self.resnet_block(f"{name}.block2", x), linear=True)
            skips.append(x)
            if level < levels - 1:
                x = self.emit(SpaceToDepth(f"{name}.space_to_depth", x))
            x = self.conv(f"{name}.down", x)
        x = self.resnet_block("mid.block1", x)
        x = self.attention("mid.attn", x, linear=False)
        x = self.resnet_block("mid.block2", x)
        for stage in range(levels):
            name = f"up.{stage}"
            x = self.emit(Concat(f"{name}.cat1", x, skips.pop()))
            x = self.resnet_block(f"{name}.block1", x)
            x = self.emit(Concat(f"{name}.cat2", x, skips.pop()))
            x = self.resnet_block(f"{name}.block2", x)
            x = self.attention(f"{name}.attn", x, linear=True)
            if stage < levels - 1:
                x = self.emit(Upsample2x(f"{name}.upsample", x))
            x = self.conv(f"{name}.up", x)
        x = self.emit(Concat("final_cat", x, first))
        x = self.resnet_block("final_block", x)
        x = self.conv("final_conv", x)
        return Program(
            operations=tuple(self.operations),
            input="x",
            input_shape=(config.channels, config.image_size, config.image_size),
            output=x,
            time=self.time(),
        )

    def emit(self, operation: Operation) -> str:
        self.operations.append(operation)
        return operation.out

    def parameter(self, name: str) -> Vector:
        return self.ticket.weights[name]

    def matrix(self, weight: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> Matrix:
        """A weight as ``[rows, columns]``, sparse where the ticket has a mask."""
        rows = weight.reshape(len(weight), -1)
        if mask is None:
            return Dense.from_dense(rows)
        keep = mask.reshape(rows.shape)
        if self.pattern.rows == self.pattern.columns == 1 or weight.ndim == 2:
            return CSR.from_dense(rows, keep)
        taps = weight.shape[2] * weight.shape[3]
        return BSR.from_dense(rows, (self.pattern.rows, self.pattern.columns), taps, keep)

    def conv(self, name: str, x: str, *, standardized: str = "none") -> str:
        weight, mask = self.parameter(f"{name}.weight"), self.ticket.masks.get(f"{name}.weight")
        if standardized == "full" and mask is not None:
            x = self.with_box(name, x)
            weight, mask = rank_one(weight, mask)
        elif standardized != "none":
            weight = standardize(weight, mask)
        size, bias = weight.shape[2], self.ticket.weights.get(f"{name}.bias")
        return self.emit(Conv(name, x, self.matrix(weight, mask), size, bias))

    def with_box(self, name: str, x: str) -> str:
        """``x``, and as one more channel the sum over all channels and 3x3 pixels around."""
        channels = self.parameter(f"{name}.weight").shape[1]
        ones = np.ones((1, channels), np.float32)
        total = self.emit(Conv(f"{name}.sum", x, Dense.from_dense(ones), 1))
        ones = np.ones((1, 9), np.float32)
        box = self.emit(Conv(f"{name}.box", total, Dense.from_dense(ones), 3))
        return self.emit(Concat(f"{name}.cat", x, box))

    def resnet_block(self, name: str, x: str) -> str:
        standardized = self.config.weight_standardization
        self.films.append(f"{name}.film")
        film = self.film_columns
        self.film_columns += len(self.parameter(f"{name}.film.bias"))
        h = self.conv(f"{name}.conv1", x, standardized=standardized)
        h = self.norm_act(f"{name}.norm1", h, film)
        h = self.conv(f"{name}.conv2", h, standardized=standardized)
        h = self.norm_act(f"{name}.norm2", h, None)
        if f"{name}.shortcut.weight" in self.ticket.weights:
            x = self.conv(f"{name}.shortcut", x)
        return self.emit(Add(name, h, x))

    def norm_act(self, name: str, x: str, film: int | None) -> str:
        gamma, beta = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return self.emit(NormAct(name, x, self.config.groups, gamma, beta, film))

    def attention(self, name: str, x: str, *, linear: bool) -> str:
        h = self.emit(ChannelNorm(f"{name}.norm", x, self.parameter(f"{name}.norm.gain")))
        h = self.conv(f"{name}.qkv", h)
        mix = LinearAttention if linear else Attention
        h = self.emit(mix(f"{name}.mix", h, self.config.heads, self.config.dim_head))
        h = self.conv(f"{name}.out", h)
        if linear:
            gain = self.parameter(f"{name}.out_norm.gain")
            h = self.emit(ChannelNorm(f"{name}.out_norm", h, gain))
        return self.emit(Add(name, h, x))

    def time(self) -> TimeEmbedding:
        # The FiLM maps of all blocks, one under the other: kept sparse, only a schedule runs them.
        film = np.concatenate([self.parameter(f"{name}.weight") for name in self.films])
        masks = [self.ticket.masks.get(f"{name}.weight") for name in self.films]
        if any(mask is not None for mask in masks):
            keep = np.concatenate(
                [
                    np.ones(self.parameter(f"{name}.weight").shape, bool) if mask is None else mask
                    for name, mask in zip(self.films, masks, strict=True)
                ]
            )
            matrix: Matrix = CSR.from_dense(film, keep)
        else:
            matrix = Dense.from_dense(film)
        return TimeEmbedding(
            dim=self.config.dim,
            weight1=self.parameter("time.linear1.weight"),
            bias1=self.parameter("time.linear1.bias"),
            weight2=self.parameter("time.linear2.weight"),
            bias2=self.parameter("time.linear2.bias"),
            film=matrix,
            film_bias=np.concatenate([self.parameter(f"{name}.bias") for name in self.films]),
        )
