"""Bytes that are accounted for, against those that the engine takes and the file has."""

from __future__ import annotations

import ctypes
import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sparse_ddpm_kernels import POISON, Executor

from sparse_ddpm.accounting import (
    account,
    gzip_of_dense,
    lifetimes,
    live_bytes,
    moments,
    native_bytes,
    planned_bytes,
    stored_tensors,
    table_bytes,
)
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.engine.plan import DTYPES, make_plan
from sparse_ddpm.engine.precision import available_dtypes
from sparse_ddpm.lower import lower
from sparse_ddpm.program import Conv
from sparse_ddpm.program.operations import inputs_of
from sparse_ddpm.ticket import (
    PRESETS,
    Ticket,
    UNet2DConfig,
    UNetConfig,
    save_ticket,
    shipped_ticket_path,
    synthetic_ticket,
)
from sparse_ddpm.ticket.content import to_content
from sparse_ddpm.ticket.file import file_bytes, read_content

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=4, heads=2, dim_head=8)
ODD = UNetConfig(dim=12, dim_mults=(2, 1), channels=2, image_size=6, groups=3, heads=3, dim_head=5)
DIFFUSERS = UNet2DConfig(
    channels=3,
    image_size=8,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    time_dim=32,
    norm_num_groups=4,
    attn_norm_num_groups=4,
)
CASES = {
    "tiny": (TINY, 0.7, "element"),
    "odd": (ODD, 0.5, "element"),
    "odd vectors": (ODD, 0.8, "vector:8"),
    "dense": (TINY, 0.0, "element"),
    "diffusers": (DIFFUSERS, 0.6, "element"),
    "small": (PRESETS["small"], 0.95, "vector:16"),
}


def ticket(case: str) -> Ticket:
    config, sparsity, pattern = CASES[case]
    return synthetic_ticket(config, sparsity, pattern)


@pytest.mark.parametrize(
    ("batch", "dtype", "threads"),
    [
        (1, "float32", 1),
        (5, "float32", 3),
        (16, "float32", 2),
        (1, "float16", 2),
        (16, "float16", 1),
        (1, "bfloat16", 1),
        (16, "bfloat16", 2),
    ],
)
@pytest.mark.parametrize("case", CASES)
def test_the_engine_takes_what_is_planned_to_the_byte(
    case: str, batch: int, dtype: str, threads: int
) -> None:
    """Weights, scratch and moments; the engine counts them as it takes them, arena apart."""
    if dtype not in available_dtypes():
        pytest.skip(f"this machine has no {dtype}")
    with CpuEngine(lower(ticket(case)), batch, threads, dtype) as engine:
        if not engine.description.startswith("cpu avx512"):
            pytest.skip("tiles are accounted for as AVX-512's")
        assert native_bytes(engine.plan, threads) == engine._executor.nbytes


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("batch", [1, 16])
def test_the_arena_is_as_large_as_the_engines(batch: int, dtype: str) -> None:
    """The native engine fills its arena, and nothing after it, with 0xff where it is asked to."""
    if dtype not in available_dtypes():
        pytest.skip(f"this machine has no {dtype}")
    plan = make_plan(lower(ticket("tiny")), batch, dtype)
    flags = POISON | {"float32": 0, "float16": 4, "bfloat16": 12}[dtype]
    # Without operations nothing is written over what it was filled with, and nothing lies behind.
    lanes, size = plan.lanes, plan.arena.size
    with Executor([], arena=size, lanes=lanes, threads=1, flags=flags) as executor:
        x = np.zeros((1, 1, 1, 1), np.float32)
        executor.run(x, x.copy(), None)
        address = executor.arena().ctypes.data
        held = ctypes.string_at(address, plan.arena_bytes + 64)
        padding = -plan.arena_bytes % 64
        assert held[: plan.arena_bytes] == b"\xff" * plan.arena_bytes
        assert held[plan.arena_bytes + padding :].strip(b"\0") == b""
        assert executor.nbytes == padding


@pytest.mark.parametrize("case", ["tiny", "odd"])
def test_weights_begin_where_the_arena_ends(case: str) -> None:
    """So it is with a whole program: its first array follows, and the arena is no larger."""
    with CpuEngine(lower(ticket(case)), 1, 1) as engine:
        plan = engine.plan
        step = next(step for step in plan.steps if isinstance(step.operation, Conv))
        assert step.copies == 0  # their lists would come first
        first = plan.panels(step).ptr.tobytes()
        held = ctypes.string_at(engine._executor.arena().ctypes.data, plan.arena_bytes + len(first))
        assert held[plan.arena_bytes :] == first


def test_the_arena_is_used_to_its_end() -> None:
    plan = make_plan(lower(ticket("small")), 16)
    found = lifetimes(plan)
    assert max(item.start + item.size for item in found) == plan.arena_bytes
    assert max(live_bytes(plan)) <= plan.arena_bytes
    assert len(live_bytes(plan)) == len(moments(plan)) == len(plan.program.operations) + 2
    for item in found:
        assert 0 <= item.first <= item.last < len(moments(plan))


