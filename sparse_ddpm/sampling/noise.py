"""Gaussian noise as a pure function of (seed, image index, step), so that batches do not matter.

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
This layout is a contract: every engine that makes noise itself must follow it.

* Key: ``(seed mod 2**32, seed div 2**32)``.
* Counter: ``(block, step, image mod 2**32, image div 2**32)``. Step 0 is the initial noise; step
  i + 1 is the noise of row i of the table.
* Block b makes elements 4b to 4b + 3 of the image, counted in row-major ``[C, H, W]`` order; what
  a last block makes beyond the end of the image is not used.
* The four words ``w`` of a block become uniforms ``(w + 1/2) / 2**32``, strictly inside (0, 1), and
  by Box-Muller (1958), in float64 and then rounded to float32::

      element 4b     = sqrt(-2 ln u0) cos(2 pi u1)    element 4b + 1 = sqrt(-2 ln u0) sin(2 pi u1)
      element 4b + 2 = sqrt(-2 ln u2) cos(2 pi u3)    element 4b + 3 = sqrt(-2 ln u2) sin(2 pi u3)
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_ddpm.errors import ConfigError, expected

_Words = NDArray[np.uint64]

_WORD = 2**32
_MASK = np.uint64(_WORD - 1)
_HALF = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ROUNDS = 10

# Blocks made at a time: their temporaries stay in the second-level cache.
_CHUNK = 8192


def philox4x32(
    counter: tuple[_Words, _Words, _Words, _Words], key: tuple[_Words | int, _Words | int]
) -> tuple[_Words, _Words, _Words, _Words]:
    """Philox4x32-10 of every counter under its key.

    The words of ``counter`` and of ``key`` are uint64 arrays of values below 2**32 that broadcast
    together, of ``key`` also integers; the four words returned have the broadcast shape and the
    same range.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = (np.asarray(word, np.uint64) for word in key)
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0 = (product1 >> _HALF) ^ c1 ^ k0
        c2 = (product0 >> _HALF) ^ c3 ^ k1
        c1, c3 = product1 & _MASK, product0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def normal(
    seed: int | ArrayLike, image_indices: ArrayLike, step: int, shape: Sequence[int]
) -> NDArray[np.float32]:
    """Standard normal noise of some images at one step: float32 ``[N, *shape]``.

    ``seed``, one for all images or one each ``[N]``, and each of ``image_indices`` ``[N]`` are
    integers in [0, 2**64), ``step`` in [0, 2**32). The noise of an image does not depend on which
    others are asked for with it. Raises `ConfigError` for anything else.
    """
    if type(step) is not int or not 0 <= step < _WORD:
        raise ConfigError(expected("step", "an integer from 0 to 2**32 - 1", repr(step)))
    images = _words("image_indices", image_indices)
    seeds = _seed_words(seed, len(images))
    size = math.prod(shape)
    blocks = -(-size // 4)
    if min(shape, default=1) < 0 or blocks > _WORD:
        raise ConfigError(expected("shape", "at most 2**34 elements", tuple(shape)))

    noise = np.empty((len(images), blocks, 4), dtype=np.float32)
    rows = max(1, _CHUNK // max(blocks, 1))
    for row in range(0, len(images), rows):
        image = images[row : row + rows, None]
        own = seeds[row : row + rows, None] if len(seeds) > 1 else seeds[:, None]
        key = own & _MASK, own >> _HALF
        for start in range(0, blocks, _CHUNK):
            block = np.arange(start, min(start + _CHUNK, blocks), dtype=np.uint64)[None, :]
            counter = block, np.full((1, 1), step, np.uint64), image & _MASK, image >> _HALF
            words = philox4x32(counter, key)
            target = noise[row : row + rows, start : start + _CHUNK]
            target[..., 0], target[..., 1] = _box_muller(words[0], words[1])
            target[..., 2], target[..., 3] = _box_muller(words[2], words[3])
    return noise.reshape(len(images), 4 * blocks)[:, :size].reshape(len(images), *shape)


def _seed_words(seed: int | ArrayLike, images: int) -> _Words:
    """One seed, ``[1]``, or one for each image."""
    if isinstance(seed, int):
        if type(seed) is not int or not 0 <= seed < 2**64:
            raise ConfigError(expected("seed", "an integer from 0 to 2**64 - 1", repr(seed)))
        return np.array([seed], np.uint64)
    seeds = _words("seed", seed)
    if len(seeds) != images:
        raise ConfigError(expected("seed", f"one, or one for each of {images} images", len(seeds)))
    return seeds


def _words(what: str, values: ArrayLike) -> _Words:
    words = np.asarray(values)
    if words.ndim == 1 and words.dtype.kind == "f" and isinstance(values, Sequence):
        # numpy takes integers beyond 63 bits beside smaller ones for floats.
        with contextlib.suppress(TypeError):
            listed: Sequence[Any] = values
            words = np.array([operator.index(value) for value in listed], dtype=np.uint64)
    if words.size == 0 and words.ndim == 1:
        return np.empty(0, dtype=np.uint64)
    if words.ndim != 1 or words.dtype.kind not in "iu" or words.min() < 0:
        got = f"{words.dtype} {words.shape}" if words.ndim != 1 else words.tolist()
        raise ConfigError(expected(what, "integers >= 0 in one dimension", got))
    return words.astype(np.uint64)


def _box_muller(first: _Words, second: _Words) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    radius = first.astype(np.float64)
    radius += 0.5
    radius *= 2.0**-32
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle = second.astype(np.float64)
    angle += 0.5
    angle *= math.pi * 2.0**-31
    return radius * np.cos(angle), radius * np.sin(angle)
