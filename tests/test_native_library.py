"""The library without Python: it draws what Python draws, and refuses what it cannot use."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from c_library import (
    HEADER,
    QUICK,
    Library,
    aligned,
    build,
)
from c_models import SAMPLERS, odd_program, tables
from native import ROOT, tool
from PIL import Image

from sparse_ddpm.api import Sampler
from sparse_ddpm.engine import make_engine
from sparse_ddpm.lower import lower
from sparse_ddpm.native import native_model
from sparse_ddpm.sampling import sample_loop
from sparse_ddpm.ticket import load_ticket, shipped_ticket_path


@pytest.fixture(autouse=True)
def same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_DDPM_ISA", "baseline")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("count", "first"), [(1, 0), (3, 5), (20, 0)])
def test_images_are_those_of_python(
    c_library: Library, shipped_model: Path, sampler: str, count: int, first: int
) -> None:
    """20 images are a pass of 16 and four of one."""
    ticket = load_ticket(shipped_ticket_path())
    table = tables(ticket.diffusion)[sampler]
    if count == 20 and sampler != "ddpm-5":
        pytest.skip("one sampler with noise stands for all")
    wanted = []
    for start in range(0, count, 16):
        indices = np.arange(first + start, first + min(start + 16, count))
        with make_engine(lower(ticket), "cpu", len(indices), threads=1) as engine:
            engine.set_schedule(table.timesteps)
            shape = engine.program.input_shape
            wanted.append(
                sample_loop(engine.run, table, seed=2**40 + 7, image_indices=indices, shape=shape)
            )
    with c_library.open(shipped_model) as model:
        found = model.sample(count, sampler=sampler, seed=2**40 + 7, first=first)
    np.testing.assert_allclose(found, np.concatenate(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("images", [1, 16])
def test_every_operation(c_library: Library, images: int) -> None:
    program, table = odd_program(), tables()["ddpm-5"]
    with make_engine(program, "cpu", images, threads=1) as engine:
        engine.set_schedule(table.timesteps)
        indices = np.arange(images)
        wanted = sample_loop(engine.run, table, seed=3, image_indices=indices, shape=(2, 6, 6))
    content = aligned(native_model(program, {"ddpm-5": table}))
    with c_library.open(content, threads=2) as model:
        np.testing.assert_allclose(model.sample(images, seed=3), wanted, rtol=0, atol=1e-5)


def test_the_example_writes_what_python_draws(
    c_folder: Path, shipped_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.pgm"
    command = [c_folder / "sparse_ddpm_example", shipped_model, out, "3", "11", "ddim-4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Sampler.load(threads=1) as sampler:
        wanted = sampler.sample(3, steps=4, seed=11)
    assert wanted.std() > 20
    with Image.open(out) as image:
        np.testing.assert_array_equal(np.asarray(image), np.hstack(wanted[..., 0]))


def test_the_example_says_what_is_wrong(
    c_folder: Path, shipped_model: Path, tmp_path: Path
) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(c_folder / "sparse_ddpm_example"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run().returncode == 2
    missing = run(tmp_path / "none", tmp_path / "out.pgm")
    assert missing.returncode == 1
    assert "No such file" in missing.stderr
    wrong = run(shipped_model, tmp_path / "out.pgm", 1, 0, "euler")
    assert wrong.returncode == 1
    assert "expected one of ddim-4 ddpm-5 dpm++-6, got euler" in wrong.stderr


def test_the_example_is_short() -> None:
    source = (ROOT / "examples" / "c" / "sample.c").read_text()
    assert len(source.splitlines()) <= 60


@pytest.mark.slow
def test_clang_builds_it_too(shipped_model: Path, tmp_path: Path) -> None:
    compilers = [f"-DCMAKE_C_COMPILER={tool('clang')}", f"-DCMAKE_CXX_COMPILER={tool('clang++')}"]
    folder = build(tmp_path / "clang", ("sparse_ddpm", "sparse_ddpm_example"), *QUICK, *compilers)
    out = tmp_path / "out.pgm"
    subprocess.run([folder / "sparse_ddpm_example", shipped_model, out, "1", "5"], check=True)
    with Sampler.load(threads=1) as sampler:
        wanted = sampler.sample(1, steps=4, seed=5)
    with Image.open(out) as image:
        np.testing.assert_array_equal(np.asarray(image), wanted[0, ..., 0])


@pytest.mark.slow
def test_the_whole_library_is_small_and_needs_little(shipped_model: Path, tmp_path: Path) -> None:
    """With the kernels of every instruction set; installed, and found by another project."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    targets = ("sparse_ddpm", "sparse_ddpm_static")
    folder = build(tmp_path / "build", targets, "-DCMAKE_INSTALL_LIBDIR=lib")
    where = ["--component", "library", "--prefix", tmp_path / "installed", "--strip"]
    subprocess.run([tool("cmake"), "--install", folder, *where], check=True, capture_output=True)
    path = (tmp_path / "installed" / "lib" / "libsparse_ddpm.so").resolve()
    assert path.stat().st_size < 1_000_000
    described = subprocess.run([tool("readelf"), "-dW", path], capture_output=True, text=True)
    needed = set(re.findall(r"NEEDED.*\[(\w+)", described.stdout))
    # libgcc_s is a part of libstdc++, which needs it itself; ld is one of libc.
    assert needed <= {"libc", "libm", "libstdc", "libpthread", "libgcc_s", "ld"}, described.stdout

    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(ROOT / "examples" / "c" / "sample.c", other)
    (other / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(other LANGUAGES C CXX)\n"
        "find_package(sparse_ddpm REQUIRED)\nforeach(kind sparse_ddpm sparse_ddpm_static)\n"
        "  add_executable(with_${kind} sample.c)\n"
        "  target_link_libraries(with_${kind} sparse_ddpm::${kind})\n"
        "  set_target_properties(with_${kind} PROPERTIES LINKER_LANGUAGE CXX)\n"
        "endforeach()\n"
    )
    prefix = f"-DCMAKE_PREFIX_PATH={tmp_path / 'installed'}"
    for command in (["-S", other, "-B", other / "build", prefix], ["--build", other / "build"]):
        subprocess.run([tool("cmake"), *command], check=True, capture_output=True)
    images = []
    for kind in ("sparse_ddpm", "sparse_ddpm_static"):
        out = tmp_path / f"{kind}.pgm"
        subprocess.run([other / "build" / f"with_{kind}", shipped_model, out, "1", "5"], check=True)
        images.append(out.read_bytes())
    assert images[0] == images[1]


