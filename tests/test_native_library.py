"""The library without Python: it draws what Python draws, and refuses what it cannot use."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_library import (
    CALLBACK,
    HEADER,
    PRIVATE,
    QUICK,
    Info,
    Library,
    Model,
    Options,
    Progress,
    StatusError,
    aligned,
    build,
    quick_build,
)
from native import ROOT, tool
from numpy.typing import NDArray
from PIL import Image

from sparse_ddpm.api import Sampler
from sparse_ddpm.engine import make_engine
from sparse_ddpm.formats import Dense
from sparse_ddpm.lower import lower
from sparse_ddpm.native import native_model, write_native
from sparse_ddpm.program import (
    Add,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    Program,
    SpaceToDepth,
    TimeEmbedding,
    Upsample2x,
)
from sparse_ddpm.sampling import Table, make_table, sample_loop
from sparse_ddpm.ticket import DiffusionConfig, UNetConfig, load_ticket, shipped_ticket_path
from sparse_ddpm.ticket.synthetic import synthetic_ticket

SAMPLERS = {"ddim-4": "ddim", "ddpm-5": "ddpm", "dpm++-6": "dpm++"}


def tables(diffusion: DiffusionConfig | None = None) -> dict[str, Table]:
    return {
        name: make_table(
            diffusion or DiffusionConfig(), sampler=sampler, steps=int(name.rpartition("-")[2])
        )
        for name, sampler in SAMPLERS.items()
    }


@pytest.fixture(scope="session")
def folder() -> Path:
    return quick_build()


@pytest.fixture(scope="session")
def library(folder: Path) -> Library:
    return Library(folder / "libsparse_ddpm.so")


@pytest.fixture(autouse=True)
def same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_DDPM_ISA", "baseline")


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped ticket as a model."""
    path = tmp_path_factory.mktemp("model") / "shipped.sddpm"
    ticket = load_ticket(shipped_ticket_path())
    text = {"dataset": "mnist", "note": "a=b"}
    write_native(path, lower(ticket), tables(ticket.diffusion), text=text)
    return path


TINY = UNetConfig(dim=6, dim_mults=(1, 2), channels=3, image_size=8, groups=3, heads=2, dim_head=4)


def tiny_model(**options: Any) -> NDArray[np.uint8]:
    content = native_model(lower(synthetic_ticket(TINY, 0.8)), tables(), **options)
    return aligned(content)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("count", "first"), [(1, 0), (3, 5), (20, 0)])
