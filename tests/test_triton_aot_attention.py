"""Attentions compiled for GPUs that are not here: tensor cores, copies, registers."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("torch")

from triton_aot import TARGETS, Compiled, Kernel, compile_kernels

SIZES = ("images8", "plane8", "row8", "out_plane8", "out_row8")


def kernel(
    name: str,
    *,
    width: int,
    dim: int = 32,
    dtype: str = "bf16",
    target: str = "sm_90",
    warps: int = 8,
    stages: int = 3,
    **constants: int,
) -> Kernel:
    """``_attention``, ``_context`` or ``_apply`` of 4 heads."""
    module = "attention" if name == "_attention" else "linear_attention"
    signature = {"qkv": f"*{dtype}"}
    if name != "_context":
        signature["out"] = f"*{dtype}"
    if name != "_attention":
        signature["context"] = "*fp32"
    sizes = dict.fromkeys(SIZES[:3] if name == "_context" else SIZES, "i32")
    if name != "_context":
        sizes["scale"] = "fp32"
    common = {"HEADS": 4, "DIM": dim, "PADDED": max(dim, 16), "WIDTH": width}
    common |= {"COUNT": width * width, "NB": 8}
    if name != "_attention":
        common["VALUES"] = min(32, max(dim, 16))
    return Kernel(
        module=f"sparse_ddpm_kernels.triton.{module}",
        name=name,
        signature=signature | sizes,
        constants=common | {"PRECISION": "ieee" if dtype == "fp32" else "tf32"} | constants,
        divisible=tuple(signature),
        target=target,
        warps=warps,
        stages=stages,
        options={"enable_fp_fusion": True},
    )


def attention(width: int, queries: int, keys: int, warps: int, **options: str) -> Kernel:
    return kernel(
        "_attention",
        width=width,
        warps=warps,
        stages=2,
        QUERIES=queries,
        KEYS=keys,
        **options,  # type: ignore[arg-type]
    )


def block(
    name: str,
    *,
    channels: int = 64,
    images: int = 8,
    dtype: str = "bf16",
    target: str = "sm_90",
    factors: bool = True,
) -> Kernel:
    """A kernel of the fused block: 4 heads of 32, 32 x 32 pixels."""
    pointers = {
        "_block_factors": ("x", "factors"),
        "_block_context": ("x", "qkv", "factors", "context"),
        "_block_merge": ("context", "merged"),
        "_block_apply": ("x", "qkv", "factors", "merged", "project", "bias", "gain", "out"),
    }[name]
    wide = {"factors", "context", "bias", "gain"}
    signature = {p: "*fp32" if p in wide else f"*{dtype}" for p in pointers}
    constants: dict[str, Any] = {"NB": images}
    if name != "_block_factors":
        constants |= {"HEADS": 4, "DIM": 32}
        if not factors:
            signature.pop("factors", None)
            constants["factors"] = None
    sizes = {"images8": "i32"}
    if name == "_block_merge":
        constants |= {"ROWS": 4, "PARTS": 4}
    else:
        sizes |= {"plane8": "i32", "row8": "i32", "eps": "fp32"}
        constants |= {"CHANNELS": channels, "WIDTH": 32, "COUNT": 1024, "PIXELS": 16}
    if name == "_block_factors":
        constants["PIXELS"] = 64 // images
    if name == "_block_context":
        constants |= {"TURNS": 16, "PRECISION": "tf32"}
    if name == "_block_apply":
        sizes |= {"out_plane8": "i32", "out_row8": "i32", "out_eps": "fp32", "shrink": "fp32"}
        constants |= {"RESIDUAL": True, "PRECISION": "tf32"}
    return Kernel(
        module="sparse_ddpm_kernels.triton.linear_block",
        name=name,
        signature=signature | sizes,
        constants=constants,
        divisible=tuple(signature),
        target=target,
        warps={"_block_context": images, "_block_apply": 8}.get(name, 4),
        stages=2,
        options={"enable_fp_fusion": True},
    )


def products(compiled: Compiled) -> int:
    """Tensor-core instructions; no access to memory may be narrower than 4 bytes."""
    assert not re.search(r"(ld|st)\.global[\w.:]*\.b(8|16)\b", compiled.ptx)
    return compiled.ptx.count("mma.sync.aligned")


def test_attention_on_hopper() -> None:
    small, again, wide, tiled = compile_kernels(
        attention(4, 16, 16, 4),
        attention(4, 16, 16, 4, dtype="fp16"),
        attention(8, 32, 64, 8),
        attention(16, 32, 64, 8),
    )
    # 2 images a warp, each 16 x 16 x 32 and 16 x 32 x 16
    assert products(small) == products(again) == 16
    # q, k, v: 4096 numbers each, 32 a thread
    assert small.ptx.count("ld.global.v4.b32") == 12
    assert small.ptx.count("st.global.v4.b32") == 4
    assert max(small.registers, again.registers) <= 96
    assert small.spills == again.spills == wide.spills == tiled.spills == 0
    assert products(wide) == 64
    assert wide.registers <= 192
    # k and v are copied 16 bytes at a time while the scores before are made
    assert tiled.ptx.count("cp.async.cg") > 0
    assert "cp.async.ca" not in tiled.ptx


def test_linear_attention_on_hopper() -> None:
    shape = {"width": 32, "PIXELS": 16}
    context, again, apply = compile_kernels(
        kernel("_context", TURNS=32, **shape),  # type: ignore[arg-type]
        kernel("_context", TURNS=32, dtype="fp16", **shape),  # type: ignore[arg-type]
        kernel("_apply", TURNS=8, PARTS=2, **shape),  # type: ignore[arg-type]
    )
    for compiled in (context, again):
        # an image a warp: 32 x 32 x 16
        assert products(compiled) == 8
        # 2 buffers of k and of v, and powers on their way into the product
        tile = 32 * 16 * 8 * 2
        assert compiled.ttgir.count("memdesc<2x32x16x8x") >= 2
        assert 2 * 2 * tile <= compiled.shared <= 5 * tile
        assert compiled.ptx.count("cp.async.cg") >= 2 * 2 * 2
        assert "cp.async.ca" not in compiled.ptx
        assert compiled.spills == 0
        # 128 with Triton 3.6: two programs of 8 warps on a multiprocessor
        assert compiled.registers <= 144
    assert products(apply) == 8
    assert apply.spills == 0
    assert apply.registers <= 128


def test_fused_block_on_hopper() -> None:
    kernels = [
        block("_block_context"),
        block("_block_context", images=16, dtype="fp16"),
        block("_block_apply"),
        block("_block_apply", factors=False, dtype="fp16"),
    ]
    for kernel, compiled in zip(kernels, compile_kernels(*kernels), strict=True):
        assert compiled.spills == 0
        # 16 warps on a multiprocessor
        assert compiled.registers <= 128
        assert compiled.shared * (16 // kernel.warps) <= 227 * 1024
        # pixels by channels
        assert compiled.ptx.count("wgmma.mma_async") > 0
        # an image a warp: 32 x 32 x 16, or 16 x 32 x 32
        assert products(compiled) in (8, 16, 32)
        assert compiled.ptx.count("cp.async.cg") > 0
    factors, merge, wide, last = compile_kernels(
        block("_block_factors", images=64),
        block("_block_merge"),
        block("_block_context", channels=128, images=16),
        block("_block_apply", channels=128),
    )
    assert factors.spills == merge.spills == wide.spills == last.spills == 0
    assert max(factors.registers, merge.registers) <= 64
    assert wide.registers <= 128
    assert max(wide.shared, last.shared) <= 227 * 1024


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "sm_90"])
def test_other_gpus(target: str) -> None:
    compiled = compile_kernels(
        attention(4, 16, 16, 4, target=target),
        kernel("_context", width=32, PIXELS=16, TURNS=32, target=target),
        kernel("_apply", width=32, PIXELS=16, TURNS=8, PARTS=2, target=target),
        block("_block_context", target=target),
        block("_block_apply", target=target),
    )
    for one in compiled:
        if target == "gfx942":
            assert "v_mfma" in one.amdgcn
        else:
            assert products(one) > 0
            # 8 bytes of stack are not spilled, on Blackwell
            assert one.spills <= 8
