from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparse_ddpm.errors import ConfigError, DataError

torch = pytest.importorskip("torch")

from safetensors.torch import save_file

from sparse_ddpm.metrics.classifier import (
    DigitClassifier,
    load_classifier,
    probabilities,
    save_classifier,
    train_classifier,
)


def _bars(n: int, size: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images of one bright bar, across for digit 0 and 1, down for 2 and 3."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    images = rng.integers(0, 60, (n, size, size, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        start = size // 8 + (label % 2) * size // 2
        bar = slice(start, start + size // 4)
        image[(bar, slice(None)) if label < 2 else (slice(None), bar)] = 250
    return images, labels


@pytest.mark.parametrize("size", [16, 28, 32])
def test_it_learns_what_can_be_learned(size: int) -> None:
    model = train_classifier(*_bars(240, size), epochs=3, batch_size=24)
    images, labels = _bars(50, size, seed=1)
    rows = probabilities(model, images, batch_size=7)
    assert rows.shape == (50, 10)
    assert rows.dtype == np.float32
    assert rows.sum(axis=1) == pytest.approx(np.ones(50), abs=1e-5)
    assert np.mean(rows.argmax(axis=1) == labels) > 0.9


def test_it_is_not_sure_of_noise() -> None:
    model = train_classifier(*_bars(240), epochs=6, batch_size=24)
    assert np.median(probabilities(model, _bars(50, seed=1)[0]).max(axis=1)) > 0.8
    noise = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 1), dtype=np.uint8)
    unsure = np.median(probabilities(model, noise).max(axis=1))
    assert unsure < 0.5
    plain = train_classifier(*_bars(240), epochs=6, batch_size=24, exposure=0.0)
    assert np.median(probabilities(plain, noise).max(axis=1)) > unsure


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone() -> None:
    images, labels = _bars(33)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train_classifier(images, labels, epochs=1, batch_size=8).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = train_classifier(images, labels, epochs=1, batch_size=8).state_dict()
    other = train_classifier(images, labels, epochs=1, batch_size=8, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classify.2.weight"], other["classify.2.weight"])


def test_save_and_load_give_the_same_judge(tmp_path: Path) -> None:
    images, labels = _bars(40, 20)
    model = train_classifier(images, labels, epochs=1, batch_size=10)
    path = tmp_path / "judge.safetensors"
    save_classifier(model, path)
    assert list(tmp_path.iterdir()) == [path]
    loaded = load_classifier(path)
    assert loaded.image_size == 20
    assert np.array_equal(probabilities(loaded, images), probabilities(model, images))


def _damage(path: Path, how: str) -> None:
    state = DigitClassifier(16).state_dict()
    metadata = {"format": "sparse-ddpm digit classifier 1", "image_size": "16"}
    match how:
        case "format":
            metadata["format"] = "another"
        case "image_size":
            metadata["image_size"] = "1000"
        case "missing":
            del state["classify.2.bias"]
        case "shape":
            state["classify.2.bias"] = torch.zeros(11)
        case "dtype":
            state["classify.2.bias"] = torch.zeros(10, dtype=torch.float64)
        case "nan":
            state["classify.2.bias"][3] = float("nan")
    save_file(state, path, metadata)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "absent":
        path.unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("format", "format: expected .* got 'another'"),
        ("image_size", "image_size: expected 16 to 32, got 1000"),
        ("missing", r"classify\.2\.bias: expected .* got None"),
        ("shape", r"classify\.2\.bias: expected .*10.* got .*11"),
        ("dtype", r"classify\.2\.bias: expected .*float32.* got .*float64"),
        ("nan", r"classify\.2\.bias: expected finite"),
        ("cut", "a digit classifier"),
        ("empty", "a digit classifier"),
        ("absent", "a digit classifier"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, how: str, words: str) -> None:
    path = tmp_path / "judge.safetensors"
    _damage(path, how)
    with pytest.raises(DataError, match=words) as caught:
        load_classifier(path)
    assert "judge.safetensors" in str(caught.value)


def test_arguments_of_another_kind() -> None:
    images, labels = _bars(4)
    model = DigitClassifier(16)
    for wrong in (images.astype(np.float32), images[..., 0], images[:, :8], images[:0]):
        with pytest.raises(DataError, match=r"uint8 \[N, H, H, 1\]"):
            probabilities(model, wrong)
    with pytest.raises(DataError, match="expected 16 x 16, got 20 x 20"):
        probabilities(model, _bars(1, 20)[0])
    with pytest.raises(DataError, match="labels"):
        train_classifier(images, labels[:3])
    with pytest.raises(DataError, match="labels"):
        train_classifier(images, labels + 7)
    with pytest.raises(ConfigError, match="epochs"):
        train_classifier(images, labels, epochs=0)
    for size in (15, 33, 16.0):
        with pytest.raises(ConfigError, match="image size"):
            DigitClassifier(size)  # type: ignore[arg-type]
