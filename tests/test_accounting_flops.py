"""FLOP counts against torch's counter and against multiplications that were counted one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sparse_ddpm.accounting import (
    OperationFlops,
    account,
    executed_images,
    operation_flops,
    program_flops,
    time_flops,
)
from sparse_ddpm.engine import reference
from sparse_ddpm.engine.plan import Plan, make_plan
from sparse_ddpm.engine.reference import ReferenceEngine
from sparse_ddpm.formats import BSR, CSR, Dense
from sparse_ddpm.lower import fuse_residuals, lower, lower_unet
from sparse_ddpm.program import Attention, Conv, Program
from sparse_ddpm.ticket import PRESETS, Ticket, UNetConfig, synthetic_ticket

ODD = {
    "one level, five channels": UNetConfig(
        dim=6, dim_mults=(1,), channels=5, image_size=7, groups=3, heads=1, dim_head=5
    ),
    "uneven widths": UNetConfig(
        dim=10, dim_mults=(3, 1), channels=1, image_size=6, groups=5, heads=3, dim_head=7
    ),
    "four levels, one pixel in the middle": UNetConfig(
        dim=4, dim_mults=(1, 2, 2, 3), channels=2, image_size=8, groups=2, heads=2, dim_head=4
    ),
}
MODELS = {**PRESETS, **ODD}
KINDS = {"Conv": "convolution", "LinearAttention": "bmm", "Attention": "bmm"}
"""Torch's operation; softmax attention is two products where no device has a kernel for it."""


def ticket(name: str, sparsity: float = 0.9) -> Ticket:
    return synthetic_ticket(MODELS[name], sparsity)


def attention_flops(operation: Attention, program: Program) -> int:
    """What torch's counter has for its attention kernels."""
    import torch
    from torch.utils.flop_counter import flop_registry

    count = flop_registry[torch.ops.aten._scaled_dot_product_flash_attention]
    _, height, width = program.shapes[operation.qkv]
    shape = (1, operation.heads, height * width, operation.dim_head)
    q = torch.empty(shape, device="meta")
    return int(count(q, q, q, out_val=q))


