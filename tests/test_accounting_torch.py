"""The GPU engine under torch's FLOP counter: in Triton's interpreter, or on a GPU."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from sparse_ddpm.accounting import account
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Program
from sparse_ddpm.ticket import UNetConfig, synthetic_ticket

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=3, image_size=4, groups=4, heads=2, dim_head=8)
BLOCK = UNetConfig(dim=16, dim_mults=(1,), channels=3, image_size=4, heads=1, dim_head=16)
ONE = UNetConfig(dim=4, dim_mults=(1,), channels=3, image_size=2, groups=2, heads=1, dim_head=4)
X = np.random.default_rng(0).standard_normal((3, 3, 4, 4), dtype=np.float32)


@pytest.fixture(scope="module")
def program(triton_device: Any) -> Program:
    return lower(synthetic_ticket(TINY, 0.8, "vector:4"))


def engine(program: Program, triton_dtypes: Any, kernel: str | None, *, mute: bool = True) -> Any:
    """``mute``: nothing is launched, as the interpreter takes seconds for a step."""
    from sparse_ddpm.engine.cuda import CudaEngine

    dtype = str(triton_dtypes[0]).removeprefix("torch.")
    made = CudaEngine(program, 3, dtype, kernel=kernel)
    made.set_schedule(np.array([5, 7]))
    if mute:
        for name in made._launches.steps:
            made._launches.steps[name] = [lambda: None]
        for counted in made._launches.counted.values():
            counted._launches = (lambda: None,)
    return made


def test_a_counted_step_makes_the_same_images(triton_device: Any, triton_dtypes: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x = X[..., :2, :2].copy()
    program = lower(synthetic_ticket(ONE, 0.5))
    with engine(program, triton_dtypes, "cudnn", mute=False) as made:
        plain = made.run(x, 1)
        with FlopCounterMode(display=False) as counter:
            counted = made.run(x, 1)
    assert np.array_equal(plain, counted)
    assert np.abs(plain).max() > 0.0
    assert counter.get_total_flops() > 0


@pytest.mark.parametrize("kernel", ["elements", "panels:16", "cudnn", None])
def test_a_counted_step_has_the_plan_s_flops(
    program: Program, triton_dtypes: Any, kernel: str | None
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with engine(program, triton_dtypes, kernel) as made:
        with FlopCounterMode(display=False) as counter:
            made.replay()
        found = {
            str(packet): flops for packet, flops in counter.get_flop_counts()["Global"].items()
        }
        wanted: dict[str, int] = {}
        for row, step in zip(account(made.plan), made.plan.steps, strict=True):
            kind = made._launches.counted.get(step.out)
            assert (kind is None) == (row.executed_flops == 0), row.name
            if kind is not None:
                name = kind._operation.overloadpacket
                wanted[str(name)] = wanted.get(str(name), 0) + made.plan.images * row.executed_flops
        assert found == wanted
        assert all(name.startswith("sparse_ddpm.") for name in found)
        kinds = {"elements": "element_conv", "panels:16": "panel_conv", "cudnn": "dense_conv"}
        if kernel is not None:
            assert f"sparse_ddpm.{kinds[kernel]}" in found
            assert "sparse_ddpm.attention" in found
            assert "sparse_ddpm.linear_attention" in found


def test_a_fused_block_is_counted(triton_device: Any, triton_dtypes: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with engine(lower(synthetic_ticket(BLOCK, 0.5)), triton_dtypes, None) as made:
        with FlopCounterMode(display=False) as counter:
            made.replay()
        found = {str(packet) for packet in counter.get_flop_counts()["Global"]}
        assert "sparse_ddpm.linear_block" in found


def test_samples_are_counted_step_by_step(program: Program, triton_dtypes: Any) -> None:
    """A sampler's step takes the network as `replay` does, image loading apart."""
    from torch.utils.flop_counter import FlopCounterMode

    with engine(program, triton_dtypes, None) as made:
        with FlopCounterMode(display=False) as one:
            made.replay()
        with FlopCounterMode(display=False) as three:
            for _ in range(3):
                made._launches.network()
        assert three.get_total_flops() == 3 * one.get_total_flops() > 0
        body = made._launches.network
        with FlopCounterMode(display=False):
            assert made._graph("sample", body) is body


def test_operations_on_fake_tensors() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton", reason="Triton is not installed")
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from sparse_ddpm.engine.cuda.counted import KINDS

    for kind in KINDS:
        operation = getattr(torch.ops.sparse_ddpm, kind)
        with FakeTensorMode():
            x = torch.empty(4, 2, 2, 8)
            with FlopCounterMode(display=False) as counter:
                operation(x, torch.empty(4, 2, 2, 8), 123, -1)
        assert counter.get_total_flops() == 123


def test_launches_live_as_long_as_their_engine(program: Program, triton_dtypes: Any) -> None:
    from sparse_ddpm.engine.cuda import counted

    gc.collect()
    before = len(counted._known)
    made = engine(program, triton_dtypes, None)
    assert len(counted._known) == before + len(made._launches.counted)
    del made
    gc.collect()
    assert len(counted._known) == before


def test_nobody_listens_as_a_rule() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton", reason="Triton is not installed")
    from torch.utils.flop_counter import FlopCounterMode

    from sparse_ddpm.engine.cuda.counted import listening

    assert not listening()
    with FlopCounterMode(display=False):
        assert listening()
