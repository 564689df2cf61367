"""What every kernel's wrapper asks of its tensors, and where their numbers lie."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def check_view(
    name: str, value: torch.Tensor, like: torch.Tensor | None = None
) -> tuple[int, int, int, int]:
    """The shape of a view of `layout.Layout`, of ``like``'s shape and dtype if given.

    ValueError if it is none: images innermost, strides multiples of 8, 16-byte aligned.
    """
    if like is not None and (value.shape != like.shape or value.dtype != like.dtype):
        wanted, got = (f"{tuple(t.shape)} of {t.dtype}" for t in (like, value))
        raise ValueError(f"{name}: expected {wanted}, got {got}.")
    if value.ndim != 4:
        raise ValueError(f"{name}: expected [C, H, W, N], got {value.ndim} axes.")
    channels, height, width, images = value.shape
    plane, row, pixel, one = value.stride()
    if images % 8 or one != 1 or pixel != images or row % 8 or plane % 8:
        raise ValueError(
            f"{name}: expected images innermost, in multiples of 8, "
            f"got {tuple(value.shape)} with strides {value.stride()}."
        )
    if value.data_ptr() % 16:
        raise ValueError(f"{name}: expected 16-byte alignment, got {value.data_ptr() % 16}.")
    if channels * plane >= 1 << 31:
        raise ValueError(f"{name}: expected fewer than 2^31 elements, got {channels * plane}.")
    return channels, height, width, images


def check_floats(name: str, value: torch.Tensor, shape: tuple[int, ...]) -> None:
    """ValueError if ``value`` is not contiguous float32 of that shape, 16-byte aligned."""
    if value.dtype != torch.float32 or tuple(value.shape) != shape or not value.is_contiguous():
        raise ValueError(
            f"{name}: expected contiguous float32 {shape}, "
            f"got {value.dtype} {tuple(value.shape)} with strides {value.stride()}."
        )
    if value.data_ptr() % 16:
        raise ValueError(f"{name}: expected 16-byte alignment, got {value.data_ptr() % 16}.")


def check_rows(
    table: torch.Tensor, step: torch.Tensor | None, channels: int, *columns: int
) -> None:
    """ValueError if ``table`` lacks ``channels`` numbers from one of ``columns``, or no step."""
    check_floats("table", table, tuple(table.shape))
    for column in columns:
        if table.ndim != 2 or not 0 <= column <= table.shape[1] - channels:
            raise ValueError(
                f"table: expected {channels} columns from {column}, got {tuple(table.shape)}."
            )
    if step is not None and (step.dtype != torch.int32 or step.numel() != 1):
        raise ValueError(f"step: expected one int32, got {step.numel()} of {step.dtype}.")


@triton.jit
def place(channel, pixel, plane8, row8, images8, WIDTH: tl.constexpr):
    """Elements from a view's first to image 0 of (channel, pixel): a multiple of 8."""
    return (channel * plane8 + pixel // WIDTH * row8 + pixel % WIDTH * images8) * 8