@pytest.mark.parametrize("name", MODELS)
def test_dense_flops_are_torchs_operation_by_operation(name: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from sparse_ddpm.model.unet import UNet

    config = MODELS[name]
    # Before residuals are fused, whose operations then have the name of a whole block.
    program = lower_unet(ticket(name, 0.99))
    with torch.device("meta"), torch.no_grad():  # shapes are enough: nothing is computed
        model = UNet(config)
        x = torch.zeros(1, config.channels, config.image_size, config.image_size)
        with FlopCounterMode(display=False) as counter:
            model(x, torch.zeros(1))
    found = counter.get_flop_counts()
    counted = 0
    for operation in program.operations:
        ours = operation_flops(operation, program.shapes).dense
        theirs = found.get(f"UNet.{operation.out}", {})
        if ours == 0:
            continue
        assert sum(theirs.values()) == ours, operation.out
        (packet,) = theirs
        assert KINDS[type(operation).__name__] in str(packet), operation.out
        if isinstance(operation, Attention):
            assert ours == attention_flops(operation, program)
        counted += ours
    films = sum(
        sum(theirs.values()) for module, theirs in found.items() if module.endswith(".film")
    )
    time = time_flops(program).dense
    assert time == sum(found["UNet.time"].values()) + films
    assert counted == program_flops(program).dense == program_flops(fuse_residuals(program)).dense
    assert counted + time == counter.get_total_flops()


class Counted(np.ndarray[Any, np.dtype[Any]]):
    """A weight that counts the products of its stored entries, which are those that are not 0."""

    products = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(each) for each in inputs]
        if ufunc is np.matmul:
            weight, x = plain
            Counted.products += len(x) * np.count_nonzero(weight) * x.shape[-1]
        return getattr(ufunc, method)(*plain, **options)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The reference engine, instrumented: every product of a convolution and of attention."""

    def dense(self: Any) -> Any:
        # A stored weight may be 0.0, and still is one.
        return np.where(self.stored(), 1.0, 0.0).view(Counted)

    einsum = np.einsum

    def counted(subscripts: str, *arrays: Any) -> Any:
        sizes: dict[str, int] = {}
        for letters, array in zip(subscripts.split("->")[0].split(","), arrays, strict=True):
            sizes.update(zip(letters, array.shape, strict=True))
        Counted.products += math.prod(sizes.values())
        return einsum(subscripts, *arrays)

    for form in (Dense, CSR, BSR):
        monkeypatch.setattr(form, "to_dense", dense)
    monkeypatch.setattr(reference.np, "einsum", counted)
    Counted.products = 0
    yield
    Counted.products = 0


def counted_operations(program: Program, images: int) -> dict[str, int]:
    """Products of every operation on ``images`` images."""
    values = {name: np.zeros((images, *shape)) for name, shape in program.shapes.items()}
    found = {}
    film = np.zeros(program.time.columns)
    for operation in program.operations:
        before = Counted.products
        reference.evaluate(operation, values, film)
        found[operation.out] = Counted.products - before
    return found


@pytest.mark.parametrize("pattern", ["element", "vector:4", "block:3x2"])
@pytest.mark.parametrize("name", ODD)
def test_surviving_flops_are_the_products_of_the_reference(
    name: str, pattern: str, counting: None
) -> None:
    program = lower(synthetic_ticket(MODELS[name], 0.7, pattern))
    for images in (1, 3):
        found = counted_operations(program, images)
        for operation in program.operations:
            flops = operation_flops(operation, program.shapes)
            assert 2 * found[operation.out] == images * flops.surviving, operation.out
        assert sum(found.values()) > 0


def test_the_count_of_products_can_fail(counting: None) -> None:
    program = lower(ticket("uneven widths"))
    found = counted_operations(program, 1)
    conv = next(op for op in program.operations if isinstance(op, Conv))
    flops = operation_flops(conv, program.shapes)
    assert 2 * found[conv.out] != flops.surviving + 2


def test_a_whole_step_of_the_reference_is_counted_too(counting: None) -> None:
    program = lower(ticket("uneven widths"))
    engine = ReferenceEngine(program)
    x = np.zeros((1, *program.input_shape), np.float32)
    # The time table multiplies, too; here it is not part of a step.
    engine._table = np.zeros((1, program.time.columns))
    engine.run(x, 0)
    assert 2 * Counted.products == program_flops(program).surviving


def plan(name: str, batch: int, sparsity: float = 0.9, pattern: str = "element") -> Plan:
    return make_plan(lower(synthetic_ticket(MODELS[name], sparsity, pattern)), batch)


@pytest.mark.parametrize("batch", [1, 3, 13, 16])
@pytest.mark.parametrize("name", ODD)
def test_executed_flops_include_what_fills(name: str, batch: int) -> None:
    found = plan(name, batch)
    rows = account(found)
    for row, step in zip(rows, found.steps, strict=True):
        if row.kind == "LinearBlock":
            continue
        assert row.executed_flops >= row.surviving_flops, row.name
        if isinstance(step.operation, Conv):
            # What is left after halo and rest of a vector are the panels' entries.
            _, height, width = row.shape
            assert (
                row.executed_flops >= 2 * step.entries * step.group * height * width == step.flops
            )
    assert executed_images(found) == (16 if batch >= 13 else batch)


def test_executed_flops_of_known_tilings() -> None:
    """Counted by hand."""
    found = plan("one level, five channels", 1, sparsity=0.0)
    rows = {row.name: row for row in account(found)}
    conv = next(step for step in found.steps if step.operation.out == "final_conv")
    assert found.arena.placements["final_conv"].row_stride == 7
    # A 1x1 convolution on an image without halo: 49 pixels in vectors are 64.
    assert rows["final_conv"].executed_flops == 2 * conv.entries * conv.group * 64
    init = next(step for step in found.steps if step.operation.out == "init_conv")
    stride = found.arena.placements["x"].row_stride
    assert stride == 7 + 3
    assert init.copies == 0
    # 7x7 without copies: six rows of 10 and one of 7 are 67 pixels, in vectors 80.
    assert rows["init_conv"].executed_flops == 2 * init.entries * init.group * 80


def test_dense_layers_execute_all_columns() -> None:
    found = plan("uneven widths", 16, sparsity=0.0)
    for row, step in zip(account(found), found.steps, strict=True):
        if isinstance(step.operation, Conv) and step.block is None:
            assert row.runs == "dense"
            rows = step.operation.weight.shape[0]
            padded = -(-rows // step.group) * step.group
            assert row.executed_flops * rows == row.dense_flops * padded
            assert row.density == 1.0
            assert row.break_even_density is not None
            assert row.break_even_density <= 1.0


def test_break_even_parts_sparse_from_dense() -> None:
    """Random masks a little below and above a layer's break-even density run as it says."""
    name = "down.1.block1.conv1.weight"
    first = plan("small", 16)
    row = next(r for r in account(first) if r.name == name.removesuffix(".weight"))
    assert row.break_even_density is not None
    assert 0.3 < row.break_even_density < 0.95
    for density, runs in (
        (row.break_even_density - 0.05, "sparse"),
        (row.break_even_density + 0.05, "dense"),
    ):
        rng = np.random.default_rng(3)
        base = synthetic_ticket(MODELS["small"], 0.9)
        mask = rng.random(base.weights[name].shape) < density
        weight = np.where(mask, rng.standard_normal(mask.shape), 0.0).astype(np.float32)
        made = Ticket(
            base.architecture,
            base.diffusion,
            base.provenance,
            {**base.weights, name: weight},
            {**base.masks, name: mask},
        )
        rows = {r.name: r for r in account(make_plan(lower(made), 16))}
        assert rows[row.name].runs == runs, (density, rows[row.name].reason)


def test_flops_add() -> None:
    assert OperationFlops(3, 2) + OperationFlops(4, 1) == OperationFlops(7, 3)
