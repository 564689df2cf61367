"""Building C++ in tests: the library in a folder of its own, and programs beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "kernels" / "sparse_ddpm_kernels" / "csrc"
CROSS = ROOT / "tests" / "cross"
EXACT = ("-ffp-contract=fast", "-fno-math-errno")
"""What the library's kernels are compiled with, where it changes a result."""


def tool(*names: str) -> str:
    """The first of some programs that is installed; skips the test when none is."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = next(filter(None, (shutil.which(name, path=places) for name in names)), None)
    if found is None:
        pytest.skip(f"needs {' or '.join(names)}")
    return found


def compiler() -> str:
    return tool(os.environ.get("CXX", "c++"), "g++", "clang++")


def emulated(compiler: str) -> list[str]:
    """The command before a program that this AArch64 cross compiler made; skips without one."""
    emulator = tool("qemu-aarch64", "qemu-aarch64-static")
    asked = [compiler, "-print-file-name=libstdc++.so.6"]
    library = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    if not library.is_file():
        pytest.skip(f"needs the shared libraries of {compiler}")
    return [emulator, "-L", str(library.resolve().parent.parent)]


def build_program(compiler: str, source: Path, target: Path, *options: str) -> Path:
    """Compile one file with the headers of the engine, and without a warning."""
    command = [compiler, "-std=gnu++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    command += [*options, f"-I{SOURCES}", str(source), "-o", str(target), "-ldl", "-pthread"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def build_library(folder: Path, *options: str) -> Path:
    """Configure and build the project's library without a warning; ``options`` go to cmake."""
    cmake = tool("cmake")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), *generator, *options]
    for command in (configure, [cmake, "--build", str(folder), "--parallel", "2"]):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        assert "warning:" not in output, output
    return folder / "sparse_ddpm_cpu.so"


def run_engine_tests(
    *patterns: str,
    remote: list[str] | None = None,
    without: tuple[str, ...] = (),
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """The engine's tests whose file names match (default: all), and the binding's, in a fresh
    interpreter.

    ``remote``: the command that serves the library they use, instead of one that is loaded.
    ``without``: parts of the names of tests to leave out.
    """
    paths = [ROOT, ROOT / "kernels", ROOT / "export", *([CROSS] if remote else [])]
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        **environment,
    }
    tests = []
    for pattern in patterns or ("test_engine_cpu_*.py",):
        found = sorted(ROOT.glob(f"tests/{pattern}"))
        assert found, pattern
        tests += found
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    if remote is not None:
        variables.pop("SPARSE_DDPM_LIBRARY", None)
        variables["SPARSE_DDPM_REMOTE"] = " ".join(remote)
        # A test that starts an interpreter of its own would test the library that is installed.
        command += ["-p", "remote_library"]
        without += ("forked",)
    command += ["-k", " and ".join(f"not {name}" for name in without)] if without else []
    command += [*map(str, tests), str(ROOT / "tests" / "test_kernels_binding.py")]
    return subprocess.run(
        command, cwd=ROOT, env=variables, check=False, capture_output=True, text=True
    )
