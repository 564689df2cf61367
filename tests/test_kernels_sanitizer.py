"""The C++ under AddressSanitizer, UndefinedBehaviorSanitizer, LeakSanitizer and ThreadSanitizer.

Each build of the library runs the engine's tests: every operation on 1 and 2 threads, whole U-Nets
on more. Where the sanitizer cannot share a process with Python, the library runs in one of its own
(`cross/driver.cpp`). Deliberate mistakes show that each build would have reported one.
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
from native import CROSS, ROOT, build_library, build_program, compiler, run_engine_tests
from sparse_ddpm_kernels import available_isas

REPORT = re.compile(r"(ERROR|WARNING): \w+Sanitizer|runtime error:")

PROGRAM = """
import os
import numpy as np
from sparse_ddpm_kernels import Executor, Kind, Op, Tensor
if "SPARSE_DDPM_REMOTE" in os.environ:
    import remote_library
    remote_library.pytest_configure()
tensors = [Tensor(16 * i, 16, 4, 0, 1, 4, 4, 0) for i in range(2)]
ptr, slot, value = np.array([0, 1]), np.zeros(1, np.int32), np.ones(1, np.float32)
offset = np.array([OFFSET], np.int32)
conv = Op(kind=Kind.CONV, x=tensors[0], out=tensors[1], group=1, panels=1, film=-1)
conv.panel_ptr, conv.offset = ptr.ctypes.data, offset.ctypes.data
conv.value, conv.slot = value.ctypes.data, slot.ctypes.data
ops = [Op(kind=Kind.LOAD, out=tensors[0]), conv, Op(kind=Kind.STORE, x=tensors[1])]
image = np.ones((1, 1, 4, 4), np.float32)
executor = Executor(ops, arena=32, lanes=1, threads=1)
executor.run(image, np.empty_like(image), None)
FORGET
print("finished")
"""

# All channels of one tensor in the same place.
RACE = """
import numpy as np
from sparse_ddpm_kernels import Executor, Kind, Op, Tensor
import remote_library
remote_library.pytest_configure()
place = Tensor(0, STRIDE, 64, 0, 64, 64, 64, 0)
image = np.ones((1, 64, 64, 64), np.float32)
with Executor([Op(kind=Kind.LOAD, out=place)], arena=64**3, lanes=1, threads=2) as both:
    for _ in range(50):
        both.run(image, image, None)
print("finished")
"""


@dataclass
class Build:
    library: Path
    driver: Path
    variables: dict[str, str]

    def python(self, code: str, remote: bool) -> subprocess.CompletedProcess[str]:
        """Run code with the library in the interpreter, or beside it; the output is captured."""
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(path) for path in (ROOT, ROOT / "kernels", CROSS)),
            **self.variables,
        }
        if remote:
            variables["SPARSE_DDPM_REMOTE"] = f"{self.driver} {self.library}"
            variables.pop("LD_PRELOAD", None)
            variables.pop("SPARSE_DDPM_LIBRARY", None)
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )


def sanitized(folder: Path, sanitizer: str, **variables: str) -> Build:
    """The library and the driver, or a skip that says what is missing."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    cxx = compiler()
    for name in {"thread": ["tsan"]}.get(sanitizer, ["asan", "ubsan"]):
        if not runtime(cxx, name).is_file():
            pytest.skip(f"needs GCC and its sanitizer runtime lib{name}")
    options = [f"-DCMAKE_CXX_COMPILER={cxx}", f"-DSPARSE_DDPM_SANITIZE={sanitizer}"]
    library = build_library(folder / "library", *options)
    driver = folder / "driver"
    build_program(cxx, CROSS / "driver.cpp", driver, f"-fsanitize={sanitizer}")
    return Build(library, driver, variables)


