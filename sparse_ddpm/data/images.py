"""A set of images in memory, and the conversions between sizes and channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sparse_ddpm.errors import ConfigError, DataError, expected

MAX_BYTES = 32 * 2**30
"""No set of images may claim more memory than this: they all stay in memory."""

_CHUNK = 4_096  # images converted at a time, so that a conversion never doubles the memory


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """``images`` uint8 ``[N, H, W, C]`` with C 1 or 3, ``labels`` int64 ``[N]`` or None, a name.

    The name is that of the data set (``mnist``, or a folder's own name), never a whole path.
    Raises `DataError` if the arrays are of another kind or disagree with each other.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    name: str

    def __post_init__(self) -> None:
        images: Any = self.images
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(expected(f"{self.name}: images", "uint8 [N, H, W, C]", _kind(images)))
        if 0 in images.shape or images.shape[3] not in (1, 3):
            wanted = "at least one image of 1 or 3 channels"
            raise DataError(expected(f"{self.name}: images", wanted, _kind(images)))
        labels: Any = self.labels
        if labels is not None and (
            not isinstance(labels, np.ndarray)
            or labels.dtype != np.int64
            or labels.shape != images.shape[:1]
        ):
            wanted = f"int64 [{len(images)}], one label per image"
            raise DataError(expected(f"{self.name}: labels", wanted, _kind(labels)))

    def __len__(self) -> int:
        return len(self.images)


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__


def convert(
    images: NDArray[np.uint8], image_size: int | None = None, channels: int | None = None
) -> NDArray[np.uint8]:
    """Bring uint8 ``[N, H, W, C]`` to ``[N, image_size, image_size, channels]``; None keeps.

    28x28 images go to 32x32 by zero padding and to 16x16 by padding and then averaging blocks of
    2x2, rounded half up; other sizes by Lanczos resampling of the central square.
    """
    if channels is not None and channels != images.shape[3]:
        images = to_channels(images, channels)
    height, width = images.shape[1:3]
    if image_size is None or (height == width == image_size):
        return images
    if height == width == 28 and image_size in (16, 32):
        images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
        return images if image_size == 32 else halve(images)
    check_bytes(len(images), image_size, image_size, images.shape[3])
    out = np.empty((len(images), image_size, image_size, images.shape[3]), dtype=np.uint8)
    for target, source in zip(out, images, strict=True):
        picture = Image.fromarray(source[:, :, 0] if source.shape[2] == 1 else source)
        target[...] = pixels(square(picture, image_size))
    return out


def halve(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average blocks of 2x2 pixels, rounded half up: ``[N, 2H, 2W, C]`` to ``[N, H, W, C]``."""
    n, height, width, channels = images.shape
    out = np.empty((n, height // 2, width // 2, channels), dtype=np.uint8)
    for start in range(0, n, _CHUNK):
        part = images[start : start + _CHUNK].astype(np.uint16)
        total = part[:, ::2, ::2] + part[:, 1::2, ::2] + part[:, ::2, 1::2] + part[:, 1::2, 1::2]
        out[start : start + _CHUNK] = (total + 2) >> 2
    return out


def to_channels(images: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Grey to colour by repetition; colour to grey by ITU-R BT.601 luma, in 16-bit fixed point."""
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    out = np.empty((*images.shape[:3], 1), dtype=np.uint8)
    for start in range(0, len(images), _CHUNK):
        red, green, blue = np.moveaxis(images[start : start + _CHUNK].astype(np.uint32), 3, 0)
        luma = (19_595 * red + 38_470 * green + 7_471 * blue + 32_768) >> 16
        out[start : start + _CHUNK, :, :, 0] = luma
    return out


def square(picture: Image.Image, image_size: int) -> Image.Image:
    """Cut the central square out of a picture and resample it to ``image_size``."""
    width, height = picture.size
    if width != height:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    if picture.size == (image_size, image_size):
        return picture
    return picture.resize((image_size, image_size), Image.Resampling.LANCZOS)


def pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """The pixels of a picture of mode L or RGB: uint8 ``[H, W, 1 or 3]``."""
    array = np.asarray(picture, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def check_bytes(n: int, height: int, width: int, channels: int) -> None:
    """Raise `ConfigError` before an array that cannot stay in memory is allocated."""
    if n * height * width * channels > MAX_BYTES:
        raise ConfigError(
            expected(
                f"{n} images of {width}x{height}",
                f"at most {MAX_BYTES >> 30} GiB in memory (choose a smaller image size)",
                f"{n * height * width * channels / 2**30:.1f} GiB",
            )
        )
