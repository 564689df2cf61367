"""Softmax attention over the pixels of an image (Vaswani 2017, arXiv 1706.03762).

Images lie innermost, so a tile of 8 images is turned into 8 small matrices, one batched product
for all. A program makes some queries of one head; keys come a tile at a time, with the running
maximum and sum of Milakov & Gimelshein 2018 (arXiv 1805.02867).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sparse_ddpm_kernels.triton.layout import IMAGES, MOST_DIM
from sparse_ddpm_kernels.triton.views import check_view, place


@dataclass(frozen=True, slots=True)
class AttentionTiles:
    """A program makes ``queries`` queries of 8 images from ``keys`` keys at a time."""

    queries: int
    keys: int
    warps: int = 8
    stages: int = 2

    def __post_init__(self) -> None:
        powers = self.queries, self.keys, self.warps
        if any(n & (n - 1) for n in powers) or min(self.queries, self.keys) < 16:
            raise ValueError(
                f"attention tiles: expected powers of two and 16 or more pixels, got {self}."
            )


def choose_attention_tiles(pixels: int, dim_head: int) -> AttentionTiles:
    """Scores, and sums of the queries: 64 numbers a thread at most, of 4 or 8 warps."""
    power = max(16, 1 << max(pixels - 1, 0).bit_length())
    queries = min(power, 32 if dim_head <= 64 else 16)
    keys = min(power, 64 if dim_head <= 64 else 32)
    wide = queries * max(keys, padded_dim(dim_head)) > 1024
    return AttentionTiles(queries, keys, warps=8 if wide else 4)


def attention(
    qkv: torch.Tensor,
    out: torch.Tensor,
    *,
    heads: int,
    dim_head: int,
    tiles: AttentionTiles | None = None,
) -> None:
    """``out[d, i] = sum_j softmax_j(q[:, i] . k[:, j] / sqrt(dim_head)) v[d, j]``, per head.

    qkv: ``[3 * heads * dim_head, H, W, N]``: q, then k, then v, head by head. out:
    ``[heads * dim_head, H, W, N]``. Both: views of `layout.Layout` (any halo) of one dtype, 16-byte
    aligned, that share no memory. ``dim_head``: 128 at most.
    """
    height, width, images = check_qkv(qkv, out, heads, dim_head)
    pixels = height * width
    tiles = tiles or choose_attention_tiles(pixels, dim_head)
    _attention[images // IMAGES * -(-pixels // tiles.queries), heads](
        qkv,
        out,
        images // 8,
        qkv.stride(0) // 8,
        qkv.stride(1) // 8,
        out.stride(0) // 8,
        out.stride(1) // 8,
        math.log2(math.e) / math.sqrt(dim_head),
        heads,
        dim_head,
        padded_dim(dim_head),
        width,
        pixels,
        tiles.queries,
        tiles.keys,
        IMAGES,
        precision(qkv),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        enable_fp_fusion=True,
    )


def attention_reference(qkv: torch.Tensor, *, heads: int, dim_head: int) -> torch.Tensor:
    """What `attention` computes, in qkv's dtype."""
    _, height, width, images = qkv.shape
    q, k, v = qkv.reshape(3, heads, dim_head, height * width, images)
    scores = torch.einsum("hdin,hdjn->hnij", q, k) / math.sqrt(dim_head)
    out = torch.einsum("hnij,hdjn->hdin", scores.softmax(-1), v)
    return out.reshape(heads * dim_head, height, width, images)


def check_qkv(
    qkv: torch.Tensor, out: torch.Tensor, heads: int, dim_head: int
) -> tuple[int, int, int]:
    """Height, width and images of ``qkv``; ValueError if it and ``out`` do not fit."""
    channels, height, width, images = check_view("qkv", qkv)
    if not 1 <= dim_head <= MOST_DIM:
        raise ValueError(f"dim_head: expected 1 to {MOST_DIM}, got {dim_head}.")
    if channels != 3 * heads * dim_head:
        raise ValueError(f"qkv: expected {3 * heads * dim_head} channels, got {channels}.")
    check_view("out", out, qkv[: heads * dim_head])
    return height, width, images