def runtime(cxx: str, name: str) -> Path:
    asked = [cxx, f"-print-file-name=lib{name}.so"]
    return Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("address")
    build = sanitized(folder, "address,undefined")
    build.variables |= {
        "SPARSE_DDPM_LIBRARY": str(build.library),
        "LD_PRELOAD": ":".join(str(runtime(compiler(), name)) for name in ("asan", "ubsan")),
        # Python itself leaks at exit, and a test asks for more memory than there is.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return build


@pytest.fixture(scope="module")
def thread(tmp_path_factory: pytest.TempPathFactory) -> Build:
    options = "halt_on_error=1:allocator_may_return_null=1"
    return sanitized(tmp_path_factory.mktemp("thread"), "thread", TSAN_OPTIONS=options)


@pytest.mark.slow
@pytest.mark.parametrize(("offset", "clean"), [("0", True), ("200", False), ("-20", False)])
def test_an_offset_out_of_range_is_reported(address: Build, offset: str, clean: bool) -> None:
    code = PROGRAM.replace("OFFSET", offset).replace("FORGET", "")
    found = address.python(code, remote=False)
    if clean:
        assert found.returncode == 0, found.stderr
        assert "finished" in found.stdout
    else:
        assert found.returncode != 0
        assert "ERROR: AddressSanitizer: heap-" in found.stderr
        assert "conv.h" in found.stderr


@pytest.mark.slow
def test_the_engines_tests_are_clean(address: Build) -> None:
    found = run_engine_tests(**address.variables)
    output = found.stdout + found.stderr
    assert not REPORT.search(output), output[-5000:]
    assert found.returncode == 0, output[-5000:]
    assert re.search(r"\d{3,} passed", output)


@pytest.mark.slow
def test_training_is_clean(address: Build) -> None:
    pytest.importorskip("torch", reason="the trainer needs torch")
    library = address.library.with_name("sparse_ddpm_train.so")
    variables = {**os.environ, **address.variables, "OMP_NUM_THREADS": "1"}
    variables |= {"SPARSE_DDPM_TRAIN_LIBRARY": str(library)}
    variables["PYTHONPATH"] = os.pathsep.join(str(path) for path in (ROOT, ROOT / "kernels"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-k", "sets or odd or panels or bit", str(ROOT / "tests" / "test_model_sparse.py")]
    found = subprocess.run(
        command, cwd=ROOT, env=variables, check=False, capture_output=True, text=True
    )
    output = found.stdout + found.stderr
    assert not REPORT.search(output), output[-5000:]
    assert found.returncode == 0, output[-5000:]
    assert re.search(r"\d{2,} passed", output)


@pytest.mark.slow
@pytest.mark.parametrize("forget", [False, True])
def test_an_engine_frees_all_it_holds(address: Build, forget: bool) -> None:
    code = PROGRAM.replace("OFFSET", "0").replace("FORGET", "executor._end.detach()" * forget)
    leaks = Build(address.library, address.driver, {"ASAN_OPTIONS": "detect_leaks=1"})
    found = leaks.python(code, remote=True)
    assert "finished" in found.stdout, found.stderr
    if "LeakSanitizer has encountered a fatal error" in found.stderr:
        pytest.skip("LeakSanitizer may not trace processes here")
    assert ("ERROR: LeakSanitizer" in found.stderr) == forget, found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("stride", "clean"), [("64 * 64", True), ("0", False)])
def test_a_race_is_reported(thread: Build, stride: str, clean: bool) -> None:
    found = thread.python(RACE.replace("STRIDE", stride), remote=True)
    assert ("finished" in found.stdout) == clean, found.stderr
    assert ("WARNING: ThreadSanitizer: data race" in found.stderr) != clean, found.stderr


@pytest.mark.slow
def test_the_engines_tests_are_free_of_races(thread: Build) -> None:
    remote = [str(thread.driver), str(thread.library)]
    # Threads share the same data whatever the instruction set: the widest stands for all.
    narrower = available_isas()[:-1]
    found = run_engine_tests(remote=remote, without=narrower, **thread.variables)
    output = found.stdout + found.stderr
    assert not REPORT.search(output), output[-5000:]
    assert found.returncode == 0, output[-5000:]
    assert re.search(r"\d{3,} passed", output)


@pytest.mark.slow
def test_kernels_share_no_inline_function_across_instruction_sets(address: Build) -> None:
    """A weak symbol compiled with AVX-512 could replace the one that baseline machines run."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm")
    objects = sorted(address.library.parent.rglob("*kernels_*.o"))
    assert any(path.name.startswith("train_kernels_") for path in objects)
    for path in objects:
        symbols = subprocess.run([nm, str(path)], check=True, capture_output=True, text=True)
        weak = [line for line in symbols.stdout.splitlines() if re.search(r" [WwVvu] ", line)]
        assert not weak, (path.name, weak)
