"""The C++ under AddressSanitizer and UndefinedBehaviorSanitizer.

A second build of the library, in a folder of its own, is loaded into a fresh interpreter that runs
the engine's tests. A deliberate mistake shows that the build would have reported one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REPORT = re.compile(r"ERROR: AddressSanitizer|runtime error:")

MISTAKE = """
import numpy as np
from sparse_ddpm_kernels import Executor, Kind, Op, Tensor
tensors = [Tensor(16 * i, 16, 4, 0, 1, 4, 4, 0) for i in range(2)]
ptr, slot, value = np.array([0, 1]), np.zeros(1, np.int32), np.ones(1, np.float32)
offset = np.array([OFFSET], np.int32)
conv = Op(kind=Kind.CONV, x=tensors[0], out=tensors[1], group=1, panels=1, film=-1)
conv.panel_ptr, conv.offset = ptr.ctypes.data, offset.ctypes.data
conv.value, conv.slot = value.ctypes.data, slot.ctypes.data
ops = [Op(kind=Kind.LOAD, out=tensors[0]), conv, Op(kind=Kind.STORE, x=tensors[1])]
image = np.ones((1, 1, 4, 4), np.float32)
Executor(ops, arena=32, lanes=1, batch=1, threads=1).run(image, np.empty_like(image), None)
print("finished")
"""


@dataclass
class Build:
    folder: Path
    runtimes: str

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run an interpreter with the sanitized library; its output is captured."""
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(ROOT / p) for p in ("", "kernels", "export")),
            "SPARSE_DDPM_LIBRARY": str(self.folder / "sparse_ddpm_cpu.so"),
            "LD_PRELOAD": self.runtimes,
            # Python itself leaks at exit, and a test asks for more memory than there is.
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            **environment,
        }
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The library with both sanitizers, or a skip that says what is missing."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if cmake is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and cmake")
    folder = tmp_path_factory.mktemp("sanitized")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = [cmake, "-S", ROOT, "-B", folder, *generator]
    subprocess.run(
        [*configure, "-DSPARSE_DDPM_SANITIZE=address,undefined"], check=True, capture_output=True
    )
    cache = (folder / "CMakeCache.txt").read_text()
    found = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.+)$", cache, re.MULTILINE)
    if found is None or "NOTFOUND" in found[1]:
        pytest.skip("needs a C++ compiler")
    runtimes = []
    for name in ("libasan.so", "libubsan.so"):
        answer = subprocess.run(
            [found[1], f"-print-file-name={name}"], check=True, capture_output=True, text=True
        )
        runtimes.append(answer.stdout.strip())
    if not all(Path(path).is_file() for path in runtimes):
        pytest.skip("needs GCC's sanitizer runtimes")
    built = subprocess.run(
        [cmake, "--build", folder, "--parallel", "2"], check=False, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout
    assert "warning:" not in built.stdout
    return Build(folder, ":".join(runtimes))


@pytest.mark.slow
@pytest.mark.parametrize(("offset", "clean"), [("0", True), ("200", False), ("-20", False)])
def test_an_offset_out_of_range_is_reported(build: Build, offset: str, clean: bool) -> None:
    found = build.python("-c", MISTAKE.replace("OFFSET", offset))
    if clean:
        assert found.returncode == 0, found.stderr
        assert "finished" in found.stdout
    else:
        assert found.returncode != 0
        assert "ERROR: AddressSanitizer: heap-" in found.stderr
        assert "conv.h" in found.stderr


@pytest.mark.slow
def test_the_engines_tests_are_clean(build: Build) -> None:
    tests = sorted(str(path) for path in ROOT.glob("tests/test_engine_cpu_*.py"))
    assert tests
    options = ["-q", "-x", "-p", "no:cacheprovider"]
    found = build.python("-m", "pytest", *options, *tests, "tests/test_kernels_binding.py")
    output = found.stdout + found.stderr
    assert not REPORT.search(output), output[-5000:]
    assert found.returncode == 0, output[-5000:]
    assert re.search(r"\d{2,} passed", output)


@pytest.mark.slow
def test_kernels_share_no_inline_function_across_instruction_sets(build: Build) -> None:
    """A weak symbol compiled with AVX-512 could replace the one that baseline machines run."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm")
    objects = sorted(build.folder.rglob("kernels_*.o"))
    assert objects
    for path in objects:
        symbols = subprocess.run([nm, str(path)], check=True, capture_output=True, text=True)
        weak = [line for line in symbols.stdout.splitlines() if re.search(r" [WwVvu] ", line)]
        assert not weak, (path.name, weak)
