"""What compilers make of the moves and of the sampler's step."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed")

from sparse_ddpm_kernels.triton.data import COPY, TO_DEPTH, UPSAMPLE, MoveTiles, choose_move_tiles
from sparse_ddpm_kernels.triton.sampler import choose_sampler_tiles
from triton_aot import Compiled, Kernel, compile_kernels

MOVE_SIZES = (
    "channels",
    "pixels",
    "width",
    "images8",
    "x_plane8",
    "x_row8",
    "other_plane8",
    "other_row8",
    "out_plane8",
    "out_row8",
)


def move(
    mode: int, tiles: MoveTiles, *, dtype: str = "fp16", other: bool = False, target: str = "sm_90"
) -> Kernel:
    pointers = dict.fromkeys(("x", "out", *(["other"] if other else [])), f"*{dtype}")
    return Kernel(
        module="sparse_ddpm_kernels.triton.data",
        name="_move_pixels",
        signature={**pointers, **dict.fromkeys(MOVE_SIZES, "i32")},
        constants={
            **({} if other else {"other": None}),
            "MODE": mode,
            "CHANNELS": tiles.channels,
            "PIXELS": tiles.pixels,
            "NB": tiles.nb,
        },
        divisible=tuple(pointers),
        target=target,
        warps=tiles.warps,
    )


def turn(name: str, *, dtype: str = "fp16", target: str = "sm_90") -> Kernel:
    sizes = ("batch", "elements", "pixels", "width", "images8", "plane8", "row8")
    return Kernel(
        module="sparse_ddpm_kernels.triton.data",
        name=name,
        signature={"x": "*fp32", "view": f"*{dtype}", **dict.fromkeys(sizes, "i32")},
        constants={"PIXELS": 64, "NB": 32},
        divisible=("x", "view", "elements"),
        target=target,
    )


STRIDES = ("image", "plane", "row", "column")


def update(
    batch: int, *, dtype: str = "fp16", target: str = "sm_90", own_seeds: bool = False
) -> Kernel:
    """As a whole step runs it: it reads the network's output, and writes its next input."""
    pointers = {
        "x": "*fp32",
        "n": f"*{dtype}",
        "previous": "*fp32",
        "following": f"*{dtype}",
        "coefficients": "*fp32",
        "step": "*i32",
        "bad_step": "*i32",
        "seed": "*i64",
        "images": "*i64",
    }
    strides = [f"{name}_{axis}" for name in ("n", "following") for axis in STRIDES[1:]]
    sizes = ("batch", "elements", "pixels", "width")
    tiles = choose_sampler_tiles(batch, 3 * 32 * 32)
    return Kernel(
        module="sparse_ddpm_kernels.triton.sampler",
        name="_sampler_update",
        signature={**pointers, **dict.fromkeys((*strides, *sizes), "i32")},
        constants={
            "n_image": 1,
            "following_image": 1,
            "CLIP": True,
            "OWN_SEEDS": own_seeds,
            "IMAGES": tiles.images,
            "BLOCKS": tiles.blocks,
        },
        divisible=(*pointers, "elements"),
        target=target,
        warps=tiles.warps,
        options={"enable_fp_fusion": False},
    )


def noise(target: str = "sm_90") -> Kernel:
    tiles = choose_sampler_tiles(256, 3 * 32 * 32)
    return Kernel(
        module="sparse_ddpm_kernels.triton.sampler",
        name="_initial_noise",
        signature={
            "out": "*fp32",
            "seed": "*i64",
            "images": "*i64",
            **dict.fromkeys(("batch", "elements", "pixels", "width"), "i32"),
        },
        constants={
            **dict.fromkeys(("following", *(f"following_{axis}" for axis in STRIDES))),
            "OWN_SEEDS": False,
            "IMAGES": tiles.images,
            "BLOCKS": tiles.blocks,
        },
        divisible=("out", "seed", "images", "elements"),
        target=target,
        options={"enable_fp_fusion": False},
    )


WIDE = choose_move_tiles(128, 256, 256)
NARROW = choose_move_tiles(512, 16, 8)
OTHERS = ("sm_80", "sm_100", "gfx942")

KERNELS = {
    "copy": move(COPY, WIDE),
    "add": move(COPY, WIDE, other=True),
    "upsample": move(UPSAMPLE, WIDE, dtype="bf16"),
    "to depth": move(TO_DEPTH, WIDE),
    "to depth of 8 images": move(TO_DEPTH, NARROW),
    "load": turn("_load"),
    "store": turn("_store", dtype="bf16"),
    "update of 1": update(1),
    "update of 256": update(256),
    "update of 256 seeds": update(256, own_seeds=True),
    "noise": noise(),
    **{f"{target} add": move(COPY, WIDE, other=True, target=target) for target in OTHERS},
    **{f"{target} load": turn("_load", target=target) for target in OTHERS},
    **{f"{target} update": update(256, dtype="bf16", target=target) for target in OTHERS},
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, Compiled]:
    return dict(zip(KERNELS, compile_kernels(*KERNELS.values()), strict=True))


@pytest.mark.parametrize(
    ("name", "vectors"),
    [("copy", 2), ("add", 4), ("upsample", 2), ("to depth", 2), ("to depth of 8 images", 1)],
)
def test_moves_are_vectors(name: str, vectors: int, compiled: dict[str, Compiled]) -> None:
    made = compiled[name]
    assert made.spills == 0
    assert made.shared == 0
    assert made.registers <= 40
    assert made.sass.count("LDG.E.128") == vectors
    assert made.sass.count("LDG.E") == vectors
    stores = 1 if name == "to depth of 8 images" else 2
    assert made.sass.count("STG.E.128") == made.sass.count("STG.E") == stores


def test_turns_are_vectors_on_both_sides(compiled: dict[str, Compiled]) -> None:
    load, store = compiled["load"], compiled["store"]
    for made in (load, store):
        assert made.spills == 0
        assert made.registers <= 40
        assert 0 < made.shared <= 64 * 32 * 4
    assert load.sass.count("LDG.E.128") == load.sass.count("LDG.E") == 4
    assert load.sass.count("STG.E.128") == load.sass.count("STG.E") == 2
    assert store.sass.count("LDG.E.128") == store.sass.count("LDG.E") == 2
    assert store.sass.count("STG.E.128") == store.sass.count("STG.E") == 4


@pytest.mark.parametrize("name", ["update of 1", "update of 256", "update of 256 seeds", "noise"])
def test_sampler(name: str, compiled: dict[str, Compiled]) -> None:
    """No float32 multiply-add is fused, the constants are float64, no thread has a stack."""
    made = compiled[name]
    assert made.spills == 0
    assert made.registers <= 80
    assert "FFMA" not in made.sass
    assert "fma.rn.f32" not in made.ptx
    constants = set(re.findall(r"0d[0-9A-F]{16}", made.ptx))
    # 2**-32, 2 pi / 2**32 and -1 / 6, all digits of them
    assert {"0d3DF0000000000000", "0d3E1921FB54442D18", "0dBFC5555555555555"} <= constants


@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("name", ["add", "load", "update"])
def test_other_targets(name: str, target: str, compiled: dict[str, Compiled]) -> None:
    made = compiled[f"{target} {name}"]
    assert made.spills == 0
    assert made.amdgcn if target == "gfx942" else made.sass
