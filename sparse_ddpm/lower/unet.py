"""Lowering of the paper's U-Net. Mirrors the forward pass of the torch model, module by module."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ProgramError, expected
from sparse_ddpm.formats import CSR, Dense, Matrix
from sparse_ddpm.lower.builder import Builder
from sparse_ddpm.program import (
    Add,
    Attention,
    ChannelNorm,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    Program,
    SpaceToDepth,
    TimeEmbedding,
    Upsample2x,
)
from sparse_ddpm.program.operations import Vector
from sparse_ddpm.ticket import Ticket, UNetConfig

STANDARDIZATION_EPS = 1e-5
ROOT_EPS = 1e-24
"""Below any mean square: where a norm has no eps of its own."""


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
    """The Program of a U-Net ticket, value for value what the torch model computes.

    Raises `ProgramError` for another architecture's.
    """
    config = ticket.architecture
    if not isinstance(config, UNetConfig):
        raise ProgramError(expected("architecture", "UNetConfig", type(config).__name__))
    return _Lowering(ticket, config).program()


class _Lowering(Builder):
    def __init__(self, ticket: Ticket, config: UNetConfig) -> None:
        super().__init__(ticket)
        self.config = config
        self.film_rows: list[NDArray[np.int64]] = []

    def program(self) -> Program:
        config = self.config
        levels = len(config.dim_mults)
        first = x = self.conv("init_conv", "x")
        skips: list[str] = []
        for level in range(levels):
            name = f"down.{level}"
            x = self.resnet_block(f"{name}.block1", x)
            skips.append(x)
            x = self.resnet_block(f"{name}.block2", x)
            x = self.attention(f"{name}.attn", x, level)
            skips.append(x)
            if level < levels - 1:
                x = self.emit(SpaceToDepth(f"{name}.space_to_depth", x))
            x = self.conv(f"{name}.down", x)
        x = self.resnet_block("mid.block1", x)
        x = self.attention("mid.attn", x, None)
        x = self.resnet_block("mid.block2", x)
        for stage in range(levels):
            name = f"up.{stage}"
            x = self.emit(Concat(f"{name}.cat1", x, skips.pop()))
            x = self.resnet_block(f"{name}.block1", x)
            x = self.emit(Concat(f"{name}.cat2", x, skips.pop()))
            x = self.resnet_block(f"{name}.block2", x)
            x = self.attention(f"{name}.attn", x, levels - 1 - stage)
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

    def conv(self, name: str, x: str, *, standardized: str = "none", values: int = 1) -> str:
        """A convolution. ``values``: a factor of the last third of its output, of which v is."""
        weight, mask = self.parameter(f"{name}.weight"), self.mask(f"{name}.weight")
        if values != 1:
            third = len(weight) // 3
            weight = np.concatenate([weight[: 2 * third], weight[2 * third :] * np.float32(values)])
        if standardized == "full" and mask is not None:
            x = self.with_box(name, x)
            weight, mask = rank_one(weight, mask)
        elif standardized != "none":
            weight = standardize(weight, mask)
        size, bias = weight.shape[2], self.ticket.weights.get(f"{name}.bias")
        out = name if values == 1 else f"{name}.summed"
        return self.emit(Conv(out, x, self.matrix(weight, mask), size, bias))

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
        film = self.film(f"{name}.film")
        h = self.conv(f"{name}.conv1", x, standardized=standardized)
        h = self.norm_act(f"{name}.norm1", h, film)
        h = self.conv(f"{name}.conv2", h, standardized=standardized)
        h = self.norm_act(f"{name}.norm2", h, None)
        if f"{name}.shortcut.weight" in self.ticket.weights:
            x = self.conv(f"{name}.shortcut", x)
        return self.emit(Add(name, h, x))

    def norm_act(self, name: str, x: str, film: int | None) -> str:
        if self.config.block_norm == "rms":
            return self.root_norm_act(name, x, film)
        gamma, beta = self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias")
        return self.emit(NormAct(name, x, self.config.groups, gamma, beta, film))

    def attention(self, name: str, x: str, level: int | None) -> str:
        """Attention of a level, or of the middle, where it is softmax in any case."""
        config = self.config
        memory = self.ticket.weights.get(f"{name}.memory")
        h = self.norm(f"{name}.norm", x)
        if level is None or level in config.full_attention:
            h = self.conv(f"{name}.qkv", h)
            h = self.emit(Attention(f"{name}.mix", h, config.heads, config.dim_head, memory))
            h = self.conv(f"{name}.out", h)
        else:
            pixels = (config.image_size >> level) ** 2
            factor = pixels if config.attention_values == "sum" else 1
            if memory is not None:
                memory = memory * np.array([1, factor], np.float32)[:, None, None, None]
            h = self.conv(f"{name}.qkv", h, values=factor)
            mix = LinearAttention(f"{name}.mix", h, config.heads, config.dim_head, memory)
            h = self.emit(mix)
            h = self.norm(f"{name}.out_norm", self.conv(f"{name}.out", h))
        return self.emit(Add(name, h, x))

    def norm(self, name: str, x: str) -> str:
        """The norm before or after attention."""
        gain = self.parameter(f"{name}.gain")
        if self.config.attention_norm == "layer":
            return self.emit(ChannelNorm(name, x, gain))
        both = self.both_signs(name, x, len(gain))
        wide = np.concatenate([gain, np.zeros_like(gain)])
        h = self.emit(ChannelNorm(f"{name}.wide", both, wide, ROOT_EPS))
        return self.first_half(name, h, len(gain))

    def root_norm_act(self, name: str, x: str, film: int | None) -> str:
        """Over the root of the mean square, FiLM and SiLU.

        Of x beside -x the mean over channels is 0 and the variance x's mean square. Each pixel
        brought to variance 1, so is the image, and a group norm of it all changes nothing more.
        """
        gain = self.parameter(f"{name}.gain")
        wide = np.concatenate([gain, np.zeros_like(gain)])
        both = self.both_signs(name, x, len(gain))
        h = self.emit(ChannelNorm(f"{name}.root", both, np.ones_like(wide), ROOT_EPS))
        h = self.emit(NormAct(f"{name}.wide", h, 1, wide, np.zeros_like(wide), film, eps=ROOT_EPS))
        return self.first_half(name, h, len(gain))

    def both_signs(self, name: str, x: str, channels: int) -> str:
        """``x``, and -x after it."""
        minus = CSR.from_dense(-np.eye(channels, dtype=np.float32))
        return self.emit(Concat(f"{name}.both", x, self.emit(Conv(f"{name}.minus", x, minus, 1))))

    def first_half(self, name: str, x: str, channels: int) -> str:
        """The first ``channels`` of twice as many."""
        half = CSR.from_dense(np.eye(channels, 2 * channels, dtype=np.float32))
        return self.emit(Conv(name, x, half, 1))

    def film(self, name: str) -> int:
        """As `Builder.film`; of a norm of both signs the second half has scale and shift 0."""
        first = super().film(name)
        columns = len(self.parameter(f"{name}.bias"))
        if self.config.block_norm == "group":
            return first
        nothing = np.full(columns // 2, -1)
        scale, shift = np.split(np.arange(first, first + columns), 2)
        self.film_rows.append(np.concatenate([scale, nothing, shift, nothing]))
        return 2 * first

    def film_maps(self) -> tuple[Matrix, Vector]:
        """As `Builder.film_maps`, with the zeros that `film` put in."""
        film, bias = super().film_maps()
        if not self.film_rows:
            return film, bias
        rows = np.concatenate(self.film_rows)
        taken = np.where(rows[:, None] < 0, np.float32(0.0), film.to_dense()[rows])
        maps = Dense.from_dense(taken) if isinstance(film, Dense) else CSR.from_dense(taken)
        return maps, np.where(rows < 0, np.float32(0.0), bias[rows])

    def time(self) -> TimeEmbedding:
        film, film_bias = self.film_maps()
        return TimeEmbedding(
            dim=self.config.dim,
            weight1=self.parameter("time.linear1.weight"),
            bias1=self.parameter("time.linear1.bias"),
            weight2=self.parameter("time.linear2.weight"),
            bias2=self.parameter("time.linear2.bias"),
            film=film,
            film_bias=film_bias,
        )
