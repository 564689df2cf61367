from __future__ import annotations

import math

import numpy as np
import pytest

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.sampling.noise import normal, philox4x32

_ONES = 2**32 - 1


def _scalar_philox(counter, key):
    """Philox4x32-10 of one counter in plain integers, from figure 2 of the paper."""
    left, right = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * left[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * left[2], 2**32)
        left = [high1 ^ left[1] ^ right[0], low1, high0 ^ left[3] ^ right[1], low0]
        right = [(right[0] + 0x9E3779B9) % 2**32, (right[1] + 0xBB67AE85) % 2**32]
    return left


def _scalar_normal(seed, image, step, element):
    """One element by the layout that the module promises."""
    block, place = divmod(element, 4)
    words = _scalar_philox(
        (block, step, image % 2**32, image // 2**32), (seed % 2**32, seed // 2**32)
    )
    first, second = words[:2] if place < 2 else words[2:]
    radius = math.sqrt(-2 * math.log((first + 0.5) / 2**32))
    angle = 2 * math.pi * (second + 0.5) / 2**32
    return radius * (math.sin(angle) if place % 2 else math.cos(angle))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (_ONES, _ONES, _ONES, _ONES),
            (_ONES, _ONES),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter, key, words):
    arrays = tuple(np.array([word], dtype=np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox4x32(arrays, key)) == words
    assert tuple(_scalar_philox(counter, key)) == words


@pytest.mark.parametrize(
    ("seed", "images", "step", "shape", "elements"),
    [
        (0, [0], 0, (1, 1, 1), [0]),
        (3, [7, 0], 1, (3, 5, 7), [0, 1, 2, 3, 4, 50, 103, 104]),
        (2**64 - 1, [2**32 + 5, 2**63 + 1], 2**32 - 1, (2, 3), [0, 1, 2, 3, 4, 5]),
        # Blocks 8191, 8192 and the last lie on both sides of a chunk of the implementation.
        (11, [4, 2], 50, (1, 181, 190), [0, 32767, 32768, 32769, 34388, 34389]),
    ],
)
def test_layout_is_the_promised_one(seed, images, step, shape, elements):
    noise = normal(seed, np.array(images, dtype=np.uint64), step, shape)
    assert noise.shape == (len(images), *shape)
    assert noise.dtype == np.float32
    flat = noise.reshape(len(images), -1)
    for row, image in enumerate(images):
        for element in elements:
            wanted = _scalar_normal(seed, image, step, element)
            assert flat[row, element] == pytest.approx(wanted, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (1, 32, 32), (3, 32, 32)])
def test_an_image_is_the_same_in_any_batch(shape):
    indices = np.random.default_rng(0).permutation(300)
    whole = normal(5, indices, 3, shape)
    for batch in (1, 7, 16):
        for start in range(0, 48, batch):
            part = normal(5, indices[start : start + batch], 3, shape)
            np.testing.assert_array_equal(part, whole[start : start + batch])


def test_repeated_indices_and_plain_lists():
    noise = normal(1, [4, 4, 9], 0, (2, 3))
    np.testing.assert_array_equal(noise[0], noise[1])
    np.testing.assert_array_equal(noise, normal(1, np.array([4, 4, 9]), 0, (2, 3)))


def test_empty_requests():
    assert normal(0, [], 0, (1, 4, 4)).shape == (0, 1, 4, 4)
    assert normal(0, [1, 2], 0, (0, 4, 4)).shape == (2, 0, 4, 4)


def test_moments_and_distribution():
    noise = normal(2024, np.arange(64), 1, (3, 64, 64)).astype(np.float64).ravel()
    n = noise.size
    # Four standard errors of each moment of n normals.
    assert abs(noise.mean()) < 4 / math.sqrt(n)
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((noise**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96 / n)
    # Kolmogorov-Smirnov: sqrt(n) D passes 1.95 once in a thousand seeds.
    ordered = np.sort(noise)[::16]
    cdf = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in ordered])
    rank = np.arange(0, n, 16)
    distance = max((cdf - rank / n).max(), ((rank + 1) / n - cdf).max())
    assert math.sqrt(n) * distance < 1.95
    # The tails: the largest of 786,432 normals lies between 4.2 and 6.5 but once in 10,000.
    assert 4.2 < np.abs(noise).max() < 6.5


def test_steps_images_seeds_and_neighbours_are_independent():
    def flat(seed: int, image: int, step: int) -> np.ndarray:
        return normal(seed, [image], step, (3, 64, 64)).astype(np.float64).ravel()

    base = flat(1, 0, 0)
    others = [flat(1, 0, s) for s in (1, 2, 50)] + [flat(1, i, 0) for i in (1, 2, 2**32)]
    others += [flat(s, 0, 0) for s in (0, 2, 2**32 + 1)]
    others += [np.roll(base, k) for k in (1, 2, 3, 4, 64, 4096)]
    limit = 4 / math.sqrt(base.size)
    for other in others:
        assert abs((base * other).mean()) < limit
        # Squares too: a pair of Box-Muller shares its radius.
        assert abs(((base**2 - 1) * (other**2 - 1)).mean()) < 2 * limit


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1, [0], 0, (1,)), "seed"),
        ((2**64, [0], 0, (1,)), "seed"),
        ((1.5, [0], 0, (1,)), "seed"),
        ((True, [0], 0, (1,)), "seed"),
        ((0, [0], -1, (1,)), "step"),
        ((0, [0], 2**32, (1,)), "step"),
        ((0, [0], 0.5, (1,)), "step"),
        ((0, [0, -1], 0, (1,)), "image_indices"),
        ((0, [0.5], 0, (1,)), "image_indices"),
        ((0, [[0]], 0, (1,)), "image_indices"),
        ((0, 0, 0, (1,)), "image_indices"),
        ((0, [2**64], 0, (1,)), "image_indices"),
        ((0, [0], 0, (-1, 2)), "shape"),
        ((0, [0], 0, (2**20, 2**20)), "shape"),
    ],
)
def test_wrong_settings_are_named(arguments, name):
    with pytest.raises(ConfigError, match=f"^{name}: expected .*, got .*\\.$"):
        normal(*arguments)


def test_images_with_seeds_of_their_own():
    shape, seeds, indices = (
        (2, 3, 3),
        [9, 2**64 - 1, 0, 9, 2**63, 2**32],
        [0, 1, 2**63, 3, 2**40, 5],
    )
    got = normal(seeds, indices, 4, shape)
    for image, seed, index in zip(got, seeds, indices, strict=True):
        np.testing.assert_array_equal(image, normal(seed, [index], 4, shape)[0])
    np.testing.assert_array_equal(normal(np.array(seeds, np.uint64), indices, 4, shape), got)
    assert normal([], [], 0, shape).shape == (0, *shape)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([1, 2], "seed: expected one, or one for each of 3 images, got 2"),
        ([1.5, 2.0, 2.0], "seed: expected integers"),
        ([1, -2, 3], "seed: expected integers"),
        ([[1, 2, 3]], "seed: expected integers"),
        (True, "seed: expected an integer"),
        (2**64, "seed: expected an integer"),
    ],
)
def test_seeds_that_are_none(seeds, message):
    with pytest.raises(ConfigError, match=message):
        normal(seeds, [0, 1, 2], 0, (1, 2, 2))