def test_what_lives_is_what_later_steps_read() -> None:
    """At every moment the values that are still to be read lie in a living buffer."""
    plan = make_plan(lower(ticket("odd")), 1)
    found = {item.name: item for item in lifetimes(plan)}
    names = moments(plan)
    for index, step in enumerate(plan.steps):
        made = names.index(step.operation.out)
        for later in plan.steps[index + 1 :]:
            reads = {name for operation in later.operations for name in inputs_of(operation)}
            if step.operation.out in reads:
                buffer = found[plan.arena.placements[step.operation.out].buffer]
                assert buffer.first <= made <= names.index(later.operation.out) <= buffer.last


@pytest.mark.parametrize("batch", [2, 16])
def test_gpu_buffers(batch: int) -> None:
    pytest.importorskip("triton", reason="the plan needs Triton's layouts")
    from sparse_ddpm.engine.cuda.plan import make_cuda_plan

    plan = make_cuda_plan(lower(ticket("small")), batch)
    found = lifetimes(plan)
    assert max(item.start + item.size for item in found) == plan.arena_bytes
    assert max(live_bytes(plan)) <= plan.arena_bytes
    for a in found:
        for b in found:
            apart = a.start + a.size <= b.start or b.start + b.size <= a.start
            assert a is b or apart or a.last < b.first or b.last < a.first, (a, b)
    for row in account(plan):
        assert row.executed_flops >= row.surviving_flops
        assert row.runs in (None, "sparse", "dense")
        if row.runs is not None:
            assert row.planned_value_bytes > 0
            assert row.break_even_density is not None


def test_planned_values_and_offsets() -> None:
    plan = make_plan(lower(ticket("odd")), 1)
    for step in plan.steps:
        if not isinstance(step.operation, Conv) or step.block is not None:
            continue
        panels, found = plan.panels(step), planned_bytes(plan, step)
        assert found.values == panels.values.nbytes
        assert found.offsets == plan.offsets(step, panels).nbytes
        assert found.rest >= panels.ptr.nbytes + 2 * panels.rows.nbytes
        assert found.weights == found.values + found.offsets + found.rest


def test_the_time_table() -> None:
    with CpuEngine(lower(ticket("odd")), 1, 1) as engine:
        engine.set_schedule(np.arange(7))
        assert table_bytes(engine.plan, 7) == engine._table.nbytes


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("case", ["tiny", "odd vectors", "dense"])
def test_bytes_of_the_file(case: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    save_ticket(ticket(case), path)
    assert file_bytes(ticket(case), suffix) == path.stat().st_size
    found = stored_tensors(read_content(path))
    assert found == stored_tensors(to_content(ticket(case)))
    tensors = sum(item.size for item in found)
    if suffix == ".pt":
        with zipfile.ZipFile(path) as archive:
            stored = sum(i.file_size for i in archive.infolist() if "/data/" in i.filename)
    else:
        header = int.from_bytes(path.read_bytes()[:8], "little")
        stored = path.stat().st_size - 8 - header
        entries = json.loads(path.read_bytes()[8 : 8 + header])
        entries.pop("__metadata__", None)
        stored = sum(end - begin for begin, end in (e["data_offsets"] for e in entries.values()))
    assert tensors == stored
    assert tensors < path.stat().st_size
    made = ticket(case)
    for item in found:
        survivors = made.survivors(item.name)
        assert item.values == survivors * np.dtype(item.dtype).itemsize
        assert item.dense == 4 * made.weights[item.name].size
        assert (item.places == 0) == (item.encoding == "dense")


def test_the_shipped_file() -> None:
    path = shipped_ticket_path()
    found = stored_tensors(read_content(path))
    with zipfile.ZipFile(path) as archive:
        stored = sum(i.file_size for i in archive.infolist() if "/data/" in i.filename)
    assert sum(item.size for item in found) == stored


def test_gzip_of_dense_is_gzips() -> None:
    made = ticket("tiny")
    plain = b"".join(weight.tobytes() for weight in made.weights.values())
    ours, theirs = gzip_of_dense(made), len(gzip.compress(plain, 6, mtime=0))
    assert ours == theirs
    assert ours < len(plain)


GROWTH = """
import ctypes, gc
from pathlib import Path
import numpy as np
from sparse_ddpm.accounting import process_bytes
from sparse_ddpm.engine.cpu import CpuEngine
from sparse_ddpm.lower import lower
from sparse_ddpm.ticket import PRESETS, synthetic_ticket

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what planning freed is no memory of sampling
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])

program = lower(synthetic_ticket(PRESETS["paper"], 0.97))
batch, steps = 16, 2
with CpuEngine(lower(synthetic_ticket(PRESETS["small"], 0.99)), 1, 1) as warm:
    warm.set_schedule(np.arange(2.0))
    warm.run(np.zeros((1, 1, 32, 32), np.float32), 0)
before = resident()
engine = CpuEngine(program, batch, 1)
engine.set_schedule(np.arange(float(steps)))
x = np.zeros((batch, 3, 32, 32), np.float32)
for step in range(steps):
    x = engine.run(x, step)
print(resident() - before, process_bytes(engine.plan, 1, steps))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its memory")
def test_a_process_grows_as_predicted() -> None:
    found = subprocess.run(
        [sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True
    )
    grown, predicted = map(int, found.stdout.split())
    assert abs(predicted / grown - 1.0) < 0.1, (grown, predicted)