def test_nothing_else_is_exported(c_folder: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    library = c_folder / "libsparse_ddpm.so"
    listed = subprocess.run(
        [tool("nm"), "-D", "--defined-only", library], check=True, capture_output=True, text=True
    )
    names = {line.split()[2].split("@")[0] for line in listed.stdout.splitlines() if " T " in line}
    header = (HEADER / "sparse_ddpm.h").read_text()
    assert names == set(re.findall(r"SDDPM_API [\w ]+?\*?(sddpm_\w+)\(", header))
    assert len([line for line in listed.stdout.splitlines() if " A " not in line]) == len(names)


@pytest.mark.parametrize(("language", "standard"), [("c", "c99"), ("c++", "c++11")])
def test_the_header_is_strict(tmp_path: Path, language: str, standard: str) -> None:
    source = tmp_path / "use"
    source.write_text('#include "sparse_ddpm.h"\nint main(void) { return (int)sddpm_abi(); }\n')
    command = [
        tool("g++", "clang++"),
        f"-x{language}",
        f"-std={standard}",
        "-fsyntax-only",
        "-Wall",
    ]
    command += ["-Wextra", "-pedantic-errors", "-Werror", f"-I{HEADER}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_model_says_of_itself(c_library: Library, shipped_model: Path) -> None:
    with c_library.open(shipped_model) as model:
        info = model.info
        assert (info.channels, info.height, info.width) == (1, 32, 32)
        assert info.file_bytes == shipped_model.stat().st_size
        assert info.threads == 1
        assert 1e5 < info.memory_bytes < 1e9
        assert 1e5 < info.work < 1e9
        assert model.samplers() == {"ddim-4": 4, "ddpm-5": 5, "dpm++-6": 6}
        assert model.metadata("dataset") == "mnist"
        assert model.metadata("note") == "a=b"
        assert model.metadata("other") is None
    assert c_library.c.sddpm_abi() == 1
