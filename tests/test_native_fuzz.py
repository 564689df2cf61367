"""Some of what benchmarks/fuzz_native.py does by the hundred thousand."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from c_library import build
from native import ROOT, tool
from test_kernels_sanitizer import runtime

FUZZ = ROOT / "benchmarks" / "fuzz_native.py"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_fuzz_native", FUZZ)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tickets(fuzz: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--what", "tickets", "--folder", str(tmp_path), "--json"]
    assert fuzz.main([*arguments, "--count", "500"]) == 0
    first = json.loads(capsys.readouterr().out)["tickets"]
    assert first["refused"] + first["valid"] == 500
    assert first["refused"] > 300
    assert first["valid"] > 5
    # It goes on where it was, and ends at the same place as if it had not stopped.
    assert fuzz.main([*arguments, "--count", "600"]) == 0
    more = json.loads(capsys.readouterr().out)["tickets"]
    sound = [
        path.read_bytes()
        for name, _ in fuzz.tickets()
        for path in (tmp_path / f"{name}.pt", tmp_path / f"{name}.safetensors")
    ]
    rest = fuzz.run_tickets(sound, tmp_path / "damaged", 500, 100)
    assert more == {key: first[key] + rest[key] for key in first}


def test_what_is_found_is_told(
    fuzz: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def careless(_: Path) -> None:
        raise IndexError("out of range")

    monkeypatch.setattr(fuzz, "load_ticket", careless)
    assert fuzz.main(["--what", "tickets", "--folder", str(tmp_path), "--count", "10"]) == 1
    assert "ticket 0: IndexError: out of range" in capsys.readouterr().out


def test_a_hang_is_told(tmp_path: Path) -> None:
    # In a process of its own: an alarm is a signal, and signals are the whole process's.
    script = tmp_path / "hang.py"
    script.write_text(
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('fuzz', {str(FUZZ)!r})\n"
        "fuzz = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(fuzz)\n"
        "def endless(_):\n"
        "    while True: pass\n"
        "fuzz.load_ticket = endless\n"
        "fuzz.HANG_S = 1\n"
        "sys.exit(fuzz.main(['--what', 'tickets', '--count', '10', '--folder', sys.argv[1]]))\n"
    )
    found = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 1, found.stderr
    assert "ticket 0: TimeoutError" in found.stdout


@pytest.mark.slow
def test_models(fuzz: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    cxx = tool("g++")
    for name in ("asan", "ubsan"):
        if not runtime(cxx, name).is_file():
            pytest.skip(f"needs GCC and its sanitizer runtime lib{name}")
    options = ["-DSPARSE_DDPM_SANITIZE=address,undefined", "-DSPARSE_DDPM_PORTABLE=ON"]
    options.append(f"-DCMAKE_CXX_COMPILER={cxx}")
    driver = build(tmp_path / "library", ("sparse_ddpm_fuzz",), *options) / "sparse_ddpm_fuzz"
    arguments = ["--what", "models", "--folder", str(tmp_path), "--driver", str(driver), "--json"]
    status = fuzz.main([*arguments, "--count", "2000"])
    output = capsys.readouterr().out
    assert status == 0, output
    counts = json.loads(output)["models"]
    assert counts["opened: damaged"] > 800
    assert counts["opened: limit"] > 30
    sampled = {key: n for key, n in counts.items() if key.startswith("sampled")}
    assert set(sampled) == {"sampled: ok", "sampled: cancelled", "sampled: not finite"}
    assert sum(sampled.values()) == counts["opened: ok"] > 200
    # What the driver cannot survive is told, with the number of the input.
    bad = tmp_path / "bad"
    bad.write_text("#!/bin/sh\necho 'ERROR: AddressSanitizer' >&2\nexit 1\n")
    bad.chmod(0o755)
    arguments[-2] = str(bad)
    assert fuzz.main([*arguments, "--count", "2001"]) == 1
    assert "model 1999: exit status 1\nERROR: AddressSanitizer" in capsys.readouterr().out
