"""The library without Python at work: memory, threads, forks, options and damaged models."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_library import (
    CALLBACK,
    PRIVATE,
    Info,
    Library,
    Model,
    Options,
    Progress,
    StatusError,
    aligned,
)
from c_models import odd_program, tables, tiny_model
from native import ROOT
from numpy.typing import NDArray

from sparse_ddpm.formats import Dense
from sparse_ddpm.native import native_model
from sparse_ddpm.program import (
    Conv,
    Program,
)
from sparse_ddpm.ticket import shipped_ticket_path


@pytest.fixture(autouse=True)
def same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_DDPM_ISA", "baseline")


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
def test_weights_are_read_where_they_lie_unless_private(c_library: Library, flags: int) -> None:
    content = tiny_model(batches=(1,))
    with c_library.open(content, flags=flags) as model:
        before = model.sample(seed=1)
        assert np.array_equal(model.sample(seed=1), before)
        values = first_weights(content)
        values += np.float32(0.5)
        assert np.array_equal(model.sample(seed=1), before) == bool(flags)


@pytest.mark.parametrize("shift", [1, 4, 8, 32])
def test_memory_anywhere_will_do(c_library: Library, shift: int) -> None:
    content = tiny_model()
    with c_library.open(content) as model, c_library.open(aligned(bytes(content), shift)) as moved:
        np.testing.assert_array_equal(moved.sample(seed=1), model.sample(seed=1))


def test_a_file_is_mapped_unless_private(c_library: Library, shipped_model: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")

    def mapped() -> bool:
        return any(
            str(shipped_model) in line for line in Path("/proc/self/maps").read_text().splitlines()
        )

    with c_library.open(shipped_model) as model:
        assert mapped()
        wanted = model.sample(seed=4)
    assert not mapped()
    with c_library.open(shipped_model, flags=PRIVATE) as model:
        assert not mapped()
        np.testing.assert_array_equal(model.sample(seed=4), wanted)


def test_levels_are_rounded_as_in_python(c_library: Library) -> None:
    from sparse_ddpm.sampling import to_uint8

    with c_library.open(tiny_model()) as model:
        levels = model.sample(3, seed=2, levels=True)
        np.testing.assert_array_equal(levels, to_uint8(model.sample(3, seed=2)))
    assert levels.shape == (3, 8, 8, 3)
    assert len(np.unique(levels)) > 50


def test_images_do_not_depend_on_their_number_or_on_threads(c_library: Library) -> None:
    content = tiny_model()
    with c_library.open(content) as model, c_library.open(content, threads=3) as threaded:
        many = model.sample(37, seed=9)
        np.testing.assert_allclose(threaded.sample(37, seed=9), many, rtol=0, atol=1e-5)
        np.testing.assert_allclose(model.sample(2, seed=9, first=35), many[35:], rtol=0, atol=1e-4)
        last = model.sample(1, seed=2**64 - 1, first=2**64 - 1)
        assert np.isfinite(last).all()
        assert model.sample(0).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("batches", [(1,), (16,)])
def test_a_plan_for_another_number_works_too(c_library: Library, batches: tuple[int, ...]) -> None:
    with c_library.open(tiny_model()) as both, c_library.open(tiny_model(batches=batches)) as one:
        np.testing.assert_allclose(one.sample(17, seed=3), both.sample(17, seed=3), atol=1e-4)


def test_progress_and_cancelling(c_library: Library) -> None:
    seen: list[tuple[int, int, int, int]] = []
    states = []

    def watch(now: Progress) -> int:
        assert now.size == ctypes.sizeof(Progress)
        seen.append((now.step, now.steps, now.first, now.count))
        states.append(np.ctypeslib.as_array(now.state, (now.count, 3, 8, 8)).copy())
        return 0

    with c_library.open(tiny_model()) as model:
        images = model.sample(18, first=100, callback=watch)
        wanted = [(s, 4, 100, 16) for s in range(1, 5)] + [(s, 4, 116, 2) for s in range(1, 5)]
        assert seen == wanted
        np.testing.assert_array_equal(np.concatenate([states[3], states[7]]), images)
        seen.clear()
        with pytest.raises(StatusError, match="CANCELLED: the callback asked to stop"):
            model.sample(18, callback=lambda now: watch(now) or int(now.first > 0))
        assert len(seen) == 5
        np.testing.assert_array_equal(model.sample(18, first=100), images)


def test_a_callback_may_not_call_its_own_model(c_library: Library) -> None:
    errors = []

    def recursive(_: Progress) -> int:
        try:
            model.sample()
        except StatusError as error:
            errors.append(error.status)
        return 0

    with c_library.open(tiny_model()) as model:
        model.sample(callback=recursive)
    assert errors == ["INVALID"] * 4


def test_threads_may_share_a_model(c_library: Library) -> None:
    with c_library.open(tiny_model(), threads=2) as model:
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


def test_a_forked_child_samples_on(c_folder: Path, shipped_model: Path) -> None:
    names = {
        "PATHS": [str(ROOT / "tests"), str(ROOT)],
        "LIBRARY": str(c_folder / "libsparse_ddpm.so"),
        "MODEL": str(shipped_model),
    }
    code = FORK
    for name, value in names.items():
        code = code.replace(name, repr(value))
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_network_that_overflows(c_library: Library) -> None:
    program = odd_program()
    last = program.operations[-1]
    assert isinstance(last, Conv)
    huge = Conv("l", "i", Dense(np.full((2, 7), 3e38, np.float32)), 1, residual="x")
    operations = (*program.operations[:-1], huge)
    overflowing = Program(operations, "x", (2, 6, 6), "l", program.time)
    with (
        c_library.open(aligned(native_model(overflowing, tables()))) as model,
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
def test_options_out_of_range(c_library: Library, options: dict[str, int], status: str) -> None:
    with pytest.raises(StatusError, match=status):
        c_library.open(tiny_model(), **options)


def test_arguments_that_cannot_be_used(c_library: Library, tmp_path: Path) -> None:
    c, handle = c_library.c, ctypes.c_void_p()
    assert c.sddpm_open(None, None, ctypes.byref(handle)) == 1
    assert c.sddpm_open(b"name", None, None) == 1
    assert c.sddpm_open_memory(None, 10, None, ctypes.byref(handle)) == 1
    assert c.sddpm_get_info(None, ctypes.byref(Info(size=ctypes.sizeof(Info)))) == 1
    assert c.sddpm_sampler(None, 0, None) is None
    assert c.sddpm_metadata(None, b"dataset") is None
    c.sddpm_close(None)
    assert len({c.sddpm_error_text(status) for status in range(12)}) == 12
    assert c.sddpm_error_text(99) == c.sddpm_error_text(-1) == b"an unknown status"
    with c_library.open(tiny_model()) as model:
        assert c.sddpm_get_info(model.handle, ctypes.byref(Info(size=8))) == 1
        for count, out in ((1, None), (2**63, 64)):
            assert c.sddpm_sample(model.handle, None, 0, 0, count, out, CALLBACK(), None) == 1
        with pytest.raises(StatusError, match=r"INVALID: first \+ count"):
            model.sample(2, first=2**64 - 1)
        with pytest.raises(StatusError, match="INVALID: sampler: expected one of ddim-4"):
            model.sample(sampler="ddim")


def test_files_that_are_none(c_library: Library, tmp_path: Path) -> None:
    def status(path: Path) -> str:
        with pytest.raises(StatusError) as error:
            c_library.open(path)
        return str(error.value.status)

    assert status(tmp_path / "missing") == "IO"
    assert status(tmp_path) == "NOT_A_MODEL"
    assert status(Path("/dev/null")) == "NOT_A_MODEL"
    (tmp_path / "empty").touch()
    assert status(tmp_path / "empty") == "NOT_A_MODEL"
    assert status(shipped_ticket_path()) == "NOT_A_MODEL"


def test_every_damaged_byte_is_noticed(c_library: Library) -> None:
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
            c_library.open(damaged)
        statuses.add(error.value.status)
    assert statuses == {"DAMAGED", "NOT_A_MODEL", "VERSION", "UNSUPPORTED"}
    for size in rng.integers(0, sound.size, 40):
        with pytest.raises(StatusError, match=r"DAMAGED|NOT_A_MODEL"):
            c_library.open(aligned(bytes(sound[:size])))
    with pytest.raises(StatusError, match="DAMAGED"):
        c_library.open(aligned(bytes(sound) + b"x"))


def test_default_options(c_library: Library) -> None:
    content, handle = tiny_model(), ctypes.c_void_p()
    status = c_library.c.sddpm_open_memory(
        content.ctypes.data, content.size, None, ctypes.byref(handle)
    )
    c_library.check(status)
    with Model(c_library, handle, content) as model:
        assert model.info.threads >= 1
        assert np.isfinite(model.sample()).all()
    assert ctypes.sizeof(Options) == 32
