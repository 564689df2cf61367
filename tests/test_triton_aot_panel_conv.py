"""What compilers make of the panel convolution: tensor cores, buffers, copies, registers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from sparse_ddpm_kernels.triton.panel_tiles import PanelTiles
from triton_aot import Compiled, Kernel, compile_kernels

MODULE = "sparse_ddpm_kernels.triton.panel_kernels"
SIZES = (
    "channels",
    "panels",
    "images8",
    "x_row8",
    "out_plane8",
    "out_row8",
    "residual_plane8",
    "residual_row8",
    "table_row",
    "gamma",
    "beta",
)
OWN = ("x", "start", "first_row", "phases", "offset", "value", "panels", "x_row8")


def kernel(
    tiles: PanelTiles,
    group: int = 16,
    *,
    dtype: str = "bf16",
    side: int = 32,
    block_channels: int = 0,
    group_channels: int = 0,
    residual: bool = False,
    scale: int = 1,
    overlap: bool = False,
    target: str = "sm_90",
) -> Kernel:
    pointers = {
        "x": dtype,
        "start": "i32",
        "first_row": "i32",
        "phases": "i32" if scale > 1 else None,
        "offset": "i32",
        "value": dtype,
        "out": dtype,
        "residual": dtype if residual else None,
        "bias": "fp32",
        "partial": "fp32" if tiles.splits > 1 else None,
        "moments": "fp32" if block_channels else None,
        "table": "fp32" if group_channels else None,
        "step": "i32" if group_channels else None,
    }
    present = {name: f"*{kind}" for name, kind in pointers.items() if kind}
    return Kernel(
        module=MODULE,
        name="panel_conv_kernel",
        signature={**present, **dict.fromkeys(SIZES, "i32"), "eps": "fp32"},
        constants={
            **{name: None for name, kind in pointers.items() if kind is None},
            "G": group,
            "PIXELS": tiles.pixels,
            "NB": tiles.nb,
            "BLOCK_K": tiles.block_k,
            "WIDTH": side,
            "COUNT": side * side,
            "X_STEP": 1,
            "OUT_STEP": scale,
            "SPLITS": tiles.splits,
            "HOLD": tiles.holds_weights(group),
            "BLOCK_CHANNELS": block_channels,
            "GROUP_CHANNELS": group_channels,
            "SILU": group_channels > 0,
            "PRECISION": "ieee" if dtype == "fp32" else "tf32",
            "OVERLAP": overlap,
        },
        divisible=tuple(present),
        target=target,
        warps=tiles.warps,
        stages=tiles.stages,
        options={"launch_pdl": True} if overlap else {},
    )


def sum_kernel(tiles: PanelTiles, group: int = 16, **options: Any) -> Kernel:
    """The kernel that sums up splits, as `panel_conv` launches it."""
    conv = kernel(tiles, group, **options)
    constants = {k: v for k, v in conv.constants.items() if k not in OWN}
    for name in ("BLOCK_K", "X_STEP", "OUT_STEP", "HOLD", "PRECISION"):
        del constants[name]
    signature = {k: v for k, v in conv.signature.items() if k not in OWN}
    return replace(
        conv,
        name="panel_sum_kernel",
        signature=signature,
        constants=constants,
        divisible=tuple(name for name in conv.divisible if name in signature),
        warps=tiles.sum_warps(group),
        stages=3,
    )


BASE = PanelTiles(8, 16, 64, stages=4)
SMALL = PanelTiles(16, 8, 64, stages=4)
KERNELS = {
    "bf16": kernel(BASE),
    "fp16": kernel(BASE, dtype="fp16"),
    "short steps": kernel(PanelTiles(8, 16, 16, stages=4)),
    "steps of 32": kernel(PanelTiles(8, 16, 32)),
    "least": kernel(PanelTiles(8, 8, 16, stages=2)),
    "G 32": kernel(BASE, 32),
    "G 64": kernel(BASE, 64),
    "dense": kernel(PanelTiles(4, 64, 64, warps=8), 128),
    "residual": kernel(BASE, residual=True),
    "moments": kernel(BASE, residual=True, block_channels=8),
    "moments of G 64": kernel(BASE, 64, block_channels=64),
    "odd sides": kernel(PanelTiles(16, 8, 64, stages=4), side=7, residual=True),
    "split": kernel(replace(BASE, splits=4), scale=2),
    "upsampled": kernel(BASE, scale=2, residual=True),
    "overlap": kernel(BASE, overlap=True),
    "norm of 4x4": kernel(SMALL, side=4, group_channels=16),
    "norm of 4x4, G 64": kernel(replace(SMALL, warps=8), 64, side=4, group_channels=64),
    "norm of 8x8": kernel(
        PanelTiles(64, 8, 32, warps=8), 32, side=8, group_channels=32, residual=True
    ),
    "norm of 16x16": kernel(
        PanelTiles(256, 8, 16, warps=16), side=16, group_channels=16, residual=True
    ),
}
SUMS = {
    "sum": sum_kernel(replace(BASE, splits=8), residual=True),
    "sum, moments": sum_kernel(replace(BASE, splits=4), block_channels=8),
    "sum, norm": sum_kernel(replace(SMALL, splits=4), 64, side=4, group_channels=64),
}
OTHERS = {
    f"{target}, {name}": replace(built, target=target)
    for target in ("sm_80", "sm_100", "gfx942")
    for name, built in {
        "moments": kernel(replace(BASE, stages=2, splits=1), residual=True, block_channels=8),
        "norm": KERNELS["norm of 4x4"],
        "sum": SUMS["sum, moments"],
    }.items()
}
REGISTERS = {
    "bf16": 56,
    "fp16": 56,
    "short steps": 48,
    "G 32": 80,
    "G 64": 128,
    "dense": 208,
    "residual": 64,
    "moments": 64,
    "norm of 4x4": 64,
    "norm of 4x4, G 64": 128,
    "norm of 8x8": 128,
    "norm of 16x16": 128,
}
"""At most so many, 2048 positions of 16 channels being 64 sums a thread of 16 warps."""


@pytest.fixture(scope="module")
def compiled() -> dict[str, Compiled]:
    """All of them, in one process."""
    all_kernels = KERNELS | SUMS | OTHERS
    return dict(zip(all_kernels, compile_kernels(*all_kernels.values()), strict=True))


def loop(ptx: str) -> str:
    """The longest stretch between a label and a jump back to it."""
    labels = {m[1]: m.start() for m in re.finditer(r"^(\$L__BB\S+):", ptx, re.M)}
    jumps = re.finditer(r"bra(?:\.uni)?\s+(\$L__BB\S+);", ptx)
    return max((ptx[labels[m[1]] : m.start()] for m in jumps if m[1] in labels), key=len)


@pytest.mark.parametrize("name", KERNELS)
def test_the_loop_feeds_tensor_cores(name: str, compiled: dict[str, Compiled]) -> None:
    """wgmma for every 64 x 16 of a K-step, 16-byte asynchronous copies, and no other loads but of
    the offsets (and of weights that are too few to copy)."""
    wanted, got = KERNELS[name], compiled[name]
    group, block_k = wanted.constants["G"], wanted.constants["BLOCK_K"]
    block = wanted.constants["PIXELS"] * wanted.constants["NB"]
    body = loop(got.ptx)
    groups = wanted.warps // 4
    across = min(groups, block // 64)
    kind = "f16" if "*fp16" in wanted.signature.values() else "bf16"
    shape = f"m64n{group // (groups // across)}k16.f32.{kind}.{kind}"
    products = re.findall(r"wgmma\.mma_async\.sync\.aligned\.(m64\S+)", body)
    assert products == [shape] * (block // 64 // across * (block_k // 16))
    threads = 32 * wanted.warps
    pixels = block * block_k // (8 * threads)
    copies = re.findall(r"cp\.async\.c[ga]\.shared\.global .*?, (\w+), ", body)
    hold = wanted.constants["HOLD"]
    each = min(16, block_k * group * 2 // threads)
    weights = [] if hold else [each] * max(1, block_k * group * 2 // (threads * 16))
    assert sorted(int(size, 16) for size in copies) == sorted([16] * pixels + weights)
    assert body.count("ld.global") == -(-block_k * block // 8 // threads) + hold
    assert "ld.shared" not in body


@pytest.mark.parametrize("name", KERNELS)
def test_every_stage_has_its_buffers(name: str, compiled: dict[str, Compiled]) -> None:
    """A collapsed pipeline would have two, or one."""
    wanted, got = KERNELS[name].constants, compiled[name]
    block, block_k = wanted["PIXELS"] * wanted["NB"], wanted["BLOCK_K"]
    weights = block_k * wanted["G"] * 2
    stages = KERNELS[name].stages
    buffers = stages * block * block_k * 2 + (1 if wanted["HOLD"] else stages) * weights
    tiles = PanelTiles(wanted["PIXELS"], wanted["NB"], block_k, stages, KERNELS[name].warps)
    assert buffers <= tiles.shared_bytes(wanted["G"])
    # The epilogue's exchanges may need more than a shallow pipeline.
    scratch = block * wanted["G"] * (4 if wanted["SPLITS"] > 1 else 2)
    assert buffers <= got.shared <= max(buffers, scratch + 1024)


@pytest.mark.parametrize("name", KERNELS | SUMS)
def test_nothing_spills(name: str, compiled: dict[str, Compiled]) -> None:
    got = compiled[name]
    assert got.spills == 0
    assert got.registers <= REGISTERS.get(name, 128)


@pytest.mark.parametrize("name", KERNELS | SUMS)
def test_outputs_are_written_in_vectors(name: str, compiled: dict[str, Compiled]) -> None:
    assert "st.global.v4.b32" in compiled[name].ptx


def test_overlap_waits_for_the_kernel_before(compiled: dict[str, Compiled]) -> None:
    """After the first offsets were read, and before any pixel."""
    ptx = compiled["overlap"].ptx
    wait = ptx.index("griddepcontrol.wait")
    assert ptx.index("ld.global") < wait < ptx.index("cp.async.cg")
    assert "griddepcontrol" not in compiled["bf16"].ptx


@pytest.mark.parametrize("name", OTHERS)
def test_other_targets_compile(name: str, compiled: dict[str, Compiled]) -> None:
    got = compiled[name]
    if name.startswith("gfx942"):
        assert ("mfma" in got.amdgcn) == ("sum" not in name)
    elif name.startswith("sm_80"):
        assert ("mma.sync" in got.ptx) == ("sum" not in name)
        assert got.spills == 0
    else:
        assert ("tcgen05" in got.ptx) == ("sum" not in name)
        assert got.spills == 0