def padded_dim(dim_head: int) -> int:
    """What a matrix product is made of: a power of two, 16 or more."""
    return max(16, 1 << max(dim_head - 1, 0).bit_length())


def precision(value: torch.Tensor) -> str:
    """Of `tl.dot`: float32 is for tests, and TF32 would not pass them."""
    return "ieee" if value.dtype == torch.float32 else "tf32"


@triton.jit
def place_heads(channel, pixel, image, plane8, row8, images8, WIDTH: tl.constexpr):
    """Elements from a view's first to those of ``[channels, pixels, images]``."""
    at = place(channel[:, None], pixel[None, :], plane8, row8, images8, WIDTH)
    return at[:, :, None] + image[None, None, :]


@triton.jit
def load_heads(
    base,
    channel,
    pixel,
    image,
    plane8,
    row8,
    images8,
    inside,
    WIDTH: tl.constexpr,
    ALL: tl.constexpr,
):
    """``[channels, pixels, images]``; zeros outside ``inside`` [channels, pixels] if not ALL."""
    at = base + place_heads(channel, pixel, image, plane8, row8, images8, WIDTH)
    return tl.load(at) if ALL else tl.load(at, mask=inside[:, :, None], other=0.0)


@triton.jit(
    do_not_specialize=("images8", "plane8", "row8", "out_plane8", "out_row8"),
)
def _attention(
    qkv,
    out,
    images8,
    plane8,
    row8,
    out_plane8,
    out_row8,
    scale,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    NB: tl.constexpr,
    PRECISION: tl.constexpr,
):
    columns = images8 * 8 // NB
    image = tl.program_id(0) % columns * NB + tl.arange(0, NB)
    image = tl.max_contiguous(tl.multiple_of(image, 8), 8)
    query = tl.program_id(0) // columns * QUERIES + tl.arange(0, QUERIES)
    channel = tl.program_id(1) * DIM + tl.arange(0, PADDED)
    known = (tl.arange(0, PADDED) < DIM)[:, None]
    asked = known & (query < COUNT)[None, :]
    all_queries: tl.constexpr = COUNT % QUERIES == 0 and DIM == PADDED
    all_keys: tl.constexpr = COUNT % KEYS == 0 and DIM == PADDED
    q = load_heads(qkv, channel, query, image, plane8, row8, images8, asked, WIDTH, all_queries)
    q = tl.permute(q, (2, 1, 0))
    most = tl.full([NB, QUERIES], float("-inf"), dtype=tl.float32)
    total = tl.zeros([NB, QUERIES], dtype=tl.float32)
    mixed = tl.zeros([NB, QUERIES, PADDED], dtype=tl.float32)
    for begin in range(0, COUNT, KEYS):
        key = begin + tl.arange(0, KEYS)
        inside = known & (key < COUNT)[None, :]
        k_channel = HEADS * DIM + channel
        k = load_heads(qkv, k_channel, key, image, plane8, row8, images8, inside, WIDTH, all_keys)
        v_channel = 2 * HEADS * DIM + channel
        v = load_heads(qkv, v_channel, key, image, plane8, row8, images8, inside, WIDTH, all_keys)
        scores = tl.dot(q, tl.permute(k, (2, 0, 1)), input_precision=PRECISION) * scale
        if COUNT % KEYS != 0:
            scores = tl.where((key < COUNT)[None, None, :], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, axis=2))
        powers = tl.exp2(scores - higher[:, :, None])
        shrink = tl.exp2(most - higher)
        total = total * shrink + tl.sum(powers, axis=2)
        mixed = mixed * shrink[:, :, None]
        powers = powers.to(qkv.dtype.element_ty)
        mixed = tl.dot(powers, tl.permute(v, (2, 1, 0)), mixed, input_precision=PRECISION)
        most = higher
    mixed = tl.permute((mixed / total[:, :, None]).to(out.dtype.element_ty), (2, 1, 0))
    at = out + place_heads(channel, query, image, out_plane8, out_row8, images8, WIDTH)
    if all_queries:
        tl.store(at, mixed)
    else:
        tl.store(at, mixed, mask=asked[:, :, None])
