"""The engine's tests on AArch64: cross-compiled, and run under user-mode emulation.

Python, the planner and the reference stay here; only the library runs emulated (see
`cross/driver.cpp`).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from native import CROSS, build_library, build_program, emulated, run_engine_tests, tool

COMPILER = "aarch64-linux-gnu-g++"
CLANG = ("-DCMAKE_CXX_COMPILER=clang++", "-DCMAKE_CXX_COMPILER_TARGET=aarch64-linux-gnu")
TARGET = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that serves a library, whose path it takes."""
    compiler = tool(COMPILER)
    command = emulated(compiler)
    path = tmp_path_factory.mktemp("driver") / "driver"
    return [*command, str(build_program(compiler, CROSS / "driver.cpp", path))]


@pytest.mark.slow
def test_the_engines_tests_pass(driver: list[str], tmp_path: Path) -> None:
    library = build_library(tmp_path, f"-DCMAKE_CXX_COMPILER={COMPILER}", *TARGET)
    found = run_engine_tests(remote=[*driver, str(library)])
    output = found.stdout + found.stderr
    assert found.returncode == 0, output[-5000:]
    assert re.search(r"\d{3,} passed", output)


@pytest.mark.slow
def test_clangs_build_passes_too(driver: list[str], tmp_path: Path) -> None:
    tool("clang++")
    library = build_library(tmp_path, *CLANG, *TARGET)
    names = tuple(f"test_engine_cpu_{n}.py" for n in ("convs", "operations", "precisions"))
    found = run_engine_tests(*names, remote=[*driver, str(library)])
    assert found.returncode == 0, (found.stdout + found.stderr)[-5000:]
