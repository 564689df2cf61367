"""The norms compiled for GPUs that are not here: 16-byte accesses, registers, no spills."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("torch")

from triton_aot import TARGETS, Compiled, Kernel, compile_kernels

STRIDES = ("plane8", "row8", "out_plane8", "out_row8", "residual_plane8", "residual_row8")
OPTIONS = {"enable_fp_fusion": True}


def pointers(dtype: str, **present: bool) -> tuple[dict[str, str], dict[str, None]]:
    """Types of the pointers that are there, and None for those that are not."""
    types = {"moments": "*fp32", "step": "*i32"}
    given = {name: types.get(name, f"*{dtype}") for name, here in present.items() if here}
    return given, {name: None for name, here in present.items() if not here}


def normalise(
    rows: int,
    images: int,
    *,
    channels: int,
    width: int,
    warps: int = 4,
    dtype: str = "bf16",
    target: str = "sm_90",
    residual: bool = True,
    moments: bool = True,
    tiles: int = 1,
    chunk: int = 1,
) -> Kernel:
    given, absent = pointers(dtype, residual=residual, moments=moments, step=True)
    signature = {"x": f"*{dtype}", "out": f"*{dtype}", "table": "*fp32"} | given
    sizes = dict.fromkeys(("images8", *STRIDES, "table_row", "gamma", "beta"), "i32")
    pixels = width * width
    constants: dict[str, Any] = {
        "SILU": True,
        "WIDTH": width,
        "PIXELS": pixels,
        "CHANNELS": channels,
        "TILES": tiles,
        "BLOCKS": 1,
        "COUNT": channels,
        "TILE": pixels // tiles,
        "SPAN": pixels,
        "CHUNK": chunk,
        "ROWS": rows,
        "NB": images,
    }
    return Kernel(
        module="sparse_ddpm_kernels.triton.norm",
        name="_normalise",
        signature=signature | sizes | {"eps": "fp32"},
        constants=constants | absent,
        divisible=tuple(signature),
        target=target,
        warps=warps,
        options=OPTIONS,
    )


def first_pass(target: str = "sm_90", dtype: str = "bf16") -> Kernel:
    signature = {"x": f"*{dtype}", "moments": "*fp32"}
    constants = {"WIDTH": 32, "PIXELS": 1024, "CHANNELS": 8, "PART": 128, "ROWS": 16, "NB": 256}
    return Kernel(
        module="sparse_ddpm_kernels.triton.norm",
        name="_first_pass",
        signature=signature | dict.fromkeys(("images8", "plane8", "row8"), "i32"),
        constants=constants,
        divisible=tuple(signature),
        target=target,
        options=OPTIONS,
    )


def merge_pass(target: str = "sm_90") -> Kernel:
    signature = {"moments": "*fp32", "merged": "*fp32"}
    constants = {"TILES": 64, "BLOCKS": 1, "COUNT": 8, "TILE": 16, "SPAN": 1024}
    return Kernel(
        module="sparse_ddpm_kernels.triton.norm",
        name="_merge_pass",
        signature=signature | {"images8": "i32"},
        constants=constants | {"CHUNK": 64, "NB": 8},
        divisible=tuple(signature),
        target=target,
        options=OPTIONS,
    )


def channel_norm(
    channels: int,
    run: int,
    *,
    chunk: int | None = None,
    warps: int = 4,
    dtype: str = "bf16",
    target: str = "sm_90",
) -> Kernel:
    given, _ = pointers(dtype, x=True, out=True, residual=True)
    signature = given | {"gain": "*fp32"}
    sizes = dict.fromkeys(("images8", *STRIDES), "i32")
    constants = {"CHANNELS": channels, "WIDTH": 32, "COUNT": 1024}
    return Kernel(
        module="sparse_ddpm_kernels.triton.channel_norm",
        name="_channel_norm",
        signature=signature | sizes | {"eps": "fp32"},
        constants=constants | {"CHUNK": chunk or channels, "PIXELS": 1, "NB": run},
        divisible=tuple(signature),
        target=target,
        warps=warps,
        options=OPTIONS,
    )


def wide(compiled: Compiled) -> tuple[int, int]:
    """16-byte loads and stores of a thread; none may be narrower than 4 bytes."""
    assert not re.search(r"(ld|st)\.global[\w.:]*\.b(8|16)\b", compiled.ptx)
    return compiled.ptx.count("ld.global.v4.b32"), compiled.ptx.count("st.global.v4.b32")


def test_elementwise_pass_on_hopper() -> None:
    # 32 numbers a thread: 4 vectors of x, 4 of the residual, 4 stored.
    kernels = [normalise(16, 256, channels=8, width=32, dtype=d) for d in ("bf16", "fp16")]
    kernels += [
        normalise(16, 256, channels=8, width=32, residual=False),
        # merges 64 pairs of moments by itself; batch 8
        normalise(256, 8, channels=8, width=32, tiles=64, chunk=64, residual=False),
        # rows of several channels, which end within one
        normalise(64, 64, channels=12, width=7, residual=False),
    ]
    both, again, alone, merging, odd = compile_kernels(*kernels)
    assert wide(both) == wide(again) == (8, 4)
    assert wide(alone) == (4, 4)
    assert wide(odd)[1] == 4
    # 16 numbers a thread, and 4 pairs of moments
    assert wide(merging) == (2 + 2, 2)
    for compiled in (both, again, alone, merging, odd):
        assert compiled.spills == 0
        # 6 programs of 4 warps or more on a multiprocessor
        assert compiled.registers <= 80
    assert max(both.shared, alone.shared) <= 1024


def test_whole_groups_on_hopper() -> None:
    kernels = [
        normalise(1024, 8, channels=64, width=4, warps=8, moments=False),
        normalise(1024, 16, channels=64, width=4, warps=16, moments=False),
        normalise(4096, 8, channels=16, width=16, warps=16, moments=False),
    ]
    for kernel, compiled in zip(kernels, compile_kernels(*kernels), strict=True):
        constants = kernel.constants
        vectors = constants["ROWS"] * constants["NB"] // (kernel.warps * 32 * 8)
        # x is read once, and so is the residual
        assert wide(compiled) == (2 * vectors, vectors)
        assert compiled.spills == 0
        assert compiled.registers * kernel.warps * 32 <= 65536


def test_moments_on_hopper() -> None:
    first, merge = compile_kernels(first_pass(), merge_pass())
    assert wide(first) == (4, 0)
    assert first.registers <= 128
    assert wide(merge)[0] >= 2
    assert first.spills == merge.spills == 0


def test_channel_norm_on_hopper() -> None:
    kernels = [
        channel_norm(64, 64),
        channel_norm(64, 64, dtype="fp16"),
        channel_norm(512, 32, warps=8),
        channel_norm(100, 64, chunk=128, warps=8),
    ]
    few, again, many, odd = compile_kernels(*kernels)
    assert wide(few) == wide(again) == wide(odd) == (8, 4)
    # 64 numbers a thread
    assert wide(many) == (16, 8)
    assert max(few.registers, again.registers, odd.registers) <= 80
    assert many.registers <= 128
    assert few.spills == again.spills == many.spills == odd.spills == 0
    (chunks,) = compile_kernels(channel_norm(4096, 16, chunk=1024, warps=8))
    assert chunks.spills == 0
    assert wide(chunks)[1] == 8


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "sm_90"])
def test_other_gpus(target: str) -> None:
    kernels = [
        normalise(16, 256, channels=8, width=32, target=target),
        normalise(1024, 8, channels=64, width=4, warps=8, moments=False, target=target),
        first_pass(target),
        merge_pass(target),
        channel_norm(64, 64, target=target),
    ]
    for kernel, compiled in zip(kernels, compile_kernels(*kernels), strict=True):
        if target == "gfx942":
            assert "global_load_dwordx4" in compiled.amdgcn or kernel.name == "_merge_pass"
            assert "scratch_store" not in compiled.amdgcn
        else:
            assert compiled.spills == 0
            assert wide(compiled)[0] > 0, kernel.name