def test_images_are_those_of_python(
    library: Library, shipped: Path, sampler: str, count: int, first: int
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
    with library.open(shipped) as model:
        found = model.sample(count, sampler=sampler, seed=2**40 + 7, first=first)
    np.testing.assert_allclose(found, np.concatenate(wanted), rtol=0, atol=1e-5)


def odd_program() -> Program:
    """The operations that the U-Nets lack: a bias of time, sums, copies, attention on its own."""
    rng = np.random.default_rng(0)

    def dense(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32)

    film = Dense(dense(12, 8))
    time = TimeEmbedding(4, dense(8, 4), dense(8), dense(8, 8), dense(8), film, dense(12))
    operations = (
        Conv("a", "x", Dense(dense(4, 18)), 3, bias=dense(4), film=0),
        NormAct("b", "a", 2, dense(4), dense(4), film=4),
        Conv("qkv", "b", Dense(dense(12, 4)), 1, bias=dense(12)),
        LinearAttention("c", "qkv", 2, 2),
        Add("d", "c", "b"),
        Concat("e", "d", "d"),
        SpaceToDepth("f", "e"),
        Conv("g", "f", Dense(0.1 * dense(3, 32 * 25)), 5),
        Upsample2x("h", "g"),
        Concat("i", "h", "a"),
        Conv("l", "i", Dense(dense(2, 7)), 1, residual="x"),
    )
    return Program(operations, "x", (2, 6, 6), "l", time)


@pytest.mark.parametrize("images", [1, 16])
def test_every_operation(library: Library, images: int) -> None:
    program, table = odd_program(), tables()["ddpm-5"]
    with make_engine(program, "cpu", images, threads=1) as engine:
        engine.set_schedule(table.timesteps)
        indices = np.arange(images)
        wanted = sample_loop(engine.run, table, seed=3, image_indices=indices, shape=(2, 6, 6))
    content = aligned(native_model(program, {"ddpm-5": table}))
    with library.open(content, threads=2) as model:
        np.testing.assert_allclose(model.sample(images, seed=3), wanted, rtol=0, atol=1e-5)


def test_the_example_writes_what_python_draws(folder: Path, shipped: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pgm"
    command = [folder / "sparse_ddpm_example", shipped, out, "3", "11", "ddim-4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Sampler.load(threads=1) as sampler:
        wanted = sampler.sample(3, steps=4, seed=11)
    assert wanted.std() > 20
    with Image.open(out) as image:
        np.testing.assert_array_equal(np.asarray(image), np.hstack(wanted[..., 0]))


def test_the_example_says_what_is_wrong(folder: Path, shipped: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "sparse_ddpm_example"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run().returncode == 2
    missing = run(tmp_path / "none", tmp_path / "out.pgm")
    assert missing.returncode == 1
    assert "No such file" in missing.stderr
    wrong = run(shipped, tmp_path / "out.pgm", 1, 0, "euler")
    assert wrong.returncode == 1
    assert "expected one of ddim-4 ddpm-5 dpm++-6, got euler" in wrong.stderr


def test_the_example_is_short() -> None:
    source = (ROOT / "examples" / "c" / "sample.c").read_text()
    assert len(source.splitlines()) <= 60


@pytest.mark.slow
def test_clang_builds_it_too(shipped: Path, tmp_path: Path) -> None:
    compilers = [f"-DCMAKE_C_COMPILER={tool('clang')}", f"-DCMAKE_CXX_COMPILER={tool('clang++')}"]
    folder = build(tmp_path / "clang", ("sparse_ddpm", "sparse_ddpm_example"), *QUICK, *compilers)
    out = tmp_path / "out.pgm"
    subprocess.run([folder / "sparse_ddpm_example", shipped, out, "1", "5"], check=True)
    with Sampler.load(threads=1) as sampler:
        wanted = sampler.sample(1, steps=4, seed=5)
    with Image.open(out) as image:
        np.testing.assert_array_equal(np.asarray(image), wanted[0, ..., 0])


@pytest.mark.slow
def test_the_whole_library_is_small_and_needs_little(shipped: Path, tmp_path: Path) -> None:
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
        subprocess.run([other / "build" / f"with_{kind}", shipped, out, "1", "5"], check=True)
        images.append(out.read_bytes())
    assert images[0] == images[1]


def test_nothing_else_is_exported(folder: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    library = folder / "libsparse_ddpm.so"
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


def test_what_a_model_says_of_itself(library: Library, shipped: Path) -> None:
    with library.open(shipped) as model:
        info = model.info
        assert (info.channels, info.height, info.width) == (1, 16, 16)
        assert info.file_bytes == shipped.stat().st_size
        assert info.threads == 1
        assert 1e5 < info.memory_bytes < 1e9
        assert 1e5 < info.work < 1e9
        assert model.samplers() == {"ddim-4": 4, "ddpm-5": 5, "dpm++-6": 6}
        assert model.metadata("dataset") == "mnist"
        assert model.metadata("note") == "a=b"
        assert model.metadata("other") is None
    assert library.c.sddpm_abi() == 1


def first_weights(content: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The weights of the first convolution, a view. See native_file.h."""
    table = content[64 : 64 + 32 * 5].view(np.uint64).reshape(5, 4)
    plan, arrays = (int(next(row[1] for row in table if row[0] & 0xFF == kind)) for kind in (4, 5))
    blocks, count = content[plan + 16 : plan + 32].view(np.int64).tolist()
    start = plan + 32 + 448 * blocks
    operations = content[start : start + 304 * count].reshape(count, 304)
    conv = next(op for op in operations if op[:4].view(np.int32)[0] == 2)
    place, size = conv[272:288].view(np.int64).tolist()
    return content[arrays + place : arrays + place + 4 * size].view(np.float32)


@pytest.mark.parametrize("flags", [0, PRIVATE])
def test_weights_are_read_where_they_lie_unless_private(library: Library, flags: int) -> None:
    content = tiny_model(batches=(1,))
    with library.open(content, flags=flags) as model:
        before = model.sample(seed=1)
        assert np.array_equal(model.sample(seed=1), before)
        values = first_weights(content)
        values += np.float32(0.5)
        assert np.array_equal(model.sample(seed=1), before) == bool(flags)


@pytest.mark.parametrize("shift", [1, 4, 8, 32])
def test_memory_anywhere_will_do(library: Library, shift: int) -> None:
    content = tiny_model()
    with library.open(content) as model, library.open(aligned(bytes(content), shift)) as moved:
        np.testing.assert_array_equal(moved.sample(seed=1), model.sample(seed=1))


def test_a_file_is_mapped_unless_private(library: Library, shipped: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")

    def mapped() -> bool:
        return any(
            str(shipped) in line for line in Path("/proc/self/maps").read_text().splitlines()
        )

    with library.open(shipped) as model:
        assert mapped()
        wanted = model.sample(seed=4)
    assert not mapped()
    with library.open(shipped, flags=PRIVATE) as model:
        assert not mapped()
        np.testing.assert_array_equal(model.sample(seed=4), wanted)


def test_levels_are_rounded_as_in_python(library: Library) -> None:
    from sparse_ddpm.sampling import to_uint8

    with library.open(tiny_model()) as model:
        levels = model.sample(3, seed=2, levels=True)
        np.testing.assert_array_equal(levels, to_uint8(model.sample(3, seed=2)))
    assert levels.shape == (3, 8, 8, 3)
    assert len(np.unique(levels)) > 50


def test_images_do_not_depend_on_their_number_or_on_threads(library: Library) -> None:
    content = tiny_model()
    with library.open(content) as model, library.open(content, threads=3) as threaded:
        many = model.sample(37, seed=9)
        np.testing.assert_allclose(threaded.sample(37, seed=9), many, rtol=0, atol=1e-5)
        np.testing.assert_allclose(model.sample(2, seed=9, first=35), many[35:], rtol=0, atol=1e-4)
        last = model.sample(1, seed=2**64 - 1, first=2**64 - 1)
        assert np.isfinite(last).all()
        assert model.sample(0).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("batches", [(1,), (16,)])
def test_a_plan_for_another_number_works_too(library: Library, batches: tuple[int, ...]) -> None:
    with library.open(tiny_model()) as both, library.open(tiny_model(batches=batches)) as one:
        np.testing.assert_allclose(one.sample(17, seed=3), both.sample(17, seed=3), atol=1e-4)


def test_progress_and_cancelling(library: Library) -> None:
    seen: list[tuple[int, int, int, int]] = []
    states = []

    def watch(now: Progress) -> int:
        assert now.size == ctypes.sizeof(Progress)
        seen.append((now.step, now.steps, now.first, now.count))
        states.append(np.ctypeslib.as_array(now.state, (now.count, 3, 8, 8)).copy())
        return 0

    with library.open(tiny_model()) as model:
        images = model.sample(18, first=100, callback=watch)
        wanted = [(s, 4, 100, 16) for s in range(1, 5)] + [(s, 4, 116, 2) for s in range(1, 5)]
        assert seen == wanted
        np.testing.assert_array_equal(np.concatenate([states[3], states[7]]), images)
        seen.clear()
        with pytest.raises(StatusError, match="CANCELLED: the callback asked to stop"):
            model.sample(18, callback=lambda now: watch(now) or int(now.first > 0))
        assert len(seen) == 5
        np.testing.assert_array_equal(model.sample(18, first=100), images)


def test_a_callback_may_not_call_its_own_model(library: Library) -> None:
    errors = []

    def recursive(_: Progress) -> int:
        try:
            model.sample()
        except StatusError as error:
            errors.append(error.status)
        return 0

    with library.open(tiny_model()) as model:
        model.sample(callback=recursive)
    assert errors == ["INVALID"] * 4


def test_threads_may_share_a_model(library: Library) -> None:
    with library.open(tiny_model(), threads=2) as model:
        wanted = {seed: model.sample(2, seed=seed) for seed in range(4)}
        found: dict[int, list[NDArray[Any]]] = {seed: [] for seed in wanted}

        def work(seed: int) -> None:
            for _ in range(5):
                found[seed].append(model.sample(2, seed=seed))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for seed, images in wanted.items():
        assert len(found[seed]) == 5
        for image in found[seed]:
            np.testing.assert_array_equal(image, images)


FORK = """
import os, sys
from pathlib import Path
sys.path[:0] = PATHS
from c_library import Library
library = Library(Path(LIBRARY))
model = library.open(Path(MODEL), threads=2)
wanted = model.sample(seed=3).tobytes()
child = os.fork()
if child == 0:
    same = model.sample(seed=3).tobytes() == wanted
    model.close()
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
same = model.sample(seed=3).tobytes() == wanted
model.close()
sys.exit(not same or status != 0)
"""


def test_a_forked_child_samples_on(folder: Path, shipped: Path) -> None:
    names = {
        "PATHS": [str(ROOT / "tests"), str(ROOT)],
        "LIBRARY": str(folder / "libsparse_ddpm.so"),
        "MODEL": str(shipped),
    }
    code = FORK
    for name, value in names.items():
        code = code.replace(name, repr(value))
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_network_that_overflows(library: Library) -> None:
    program = odd_program()
    last = program.operations[-1]
    assert isinstance(last, Conv)
    huge = Conv("l", "i", Dense(np.full((2, 7), 3e38, np.float32)), 1, residual="x")
    operations = (*program.operations[:-1], huge)
    overflowing = Program(operations, "x", (2, 6, 6), "l", program.time)
    with (
        library.open(aligned(native_model(overflowing, tables()))) as model,
        pytest.raises(StatusError, match=r"NOT_FINITE: .* in step 0"),
    ):
        model.sample()


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"size": 4}, "INVALID"),
        ({"flags": 8}, "INVALID"),
        ({"zero": 1}, "INVALID"),
        ({"threads": -1}, "INVALID"),
        ({"threads": 1025}, "INVALID"),
        ({"memory_limit": 1000}, "LIMIT"),
        ({"work_limit": 1000}, "LIMIT"),
    ],
)
def test_options_out_of_range(library: Library, options: dict[str, int], status: str) -> None:
    with pytest.raises(StatusError, match=status):
        library.open(tiny_model(), **options)


def test_arguments_that_cannot_be_used(library: Library, tmp_path: Path) -> None:
    c, handle = library.c, ctypes.c_void_p()
    assert c.sddpm_open(None, None, ctypes.byref(handle)) == 1
    assert c.sddpm_open(b"name", None, None) == 1
    assert c.sddpm_open_memory(None, 10, None, ctypes.byref(handle)) == 1
    assert c.sddpm_get_info(None, ctypes.byref(Info(size=ctypes.sizeof(Info)))) == 1
    assert c.sddpm_sampler(None, 0, None) is None
    assert c.sddpm_metadata(None, b"dataset") is None
    c.sddpm_close(None)
    assert len({c.sddpm_error_text(status) for status in range(12)}) == 12
    assert c.sddpm_error_text(99) == c.sddpm_error_text(-1) == b"an unknown status"
    with library.open(tiny_model()) as model:
        assert c.sddpm_get_info(model.handle, ctypes.byref(Info(size=8))) == 1
        for count, out in ((1, None), (2**63, 64)):
            assert c.sddpm_sample(model.handle, None, 0, 0, count, out, CALLBACK(), None) == 1
        with pytest.raises(StatusError, match=r"INVALID: first \+ count"):
            model.sample(2, first=2**64 - 1)
        with pytest.raises(StatusError, match="INVALID: sampler: expected one of ddim-4"):
            model.sample(sampler="ddim")


def test_files_that_are_none(library: Library, tmp_path: Path) -> None:
    def status(path: Path) -> str:
        with pytest.raises(StatusError) as error:
            library.open(path)
        return str(error.value.status)

    assert status(tmp_path / "missing") == "IO"
    assert status(tmp_path) == "NOT_A_MODEL"
    assert status(Path("/dev/null")) == "NOT_A_MODEL"
    (tmp_path / "empty").touch()
    assert status(tmp_path / "empty") == "NOT_A_MODEL"
    assert status(shipped_ticket_path()) == "NOT_A_MODEL"


def test_every_damaged_byte_is_noticed(library: Library) -> None:
    """Outside of the gaps between sections, which nothing reads."""
    sound = tiny_model(batches=(1,))
    table = sound[64 : 64 + 32 * 5].view(np.uint64).reshape(5, 4)
    read = np.zeros(sound.size, bool)
    read[: 64 + 32 * 5] = True
    for _, start, size, _ in table.tolist():
        read[start : start + size] = True
    rng = np.random.default_rng(0)
    places = np.flatnonzero(read)
    statuses = set()
    for place in [*range(224), *rng.choice(places, 300).tolist()]:
        damaged = aligned(bytes(sound))
        damaged[place] ^= 1 << rng.integers(8)
        with pytest.raises(StatusError) as error:
            library.open(damaged)
        statuses.add(error.value.status)
    assert statuses == {"DAMAGED", "NOT_A_MODEL", "VERSION", "UNSUPPORTED"}
    for size in rng.integers(0, sound.size, 40):
        with pytest.raises(StatusError, match=r"DAMAGED|NOT_A_MODEL"):
            library.open(aligned(bytes(sound[:size])))
    with pytest.raises(StatusError, match="DAMAGED"):
        library.open(aligned(bytes(sound) + b"x"))


def test_default_options(library: Library) -> None:
    content, handle = tiny_model(), ctypes.c_void_p()
    status = library.c.sddpm_open_memory(
        content.ctypes.data, content.size, None, ctypes.byref(handle)
    )
    library.check(status)
    with Model(library, handle, content) as model:
        assert model.info.threads >= 1
        assert np.isfinite(model.sample()).all()
    assert ctypes.sizeof(Options) == 32
