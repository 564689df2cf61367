"""What compilers make of the element convolution: packed arithmetic, vectors, loads in flight."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from sparse_ddpm_kernels.triton.element_conv import LEAN, ROOM
from sparse_ddpm_kernels.triton.element_kernel import SIZES
from sparse_ddpm_kernels.triton.element_tiles import ElementTiles, choose_element_tiles
from triton_aot import Compiled, Kernel, compile_kernels

TERMS = 8 + 4 + 2
"""Of the loop, and of what is left after it."""


def kernel(
    tiles: ElementTiles,
    *,
    dtype: str = "fp16",
    short: bool = True,
    packed: bool = True,
    even: bool = True,
    residual: bool = True,
    scale: int = 1,
    target: str = "sm_90",
) -> Kernel:
    pointers = {
        "x": "*i32" if dtype == "bf16" else f"*{dtype}",
        "words": "*i64",
        "start": "*i32",
        "rows": "*i32",
        "bias": "*fp32",
        "out": f"*{dtype}",
    }
    if residual:
        pointers["residual"] = f"*{dtype}"
    options: dict[str, Any] = {"enable_fp_fusion": True}
    if target != "gfx942":
        options["maxnreg"] = tiles.registers
    return Kernel(
        module="sparse_ddpm_kernels.triton.element_kernel",
        name="element_conv_kernel",
        signature={**pointers, **dict.fromkeys((*SIZES, *(["unit"] if short else [])), "i32")},
        constants={
            **({} if short else {"unit": 1}),
            **({} if residual else {"residual": None}),
            "ROWS": tiles.slice_rows,
            "SPLIT": tiles.split,
            "LINES": tiles.lines,
            "COLUMNS": tiles.columns,
            "NB": tiles.nb,
            "STRIDE": 1,
            "SCALE": scale,
            "SHORT": short,
            "PACKED": packed,
            "EVEN": even,
        },
        divisible=tuple(pointers),
        target=target,
        warps=tiles.warps,
        stages=1,
        options=options,
    )


def loop(sass: str) -> list[str]:
    """The instructions of the loop over steps: the shortest that loads vectors."""
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+((?:@!?U?P\d+ )?[A-Z][^;]*);", sass)
    place = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    bodies = []
    for i, (address, text) in enumerate(lines):
        jump = re.search(r"\bBRA\S* .*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < int(address, 16):
            body = [text for _, text in lines[place[int(jump[1], 16)] : i + 1]]
            if any("LDG.E.128" in text for text in body):
                bodies.append(body)
    return min(bodies, key=len)


def check_steps(compiled: Compiled, tiles: ElementTiles, words: int, arithmetic: str) -> None:
    """Eight vectors are asked for before the first is used; next words before the last."""
    assert compiled.spills == 0
    assert compiled.registers <= tiles.registers
    body = loop(compiled.sass)
    kinds = [
        next((k for k in ("LDG.E.128", "LDG.E.64", arithmetic) if k in text), "") for text in body
    ]
    assert kinds.count("LDG.E.128") == 8
    assert kinds.count("LDG.E.64") == words
    assert kinds.index(arithmetic) > max(i for i, k in enumerate(kinds) if k == "LDG.E.128")
    last = max(i for i, k in enumerate(kinds) if k == arithmetic)
    assert max(i for i, k in enumerate(kinds) if k == "LDG.E.64") < last - 8


BIG = ElementTiles(4, 4, 16, 8, warps=8, registers=LEAN)
ROOMY = replace(BIG, registers=128)
SPLIT = replace(BIG, split=2, warps=16, registers=128)

LAYERS = [(64, 32, 8, 0.05), (128, 16, 256, 0.05), (256, 8, 8, 0.01), (512, 4, 8, 0.05)]
"""Channels, side, images, density."""

CHOSEN = [
    choose_element_tiles(channels, side, side, images, int(9 * channels**2 * density))
    for channels, side, images, density in LAYERS
]

KERNELS = {
    "short": kernel(BIG),
    "short, more registers": kernel(ROOMY),
    "long": kernel(ROOMY, short=False),
    "bfloat16": kernel(ROOMY, dtype="bf16", packed=False),
    "float16, float32 sums": kernel(ROOMY, packed=False),
    "upsampled": kernel(replace(BIG, registers=ROOM), scale=2),
    "edges": kernel(replace(BIG, registers=ROOM), even=False),
    "long edges": kernel(replace(BIG, registers=ROOM), short=False, even=False),
    **{f"chosen {i}": kernel(tiles) for i, tiles in enumerate(CHOSEN)},
    **{
        f"{target} {dtype}": kernel(SPLIT, dtype=dtype, packed=dtype == "fp16", target=target)
        for target in ("sm_80", "sm_100")
        for dtype in ("fp16", "bf16")
    },
    **{
        # A wavefront is 64 threads.
        f"gfx942 {dtype}": kernel(
            replace(BIG, warps=4), dtype=dtype, packed=dtype == "fp16", target="gfx942"
        )
        for dtype in ("fp16", "bf16")
    },
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, Compiled]:
    return dict(zip(KERNELS, compile_kernels(*KERNELS.values()), strict=True))


@pytest.mark.parametrize(
    ("name", "tiles", "words"),
    [("short", BIG, 4), ("short, more registers", ROOMY, 4), ("long", ROOMY, 8)],
)
def test_float16(name: str, tiles: ElementTiles, words: int, compiled: dict[str, Compiled]) -> None:
    """A step: 8 vectors, 4 x 8 packed multiply-adds, 8 sums flushed into float32."""
    made = compiled[name]
    check_steps(made, tiles, words, "HFMA2 ")
    assert made.shared == 0
    assert made.sass.count("HFMA2 ") == 4 * TERMS
    assert made.sass.count("LDG.E.128") == TERMS + 1
    assert made.sass.count("STG.E.128") == 1
    body = loop(made.sass)
    assert sum("FADD" in text for text in body) == 8
    assert not any("FFMA" in text for text in body)
    assert len(body) <= 8 * 15


@pytest.mark.parametrize("name", ["bfloat16", "float16, float32 sums"])
def test_float32_sums(name: str, compiled: dict[str, Compiled]) -> None:
    made = compiled[name]
    check_steps(made, ROOMY, 4, "FFMA")
    assert made.shared == 0
    assert made.sass.count("FFMA") == 8 * TERMS
    assert made.sass.count("LDG.E.128") == TERMS + 1
    assert made.sass.count("STG.E.128") == 1
    assert len(loop(made.sass)) <= 8 * 26


@pytest.mark.parametrize("number", range(len(CHOSEN)))
def test_chosen_tiles(number: int, compiled: dict[str, Compiled]) -> None:
    """No spills, pixels in vectors, and shared memory only where rows are split."""
    made, tiles = compiled[f"chosen {number}"], CHOSEN[number]
    assert made.spills == 0
    assert made.registers <= tiles.registers
    assert tiles.split > 1 or made.shared == 0
    assert made.sass.count("LDG.E.128") >= TERMS
    assert made.sass.count("HFMA2 ") == 4 * TERMS


@pytest.mark.parametrize("name", ["edges", "long edges", "upsampled"])
def test_vectors_stay(name: str, compiled: dict[str, Compiled]) -> None:
    made = compiled[name]
    assert made.spills == 0
    assert made.sass.count("LDG.E.128") == TERMS + 1
    assert made.sass.count("STG.E.128") == 1


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("target", ["sm_80", "sm_100", "gfx942"])
def test_other_targets(target: str, dtype: str, compiled: dict[str, Compiled]) -> None:
    made = compiled[f"{target} {dtype}"]
    assert made.spills == 0
    if target == "gfx942":
        assert len(re.findall(r"(?:global|buffer)_load_dwordx4", made.amdgcn)) >= TERMS
    else:
        assert made.sass.count("LDG.E.128") >= TERMS
