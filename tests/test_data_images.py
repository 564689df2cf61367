from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sparse_ddpm.data import Images, images, load_images
from sparse_ddpm.data.images import convert, halve, to_channels
from sparse_ddpm.errors import ConfigError, DataError


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_28_to_32_is_zero_padding() -> None:
    source = _random(3, 28, 28, 1)
    padded = convert(source, 32)
    assert padded.shape == (3, 32, 32, 1)
    assert np.array_equal(padded[:, 2:30, 2:30], source)
    assert padded.sum(dtype=np.int64) == source.sum(dtype=np.int64)


def test_28_to_16_is_the_rounded_box_average_of_the_padded_image() -> None:
    source = _random(5, 28, 28, 1)
    padded = np.pad(source, ((0, 0), (2, 2), (2, 2), (0, 0))).astype(np.float64)
    mean = padded.reshape(5, 16, 2, 16, 2, 1).mean(axis=(2, 4))
    assert np.array_equal(convert(source, 16), np.floor(mean + 0.5).astype(np.uint8))


def test_halve_is_the_same_in_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    source = _random(7, 4, 6, 3)
    whole = halve(source)
    monkeypatch.setattr(images, "_CHUNK", 3)
    assert np.array_equal(halve(source), whole)
    assert halve(np.full((1, 2, 2, 1), 255, dtype=np.uint8)).item() == 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 5, 40])
def test_other_sizes_are_lanczos_of_the_central_square(size: int, channels: int) -> None:
    source = _random(2, 20, 31, channels)
    got = convert(source, size)
    assert got.shape == (2, size, size, channels)
    crop = source[1, :, 5:25]
    picture = Image.fromarray(crop[:, :, 0] if channels == 1 else crop)
    want = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))
    assert np.array_equal(got[1], want.reshape(size, size, channels))


def test_nothing_asked_nothing_changed() -> None:
    source = _random(2, 9, 7, 3)
    assert convert(source) is source
    square = _random(2, 8, 8, 1)
    assert convert(square, 8, 1) is square


def test_grey_is_pillows_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_CHUNK", 2)
    source = _random(5, 16, 16, 3)
    grey = to_channels(source, 1)
    for got, image in zip(grey, source, strict=True):
        assert np.array_equal(got[:, :, 0], np.asarray(Image.fromarray(image).convert("L")))
    assert np.array_equal(to_channels(to_channels(grey, 3), 1), grey)


@pytest.mark.parametrize(
    ("pixels", "labels", "words"),
    [
        (np.zeros((1, 2, 2, 1)), None, "uint8"),
        (np.zeros((1, 2, 2), dtype=np.uint8), None, r"\[1, 2, 2\]"),
        (np.zeros((0, 2, 2, 1), dtype=np.uint8), None, "at least one image"),
        (np.zeros((1, 2, 2, 2), dtype=np.uint8), None, "1 or 3 channels"),
        ("no array", None, "str"),
        (np.zeros((2, 2, 2, 1), dtype=np.uint8), np.zeros(3, dtype=np.int64), r"int64 \[2\]"),
        (np.zeros((2, 2, 2, 1), dtype=np.uint8), np.zeros(2, dtype=np.int32), "int32"),
    ],
)
def test_images_refuses_arrays_of_another_kind(pixels: object, labels: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Images(pixels, labels, "made up")  # type: ignore[arg-type]


def test_images_too_many_for_memory_are_refused_before_they_are_made() -> None:
    few = np.broadcast_to(np.uint8(0), (10**6, 2, 2, 3))
    with pytest.raises(ConfigError, match="smaller image size"):
        convert(few, 4096)


@pytest.mark.parametrize("spec", ["", "mnist", "mnist:", "pickle:/tmp", "MNIST:/tmp", "/tmp", ":x"])
def test_an_unknown_spec_lists_the_known_ones(spec: str) -> None:
    with pytest.raises(DataError, match="cifar100:PATH or images:PATH"):
        load_images(spec)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 0},
        {"image_size": 5000},
        {"image_size": 16.0},
        {"image_size": True},
        {"channels": 2},
        {"split": "validation"},
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        load_images("mnist:nowhere", **settings)  # type: ignore[arg-type]
