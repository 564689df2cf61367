"""``sparse-ddpm bench`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sparse_ddpm_kernels import available_isas

from sparse_ddpm.cli.bench import fraction, model_name
from sparse_ddpm.cli.main import main
from sparse_ddpm.engine.plan import DTYPES
from sparse_ddpm.engine.precision import available_dtypes
from sparse_ddpm.ticket import PRESETS, UNetConfig, save_ticket, synthetic_ticket

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=4, heads=2, dim_head=4)
QUICK = ("--threads", "1", "--rounds", "1")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bench") / "ticket.pt"
    save_ticket(synthetic_ticket(TINY, 0.75, "vector:2", seed=5), path)
    return str(path)


def bench(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main(["bench", *arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result: dict[str, Any] = json.loads(out)
    assert result["schema"] == 1
    return result


def test_json_beside_onnxruntime(capsys: Capture, path: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("matplotlib")
    picture = tmp_path / "steps.png"
    peers = ("--peers", "onnxruntime", "--picture", str(picture))
    result = bench(capsys, path, "--batch", "1", "3", *peers, *QUICK)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (result["device"], result["threads"], result["pattern"]) == ("auto", 1, "vector:2")
    assert result["model"] == "unet-8x1-2-1x8x8"
    assert result["sparsity"] == pytest.approx(0.75, abs=0.02)
    rows = {(row["engine"], row["dtype"], row["batch"]): row for row in result["results"]}
    dtypes = available_dtypes()
    engines = {*(("sparse-ddpm", dtype) for dtype in dtypes), ("onnxruntime", "float32")}
    assert set(rows) == {(*engine, batch) for engine in engines for batch in (1, 3)}
    for (_, dtype, batch), row in rows.items():
        assert 0 < row["min_ms"] <= row["p10_ms"] <= row["step_ms"] <= row["p90_ms"]
        # step_ms is rounded to 0.1 microseconds.
        assert row["images_per_s"] == pytest.approx(1e3 * batch / row["step_ms"], rel=0.02)
        assert row["peak_mib"] >= row["step_peak_mib"] > 1
        assert 0 < row["error"] < (1e-5 if dtype == "float32" else 1e-2)
    for ratio in result["ratios"]:
        batch = ratio["batch"]
        peer = rows["onnxruntime", "float32", batch]["step_ms"]
        mine = {dtype: rows["sparse-ddpm", dtype, batch]["step_ms"] for dtype in dtypes}
        assert ratio["vs_fastest_fp32_peer"] == pytest.approx(peer / mine["float32"], rel=0.02)
        assert ratio["vs_fastest_peer"] == pytest.approx(peer / min(mine.values()), rel=0.02)
        assert ratio["fastest_peer"] == "onnxruntime"
        assert mine[ratio["our_dtype"]] == min(mine.values())
    assert {row["dtype"] for row in result["missing"]} == set(DTYPES) - set(dtypes)
    assert result["failed"] == []
    assert result["machine"]["cores"] >= 1
    assert "numpy" in result["versions"]


def test_precisions_that_the_machine_lacks_are_missing(
    capsys: Capture, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "baseline" not in available_isas():
        pytest.skip("every machine of this kind has 16-bit floats")
    monkeypatch.setenv("SPARSE_DDPM_ISA", "baseline")
    result = bench(capsys, path, "--peers", "none", "--batch", "1", *QUICK)
    assert [row["dtype"] for row in result["results"]] == ["float32"]
    assert [row["dtype"] for row in result["missing"]] == ["float16", "bfloat16"]
    assert "expected avx512 with AVX512-BF16, got baseline" in result["missing"][1]["reason"]
    named = ("--dtype", "float32", "float16")
    assert main(["bench", path, "--peers", "none", "--batch", "1", *QUICK, *named]) == 1
    assert "sparse-ddpm float16    missing: dtype float16" in capsys.readouterr().out


def test_beside_every_weight_stored(capsys: Capture, path: str) -> None:
    words = (path, "--peers", "none", "--batch", "2", "--dense", "--dtype", "float32", *QUICK)
    result = bench(capsys, *words)
    mine, dense = result["results"]
    assert [mine["engine"], dense["engine"]] == ["sparse-ddpm", "sparse-ddpm-dense"]
    (ratio,) = result["ratios"]
    assert ratio["vs_dense"] == {"float32": pytest.approx(dense["step_ms"] / mine["step_ms"], 0.02)}
    assert ratio["vs_fastest_peer"] is None
    assert main(["bench", *words]) == 0
    out = capsys.readouterr().out
    assert "sparse-ddpm float32 steps " in out
    assert "as fast as with every weight stored" in out


def test_table(capsys: Capture, path: str) -> None:
    assert main(["bench", path, "--batch", "2", "--peers", "none", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "batch 2" in out
    assert "sparse-ddpm" in out
    assert "building" in err
    assert "building" not in out


def test_our_own_failure_is_status_1(
    capsys: Capture, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever dtypes the engine has: a library that is not there fails them all."""
    monkeypatch.setenv("SPARSE_DDPM_LIBRARY", "/no/such/library.so")
    assert main(["bench", path, "--peers", "none", "--batch", "1", *QUICK]) == 1
    out = capsys.readouterr().out
    assert "sparse-ddpm float32" in out
    assert "failed: EngineError: CPU engine: expected the compiled library" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peers", "tensorrt"], "peers: expected all, none, or names among"),
        (["--dtype", "int8"], "dtype: expected one of"),
        (["--batch", "0"], "at least 1"),
        (["--layers", "--device", "numpy"], "--layers: expected the cpu engine"),
    ],
)
def test_wrong_usage_is_status_2(
    capsys: Capture, path: str, arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", path, *arguments])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_said_first(capsys: Capture, path: str) -> None:
    pytest.importorskip("matplotlib")
    assert main(["bench", path, "--picture", "steps.gif"]) == 1
    assert "expected a suffix among .png, .svg, .pdf" in capsys.readouterr().err
    assert main(["bench", path, "--picture", "no/such/folder/steps.png"]) == 1
    assert "expected an existing folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("paper:90%:vector:16", "paper:0.9:vector:16"),
        ("paper:90", "paper:0.9"),
        ("paper:99.5%:block:8x4", "paper:0.995:block:8x4"),
        ("paper:0.9:element", "paper:0.9:element"),
        ("small:0", "small:0"),
        ("small:0%", "small:0.0"),
        # Neither 1 % nor 100 %: left for the one error that names what is wanted.
        ("small:1", "small:1"),
        ("small:much", "small:much"),
    ],
)
def test_sparsity_as_percentage(text: str, wanted: str) -> None:
    assert fraction(text) == wanted


