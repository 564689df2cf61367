"""``sparse-ddpm evaluate`` and ``sparse-ddpm judge`` as a user meets them."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparse_ddpm.cli.main import main
from sparse_ddpm.errors import DataError
from sparse_ddpm.metrics import frechet_distance, inception, load_judge, shipped_judge, statistics
from sparse_ddpm.ticket import UNetConfig, save_ticket, synthetic_ticket

TINY = {"dim": 8, "dim_mults": (1, 2), "groups": 4, "heads": 2, "dim_head": 4}
N = 70

Capture = pytest.CaptureFixture[str]


def write_ticket(path: Path, size: int = 16, channels: int = 1) -> Path:
    config = UNetConfig(channels=channels, image_size=size, **TINY)  # type: ignore[arg-type]
    save_ticket(synthetic_ticket(config, 0.8, seed=5), path)
    return path


@pytest.fixture(scope="module")
def ticket(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_ticket(tmp_path_factory.mktemp("ticket") / "ticket.pt"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST's files with ten classes that are easy to learn: bars across and down."""
    path = tmp_path_factory.mktemp("data")
    for prefix, n in (("train", 200), ("t10k", 100)):
        labels = np.arange(n) % 10
        images = np.random.default_rng(n).integers(0, 60, (n, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            bar = slice(4 + label % 5 * 4, 8 + label % 5 * 4)
            image[(bar, slice(None)) if label < 5 else (slice(None), bar)] = 255
        header = struct.pack(">4B3I", 0, 0, 8, 3, n, 28, 28)
        (path / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">4BI", 0, 0, 8, 1, n)
        labelled = header + labels.astype(np.uint8).tobytes()
        (path / f"{prefix}-labels-idx1-ubyte").write_bytes(labelled)
    return path


def run_json(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result: dict[str, Any] = json.loads(out)
    assert next(iter(result)) == "schema"
    assert result["schema"] == 1
    return result


def test_evaluate_draws_and_scores(ticket: str, tmp_path: Path, capsys: Capture) -> None:
    drawn = tmp_path / "drawn.npy"
    settings = ["--steps", "2", "--seed", "3", "--threads", "1"]
    assert main(["sample", ticket, "-n", str(N), "-o", str(drawn), *settings]) == 0
    capsys.readouterr()
    result = run_json(capsys, "evaluate", ticket, "--samples", str(N), *settings)
    judge = shipped_judge()
    known = judge.reference("train", 16)
    features, _ = judge.network(np.load(drawn))
    expected = frechet_distance(statistics(features), known.statistics)
    assert result["distance"] == pytest.approx(expected, rel=1e-6)
    assert result["ticket"] == ticket
    assert (result["samples"], result["sound"], result["steps"]) == (N, False, 2)
    assert (result["precision"], result["recall"], result["inception_distance"]) == (None,) * 3
    assert sum(result["classes"]) == pytest.approx(1)
    assert result["reference"] == {"split": "train", "data": None, "images": 60_000}
    assert result["judge"]["sha256"] == judge.network.digest
    assert result["real_distance"] < 0.1 < result["distance"]
    given = run_json(capsys, "evaluate", "--images", str(drawn))
    assert given["distance"] == result["distance"]
    assert given["ticket"] is None
    assert "steps" not in given


def test_evaluate_against_data(ticket: str, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["evaluate", ticket, "-n", str(N), "--steps", "1", "--reference", f"mnist:{folder}"]
    result = run_json(capsys, *arguments, "--split", "test")
    assert result["reference"] == {"split": "test", "data": f"mnist:{folder}", "images": 100}
    assert 0 <= result["precision"] <= 1
    assert 0 <= result["recall"] <= 1
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "70 samples against 200 train images" in text
    assert "fewer than 10,000 samples" in text
    assert "precision  " in text


def test_text_without_data_says_what_is_missing(ticket: str, capsys: Capture) -> None:
    assert main(["evaluate", ticket, "-n", str(N), "--steps", "1"]) == 0
    text = capsys.readouterr().out
    assert "precision and recall   with --reference only" in text
    assert "(test to train)" in text


def test_what_cannot_be_judged_is_refused_before_drawing(
    ticket: str, folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("sparse_ddpm.api.Sampler.sample", never)
    odd = str(write_ticket(tmp_path / "odd.pt", size=8))
    colour = str(write_ticket(tmp_path / "colour.pt", channels=3))
    labels = str(folder / "train-labels-idx1-ubyte")
    array = tmp_path / "float.npy"
    np.save(array, np.zeros((N, 16, 16, 1)))
    for arguments, message in (
        ([ticket, "-n", "64"], "samples: expected more than 64, the number of features, got 64."),
        ([odd], "expected test 16x16 or test 32x32 or train 16x16 or train 32x32, or the data"),
        ([colour], "judge of mnist (choose another with --judge): expected images of 1 channel"),
        ([ticket, "--reference", "mnist:/nowhere"], "no such folder"),
        ([ticket, "--judge", ticket], "a judge's file"),
        ([ticket, "--images", str(array)], "--images: expected no TICKET beside it"),
        (["--images", str(array)], "float.npy: images: expected uint8"),
        (["--images", ticket], "ticket.pt: images: expected uint8 [N, H, W, C], got NpzFile"),
        (["--images", labels], "expected uint8 [n, H, W, C] as .npy"),
    ):
        assert main(["evaluate", *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("sparse-ddpm: ")
        assert error.count("\n") == 1


def test_evaluate_needs_no_torch(ticket: str) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from sparse_ddpm.cli.main import main\n"
        f"sys.exit(main(['evaluate', {ticket!r}, '-n', '70', '--steps', '1', '--json']))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["samples"] == N


def test_inception_without_torch_fidelity_is_one_clear_error(
    ticket: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert main(["evaluate", ticket, "--inception"]) == 1
    assert "expected torch-fidelity (pip install" in capsys.readouterr().err


def test_inception_hands_colour_pictures_to_torch_fidelity(
    folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    handed: dict[str, Any] = {}

    def calculate_metrics(**settings: Any) -> dict[str, float]:
        handed.update(settings)
        return {"frechet_inception_distance": 12.5}

    fake = SimpleNamespace(calculate_metrics=calculate_metrics)
    monkeypatch.setitem(sys.modules, "torch_fidelity", fake)
    monkeypatch.setattr(inception, "FEATURES", 60)
    images = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 1), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    arguments = ["evaluate", "--images", str(tmp_path / "images.npy"), "--inception"]
    assert main(arguments) == 1
    assert "--inception: expected real images from --reference" in capsys.readouterr().err
    result = run_json(capsys, *arguments, "--reference", f"mnist:{folder}")
    assert result["inception_distance"] == 12.5
    assert handed["fid"] is True
    assert handed["feature_extractor_weights_path"] is None
    assert (len(handed["input1"]), len(handed["input2"])) == (N, 200)
    picture = handed["input1"][3].numpy()
    np.testing.assert_array_equal(picture, np.repeat(images[3].transpose(2, 0, 1), 3, axis=0))
    with pytest.raises(DataError, match="more than 60 images, got 5"):
        inception.inception_distance(images[:5], images)
    with pytest.raises(DataError, match="a file of Inception weights"):
        inception.inception_distance(images, images, tmp_path / "none")


def test_judge_learns_and_evaluate_uses_it(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("torch")
    path, again = tmp_path / "judge", tmp_path / "again"
    arguments = ["judge", "--data", f"mnist:{folder}", "--threads", "1", "--epochs", "30"]
    result = run_json(capsys, *arguments, "-o", str(path), "--sizes", "16", "20")
    assert result["dataset"] == "mnist"
    assert (result["images"], result["classes"], result["features"]) == (200, 10, 64)
    assert result["bytes"] == path.stat().st_size
    assert set(result["accuracy"]) == set(result["real_distance"]) == {"16", "20"}
    assert result["accuracy"]["20"] > 0.9
    judge = load_judge(path)
    assert judge.network.digest == result["sha256"]
    assert set(judge.references) == {(s, n) for s in ("train", "test") for n in (16, 20)}
    images = np.random.default_rng(0).integers(0, 256, (N, 20, 20, 1), dtype=np.uint8)
    np.save(tmp_path / "noise.npy", images)
    noise = ["evaluate", "--images", str(tmp_path / "noise.npy"), "--judge", str(path)]
    found = run_json(capsys, *noise)
    assert found["judge"]["sha256"] == result["sha256"]
    assert found["distance"] > found["real_distance"]
    short = [*arguments[:-1], "1"]
    for output in (path, again):
        assert main([*short, "-o", str(output)]) == 0
        assert "of test images right" in capsys.readouterr().out
    assert path.read_bytes() == again.read_bytes()
    assert main([*short, "-o", str(again), "--seed", "1"]) == 0
    assert path.read_bytes() != again.read_bytes()


def test_judge_learns_colour_from_folders(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("torch")
    image = pytest.importorskip("PIL.Image")
    for split, n in (("train", 66), ("test", 66)):
        for label, colour in enumerate(("red", "blue")):
            place = tmp_path / split / colour
            place.mkdir(parents=True)
            for i in range(n // 2):
                pixels = np.full((32, 32, 3), i, np.uint8)
                pixels[..., 2 * label] = 200
                image.fromarray(pixels).save(place / f"{i}.png")
    data = ["--data", f"images:{tmp_path / 'train'}", "-o", str(tmp_path / "judge")]
    assert main(["judge", *data]) == 1
    assert "--test: expected test images of their own" in capsys.readouterr().err
    test = ["--test", f"images:{tmp_path / 'test'}", "--epochs", "8", "--threads", "1"]
    result = run_json(capsys, "judge", *data, *test)
    assert (result["classes"], set(result["accuracy"])) == (2, {"32"})
    assert load_judge(tmp_path / "judge").network.channels == 3


def test_judge_without_labels_or_torch_is_one_clear_error(
    folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("PIL.Image").new("L", (32, 32)).save(tmp_path / "one.png")
    flat = f"images:{tmp_path}"
    arguments = ["judge", "-o", str(tmp_path / "judge"), "--data"]
    assert main([*arguments, flat, "--test", flat]) == 1
    assert "train images: expected a label for each" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "sparse_ddpm.metrics.training", raising=False)
    assert main([*arguments, f"mnist:{folder}"]) == 1
    assert 'judge: expected torch (pip install "sparse-ddpm[train]")' in capsys.readouterr().err
