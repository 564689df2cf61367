"""The native library and its binding, without anything of sparse_ddpm."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sparse_ddpm_kernels import (
    ISAS,
    POISON,
    PROFILE,
    Executor,
    KernelError,
    Kind,
    Op,
    Tensor,
    available_isas,
    load,
)

SIDE = 4
PLANE = SIDE * SIDE


def tensor(index: int, channels: int = 1) -> Tensor:
    """A tensor of 4x4 pixels without halo, ``index`` planes into the arena."""
    return Tensor(index * PLANE, PLANE, SIDE, 0, channels, SIDE, SIDE, 0)


def doubling(threads: int = 1, flags: int = 0) -> Executor:
    """output = 2 * input: one 1x1 convolution with one weight, its arrays gone after creation."""
    ptr = np.array([0, 1], np.int64)
    offset, slot = np.zeros(1, np.int32), np.zeros(1, np.int32)
    value = np.full(1, 2.0, np.float32)
    conv = Op(kind=Kind.CONV, x=tensor(0), out=tensor(1), group=1, panels=1, film=-1)
    conv.panel_ptr, conv.offset = ptr.ctypes.data, offset.ctypes.data
    conv.value, conv.slot = value.ctypes.data, slot.ctypes.data
    ops = [Op(kind=Kind.LOAD, out=tensor(0)), conv, Op(kind=Kind.STORE, x=tensor(1))]
    executor = Executor(ops, arena=3 * PLANE, lanes=1, threads=threads, flags=flags)
    value[:] = np.nan
    return executor


def image() -> NDArray[np.float32]:
    return np.arange(PLANE, dtype=np.float32).reshape(1, 1, SIDE, SIDE)


@pytest.mark.parametrize("flags", [0, POISON, PROFILE, POISON | PROFILE])
@pytest.mark.parametrize("threads", [1, 3])
def test_executor_runs_and_owns_its_weights(threads: int, flags: int) -> None:
    out = np.empty_like(image())
    with doubling(threads, flags) as executor:
        gc.collect()
        for _ in range(3):
            executor.run(image(), out, None)
            assert np.array_equal(out, 2 * image())
        assert np.array_equal(executor.arena()[:PLANE], image().ravel())
        assert executor.nbytes > 0
        assert (executor.seconds().sum() > 0) == bool(flags & PROFILE)


def test_isas_are_those_of_the_platform() -> None:
    found = available_isas()
    assert found == ("neon",) or found == ("baseline", "avx2", "avx512")[: len(found)]
    assert found


@pytest.mark.parametrize("name", ISAS)
def test_isa_by_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_DDPM_ISA", name)
    if name in available_isas():
        with doubling() as executor:
            assert executor.isa == name
    else:
        with pytest.raises(KernelError, match="not one of this machine's"):
            doubling()


def test_the_widest_isa_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSE_DDPM_ISA", raising=False)
    with doubling() as executor:
        assert executor.isa == available_isas()[-1]


def test_unknown_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_DDPM_ISA", "mmx")
    with pytest.raises(KernelError, match="got 'mmx', which is unknown"):
        doubling()


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(KernelError, match="no such operation"):
        Executor([Op(kind=99)], arena=16, lanes=1, threads=1)


def test_more_memory_than_there_is() -> None:
    with pytest.raises(KernelError, match="out of memory"):
        Executor([], arena=2**58, lanes=1, threads=1)


def test_closed_executor() -> None:
    executor = doubling()
    executor.close()
    executor.close()
    with pytest.raises(KernelError, match="expected an open engine"):
        executor.arena()


def test_missing_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSE_DDPM_LIBRARY", str(tmp_path / "gone.so"))
    with pytest.raises(KernelError, match=r"gone\.so, got no such file; install a C\+\+17"):
        load()


def test_file_that_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "text.so"
    path.write_text("not a library")
    monkeypatch.setenv("SPARSE_DDPM_LIBRARY", str(path))
    with pytest.raises(KernelError, match="cannot be loaded"):
        load()


def test_library_of_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    import _ctypes

    monkeypatch.setenv("SPARSE_DDPM_LIBRARY", _ctypes.__file__)
    with pytest.raises(KernelError, match="cannot be loaded"):
        load()


def test_the_binding_has_the_librarys_layout() -> None:
    assert load().sdk_op_size() == ctypes.sizeof(Op)
