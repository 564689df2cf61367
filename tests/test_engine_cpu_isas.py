"""Whole U-Nets on every instruction set this machine has: images of no whole vector, any batch."""

from __future__ import annotations

import numpy as np
import pytest
from engine_rig import isas

from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Program
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket

BATCHES = (1, 3, 7, 16, 17)
TIMESTEPS = np.array([0, 500, 999])
CONFIGS = {
    # 12, 6 and 3 pixels a row; 5 and 20 channels a head and a level.
    "odd": UNetConfig(
        dim=10, dim_mults=(1, 2, 2), channels=1, image_size=12, groups=5, heads=3, dim_head=5
    ),
    # 16 pixels a row, down to one pixel.
    "deep": UNetConfig(
        dim=8, dim_mults=(1, 1, 2, 1, 2), channels=3, image_size=16, groups=2, heads=1, dim_head=16
    ),
}
TICKETS = [
    ("odd", 0.0, "element"),
    ("odd", 0.9, "element"),
    ("odd", 0.7, "vector:4"),
    ("deep", 0.95, "element"),
    ("deep", 0.8, "vector:16"),
    ("deep", 0.6, "block:2x4"),
]


@pytest.fixture(
    scope="module", params=TICKETS, ids=lambda ticket: "-".join(str(part) for part in ticket)
)
def program(request: pytest.FixtureRequest) -> Program:
    config, sparsity, pattern = request.param
    return lower(synthetic_ticket(CONFIGS[config], sparsity, pattern, seed=3))


@pytest.mark.parametrize("isa", isas())
def test_whole_networks(program: Program, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_DDPM_ISA", isa)
    monkeypatch.setenv("SPARSE_DDPM_POISON", "1")
    shape = program.shapes[program.input]
    x = np.random.default_rng(4).standard_normal((max(BATCHES), *shape), dtype=np.float32)
    reference = ReferenceEngine(program, len(x))
    reference.set_schedule(TIMESTEPS)
    wanted = reference.run(x, 1)
    for index, batch in enumerate(BATCHES):
        threads = 1 + index % 2
        with CpuEngine(program, batch, threads) as engine:
            assert isa in engine.description
            engine.set_schedule(TIMESTEPS)
            got = engine.run(x[:batch], 1)
        error = np.abs(got - wanted[:batch]).max() / np.abs(wanted).max()
        assert error < 5e-6, (batch, threads, error)
