"""The machine's limits are measured, and ordered as in every machine."""

from __future__ import annotations

import pytest
from sparse_ddpm_kernels import KernelError, available_isas, ceiling, default_isa

from sparse_ddpm.bench.ceilings import Ceilings, Level


def test_every_instruction_set_has_a_peak() -> None:
    for isa in available_isas():
        assert ceiling.peak_flops(isa) > 1e8


@pytest.mark.parametrize("copy", [False, True])
def test_bandwidth(copy: bool) -> None:
    for isa in available_isas():
        assert ceiling.bandwidth(16 << 10, isa, copy=copy) > 1e8


def test_odd_sizes() -> None:
    assert ceiling.bandwidth(4_999) > 1e7
    with pytest.raises(KernelError, match="expected 1024 bytes or more"):
        ceiling.bandwidth(1_023)


def test_unknown_instruction_set() -> None:
    with pytest.raises(KernelError, match="isa: expected one of"):
        ceiling.peak_flops("mmx")


def test_forced_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    first = available_isas()[0]
    monkeypatch.setenv("SPARSE_DDPM_ISA", first)
    assert default_isa() == first
    monkeypatch.delenv("SPARSE_DDPM_ISA")
    assert default_isa() == available_isas()[-1]


def test_level_of_a_layer() -> None:
    levels = (Level("L1", 10, 9e9), Level("L2", 100, 5e9), Level("memory", 0, 1e9))
    found = Ceilings("avx2", 1, 1e9, levels)
    assert [found.level(size).name for size in (1, 10, 100, 101)] == ["L2", "L2", "L2", "memory"]