@pytest.mark.parametrize("text", ["small:1", "small:much", "small:100%", "small:-5%", "huge:0.9"])
def test_bad_synthetic_ticket(capsys: Capture, text: str) -> None:
    assert main(["bench", "--synthetic", text]) == 1
    assert "--synthetic: expected MODEL:SPARSITY:PATTERN" in capsys.readouterr().err


def test_model_name() -> None:
    assert model_name(synthetic_ticket(PRESETS["small"], 0.99)) == "small"


def test_layers(capsys: Capture, path: str) -> None:
    result = bench(capsys, path, "--layers", "--batch", "2", "--threads", "1")
    assert result["ceilings"]["gflops_per_s"] > 0
    names = [layer["layer"] for layer in result["layers"]]
    assert "init_conv" in names
    assert "final_conv" in names
    for layer in result["layers"]:
        assert layer["batch"] == 2
        assert layer["time_us"] >= 0
        assert layer["bytes"] > 0
        bound = "multiply-adds" if layer["fma_share"] > layer["bandwidth_share"] else layer["level"]
        assert layer["bound"] == bound
    (total,) = result["totals"]
    taken = sum(layer["time_us"] for layer in result["layers"])
    assert total["step_ms"] == pytest.approx(taken / 1e3, rel=0.01)
    assert sum(total["kinds_ms"].values()) == pytest.approx(total["step_ms"], rel=0.01)
