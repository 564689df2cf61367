"""vec.h for every instruction set: each function, and the accuracy that it states."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
from native import CROSS, EXACT, build_program, compiler, emulated, tool

AVX512 = ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512")
ISAS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx2", "-mfma", *AVX512),
}
NOT_THIS_MACHINE = 77


def check(program: Path, stride: int, *emulator: str) -> None:
    """Odd strides meet every exponent and every pattern of low bits."""
    done = subprocess.run(
        [*emulator, str(program), str(stride)], check=False, capture_output=True, text=True
    )
    if done.returncode == NOT_THIS_MACHINE:
        pytest.skip("this machine lacks the instruction set")
    assert done.returncode == 0, done.stderr
    assert "units in the last place" in done.stdout


@pytest.mark.parametrize("isa", ISAS)
def test_vectors(isa: str, tmp_path: Path) -> None:
    if isa != "baseline" and platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("an instruction set of x86-64")
    options = (*EXACT, *ISAS[isa])
    check(build_program(compiler(), CROSS / "vectors.cpp", tmp_path / "vectors", *options), 509)


def test_vectors_of_neon(tmp_path: Path) -> None:
    cross = tool("aarch64-linux-gnu-g++")
    emulator = emulated(cross)
    program = build_program(cross, CROSS / "vectors.cpp", tmp_path / "vectors", *EXACT)
    check(program, 8191, *emulator)
