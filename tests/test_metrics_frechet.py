"""The Fréchet distance: its algebra, the features below it, and what it says of real digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparse_ddpm.data import load_images
from sparse_ddpm.errors import DataError
from sparse_ddpm.metrics import (
    FeatureNet,
    Judge,
    Reference,
    Statistics,
    StatisticsStream,
    evaluate,
    frechet_distance,
    load_judge,
    measure,
    save_judge,
    shipped_judge,
    statistics,
)
from sparse_ddpm.metrics.features import STRIDES, resize_matrix


@pytest.fixture(scope="module")
def judge() -> Judge:
    return shipped_judge()


def gaussian(seed: int, n: int, d: int, rank: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((rank or d, d)) * np.logspace(0, -1, d)
    return rng.standard_normal((n, rank or d)) @ mixing + rng.standard_normal(d)


def root_by_newton(matrix: np.ndarray) -> np.ndarray:
    """Principal square root by the iteration of Denman and Beavers, 1976."""
    root, inverse = matrix, np.eye(len(matrix))
    for _ in range(60):
        root, inverse = (
            (root + np.linalg.inv(inverse)) / 2,
            (inverse + np.linalg.inv(root)) / 2,
        )
    return root


@pytest.mark.parametrize("parts", [[], [500], [1, 2, 3], [0, 250, 250], [499]])
def test_a_stream_gives_what_all_rows_at_once_give(parts: list[int]) -> None:
    rows = gaussian(0, 500, 7) + 1e6
    stream = StatisticsStream(7)
    for part in np.split(rows, parts):
        stream.update(part)
    found = stream.result()
    assert found.count == 500
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T), rtol=1e-7, atol=1e-9)


def test_float32_rows_are_summed_in_float64() -> None:
    rows = gaussian(1, 5_000, 3).astype(np.float32)
    exact = np.cov(rows.astype(np.float64).T)
    np.testing.assert_allclose(statistics(rows).covariance, exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("d", [1, 2, 64])
def test_distance_is_that_of_an_independent_implementation(seed: int, d: int) -> None:
    first, second = gaussian(seed, 400, d), gaussian(seed + 100, 300, d)
    a, b = np.atleast_2d(np.cov(first.T)), np.atleast_2d(np.cov(second.T))
    shift = first.mean(axis=0) - second.mean(axis=0)
    found = frechet_distance(statistics(first), statistics(second))

    def textbook(root: np.ndarray) -> float:
        return float(shift @ shift + np.trace(a + b - 2 * root.real))

    assert found == pytest.approx(textbook(root_by_newton(a @ b)), rel=1e-9, abs=1e-9)
    linalg = pytest.importorskip("scipy.linalg")
    assert found == pytest.approx(textbook(linalg.sqrtm(a @ b)), rel=1e-9, abs=1e-9)


def test_distances_known_in_closed_form() -> None:
    unit = Statistics(100, np.zeros(3), np.eye(3))
    moved = Statistics(100, np.array([1.0, 2.0, 2.0]), np.eye(3))
    wide = Statistics(100, np.zeros(3), np.diag([4.0, 9.0, 0.0]))
    assert frechet_distance(unit, unit) == pytest.approx(0, abs=1e-14)
    assert frechet_distance(unit, moved) == pytest.approx(9)
    # (1 - 2)² + (1 - 3)² + (1 - 0)²
    assert frechet_distance(unit, wide) == pytest.approx(6)
    assert frechet_distance(wide, unit) == pytest.approx(6)


def test_singular_covariances_have_a_distance() -> None:
    flat = statistics(gaussian(0, 200, 12, rank=3))
    full = statistics(gaussian(1, 200, 12))
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)
    there, back = frechet_distance(flat, full), frechet_distance(full, flat)
    assert there == pytest.approx(back, rel=1e-6)


def test_too_few_samples_are_refused() -> None:
    many = statistics(gaussian(0, 50, 8))
    frechet_distance(many, statistics(gaussian(1, 9, 8)))
    for pair in ((many, statistics(gaussian(1, 8, 8))), (statistics(gaussian(1, 8, 8)), many)):
        with pytest.raises(DataError, match=r"samples: expected more than 8, .*, got 8\."):
            frechet_distance(*pair)
    with pytest.raises(DataError, match="features: expected 8"):
        frechet_distance(many, statistics(gaussian(0, 50, 7)))


def test_what_is_no_statistics_is_refused() -> None:
    stream = StatisticsStream(2)
    for rows in (np.zeros((3, 3)), np.zeros(2), np.full((3, 2), np.nan)):
        with pytest.raises(DataError, match="features"):
            stream.update(rows)
    stream.update(np.zeros((1, 2)))
    with pytest.raises(DataError, match="at least 2 samples, got 1"):
        stream.result()
    eye = np.eye(2)
    for arguments in (
        (1, np.zeros(2), eye),
        (5, np.zeros(3), eye),
        (5, np.zeros(2, np.float32), eye),
        (5, np.full(2, np.inf), eye),
        (5, np.zeros(2), np.array([[1.0, 0.5], [0.25, 1.0]])),
    ):
        with pytest.raises(DataError, match="statistics"):
            Statistics(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [16, 28, 32, 20, 45])
def test_numpy_network_is_the_one_torch_would_run(judge: Judge, size: int) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    images = np.random.default_rng(size).integers(0, 256, (70, size, size, 1), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    if size == 28:
        x = functional.pad(x, (2, 2, 2, 2))
    elif size < 32:
        x = functional.interpolate(x, (32, 32), mode="bilinear")
    elif size > 32:
        x = functional.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    weights = {
        name: torch.from_numpy(w.copy()).double() for name, w in judge.network.weights.items()
    }
    for i, stride in enumerate(STRIDES):
        kernel = weights[f"conv{i}.weight"].permute(3, 2, 0, 1)
        pad = kernel.shape[2] // 2
        bias = weights[f"conv{i}.bias"]
        x = functional.conv2d(x, kernel, bias, stride=stride, padding=pad).relu()
    x = functional.adaptive_avg_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1)
    features = x @ weights["features.weight"] + weights["features.bias"]
    logits = features.relu() @ weights["classes.weight"] + weights["classes.bias"]
    seen: list[int] = []
    found, found_logits = judge.network(images, seen.append)
    np.testing.assert_allclose(found, features.numpy(), atol=2e-4)
    np.testing.assert_allclose(found_logits, logits.numpy(), atol=2e-3)
    assert seen == [64, 6]


def test_network_takes_any_number_of_images_and_no_other_kind(judge: Judge) -> None:
    features, logits = judge.network(np.zeros((0, 16, 16, 1), np.uint8))
    assert features.shape == (0, 64)
    assert logits.shape == (0, 10)
    one = judge.network(np.full((1, 1, 1, 1), 9, np.uint8))[0]
    np.testing.assert_allclose(one, judge.network(np.full((1, 32, 32, 1), 9, np.uint8))[0])
    for wrong in (
        np.zeros((2, 16, 16, 3), np.uint8),
        np.zeros((2, 16, 15, 1), np.uint8),
        np.zeros((2, 16, 16, 1), np.float32),
        np.zeros((16, 16), np.uint8),
    ):
        with pytest.raises(DataError, match=r"images: expected uint8 \[N, H, H, 1\]"):
            judge.network(wrong)


@pytest.mark.parametrize("size", [1, 2, 16, 20, 28, 33, 64, 100])
def test_resizing_keeps_brightness(size: int) -> None:
    matrix = resize_matrix(size)
    assert matrix is not None
    assert matrix.shape == (32, size)
    rows = matrix.sum(axis=1)
    np.testing.assert_allclose(rows[2:-2], 1, rtol=1e-6)
    np.testing.assert_allclose(rows[[0, 1, -2, -1]], 0 if size == 28 else 1, rtol=1e-6)


def test_weights_that_do_not_fit_are_refused(judge: Judge) -> None:
    weights = dict(judge.network.weights)
    for name, value, message in (
        ("conv2.weight", weights["conv2.weight"][:, :, 1:], "conv2.weight: expected float32"),
        ("features.bias", weights["features.bias"][1:], "features.bias: expected float32"),
        ("classes.weight", weights["classes.weight"].astype(float), "classes.weight: expected"),
        ("conv0.weight", weights["conv0.weight"] * np.float32(np.nan), "conv0: expected finite"),
        ("conv0.weight", np.zeros((5, 5, 2, 4), np.float32), "conv0.weight: expected"),
        ("other", np.zeros(1, np.float32), "feature weights"),
    ):
        with pytest.raises(DataError, match=message):
            FeatureNet({**weights, name: value})
    del weights["conv3.bias"]
    with pytest.raises(DataError, match=r"no conv3\.bias"):
        FeatureNet(weights)


def test_a_judge_survives_its_file(judge: Judge, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 1), dtype=np.uint8)
    found = measure(judge.network, images)
    other = Judge(judge.network, "noise", {16: 0.25}, {("test", 16): found})
    save_judge(other, tmp_path / "judge")
    loaded = load_judge(tmp_path / "judge")
    assert loaded.dataset == "noise"
    assert loaded.accuracy == {16: 0.25}
    assert loaded.network.digest == judge.network.digest
    kept = loaded.reference("test", 16)
    assert kept.statistics.count == 100
    np.testing.assert_allclose(kept.statistics.mean, found.statistics.mean, rtol=1e-7)
    np.testing.assert_allclose(kept.statistics.covariance, found.statistics.covariance, rtol=1e-7)
    np.testing.assert_allclose(kept.classes, found.classes, rtol=1e-7)
    assert frechet_distance(kept.statistics, found.statistics) < 1e-5
    with pytest.raises(DataError, match=r"expected test 16x16, or the data .*, got train 16x16"):
        loaded.reference("train", 16)
    weights = {name: value + np.float32(1e-6) for name, value in judge.network.weights.items()}
    with pytest.raises(DataError, match="rounded to float16"):
        save_judge(Judge(FeatureNet(weights), "mnist", {}, {}), tmp_path / "fine")
    assert not (tmp_path / "fine").exists()


def test_a_judge_refuses_references_of_another(judge: Judge) -> None:
    known = judge.reference("train", 16)
    small = Reference(statistics(gaussian(0, 50, 8)), known.classes)
    for key, found in (
        (("train", 16), small),
        (("train", 16), Reference(known.statistics, known.classes[1:])),
        (("train", 16), Reference(known.statistics, known.classes * 2)),
        (("half", 16), known),
    ):
        with pytest.raises(DataError, match="reference"):
            Judge(judge.network, "mnist", {}, {key: found})


@pytest.mark.parametrize("kind", ["absent", "empty", "cut", "format", "about", "statistics"])
def test_damaged_files_are_refused(judge: Judge, tmp_path: Path, kind: str) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "judge"
    about = '{"dataset":"mnist","accuracy":{},"counts":{}}'
    metadata = {"sparse-ddpm judge 1": about}
    tensors = {name: value.astype(np.float16) for name, value in judge.network.weights.items()}
    if kind == "format":
        metadata = {"sparse-ddpm judge 9": about}
    elif kind == "about":
        metadata = {"sparse-ddpm judge 1": "[]"}
    elif kind == "statistics":
        metadata["sparse-ddpm judge 1"] = about.replace('"counts":{}', '"counts":{"train.16":100}')
        tensors["train.16.mean"] = np.zeros(64, np.float32)
    content = b"" if kind == "empty" else safetensors.save(tensors, metadata)
    if kind != "absent":
        path.write_bytes(content[: len(content) // 2] if kind == "cut" else content)
    with pytest.raises(DataError, match="judge"):
        load_judge(path)


def test_the_shipped_judge_is_small_and_complete(judge: Judge) -> None:
    path = Path(load_judge.__code__.co_filename).parents[1] / "assets"
    assert (path / "mnist-judge-16-32.safetensors").stat().st_size < 200_000
    assert judge.dataset == "mnist"
    assert set(judge.references) == {(s, n) for s in ("train", "test") for n in (16, 32)}
    for size in (16, 28, 32):
        assert judge.reference("train", size).statistics.count == 60_000
        assert judge.reference("test", size).statistics.count == 10_000
    assert min(judge.accuracy.values()) >= 0.99


@pytest.mark.parametrize("size", [16, 32])
def test_shipped_figures_are_those_of_the_data(judge: Judge, data_root: Path, size: int) -> None:
    test = load_images(f"mnist:{data_root / 'mnist'}", split="test", image_size=size)
    features, logits = judge.network(test.images)
    assert (logits.argmax(axis=1) == test.labels).mean() == pytest.approx(
        judge.accuracy[size], abs=2e-4
    )
    known = judge.reference("test", size).statistics
    assert frechet_distance(statistics(features), known) < 1e-4
    train = judge.reference("train", size).statistics
    # The other split is nearly as near as real images can be; all features together have 64.
    assert frechet_distance(known, train) < 0.1
    assert 32 < np.trace(train.covariance) < 128


def test_halves_of_real_images_are_nearly_at_no_distance(judge: Judge, data_root: Path) -> None:
    train = load_images(f"mnist:{data_root / 'mnist'}").images
    chosen = np.random.default_rng(0).permutation(len(train))[:20_000]
    first, second = (judge.network(train[half])[0] for half in np.split(chosen, 2))
    assert 0 < frechet_distance(statistics(first), statistics(second)) < 0.03


@pytest.fixture(scope="module", params=[16, 32])
def digits(request: pytest.FixtureRequest, data_root: Path) -> tuple[np.ndarray, np.ndarray]:
    loaded = load_images(
        f"mnist:{data_root / 'mnist'}", split="test", image_size=int(request.param)
    )
    assert loaded.labels is not None
    order = np.random.default_rng(0).permutation(len(loaded))[:6_000]
    return loaded.images[order], loaded.labels[order]


def blurred(images: np.ndarray, times: int) -> np.ndarray:
    """Means over 3x3 pixels, so many times."""
    x = images[..., 0].astype(np.float32)
    for _ in range(times):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        x = (x[:, :-2] + x[:, 1:-1] + x[:, 2:]) / 3
        x = (x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]) / 3
    return x.round().astype(np.uint8)[..., None]


def noisy(images: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, sigma, images.shape)
    return (images + noise).clip(0, 255).round().astype(np.uint8)


def test_distance_grows_with_blur_noise_and_missing_classes(
    judge: Judge, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    images, labels = digits
    half = len(images) // 2
    real = statistics(judge.network(images[:half])[0])

    def distance(other: np.ndarray) -> float:
        return frechet_distance(real, statistics(judge.network(other)[0]))

    rest, theirs = images[half:], labels[half:]
    halves = distance(rest)
    assert 0 < halves < 0.2  # of 3,000 images each; all features together vary by 64
    for what, found in (
        ("blur", [distance(blurred(rest, times)) for times in (1, 3, 6)]),
        ("noise", [distance(noisy(rest, sigma)) for sigma in (8, 24, 64)]),
        ("classes", [distance(rest[theirs >= dropped]) for dropped in (1, 3, 6)]),
    ):
        values = [halves, *found]
        assert values == sorted(values), (what, values)
        assert values[1] > 1.5 * halves, (what, values)
        assert values[-1] > 50 * halves, (what, values)


def test_evaluate_judges_real_digits_as_real(judge: Judge, data_root: Path) -> None:
    test = load_images(f"mnist:{data_root / 'mnist'}", split="test", image_size=16).images
    whole = evaluate(judge, test)
    assert whole.reference == 60_000
    assert whole.distance == pytest.approx(whole.real_distance, rel=1e-3)
    assert whole.precision is None
    assert whole.class_distance < 0.02
    found = evaluate(judge, test[:2_000], real=test[2_000:4_000], split="test")
    assert found.precision == pytest.approx(0.9, abs=0.08)
    assert found.recall == pytest.approx(0.9, abs=0.08)
    assert found.reference == 2_000
    for images, message in (
        (test[:64], "more than 64, the number of features"),
        (np.zeros((100, 20, 20, 1), np.uint8), "reference statistics"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate(judge, images)
    with pytest.raises(DataError, match="real images"):
        evaluate(judge, test[:100], real=np.zeros((100, 32, 32, 1), np.uint8))
    with pytest.raises(DataError, match="split"):
        evaluate(judge, test[:100], split="half")
