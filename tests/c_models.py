"""Models for the library without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from c_library import aligned
from numpy.typing import NDArray

from sparse_ddpm.formats import Dense
from sparse_ddpm.lower import lower
from sparse_ddpm.native import native_model, write_native
from sparse_ddpm.program import (
    Add,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    Program,
    SpaceToDepth,
    TimeEmbedding,
    Upsample2x,
)
from sparse_ddpm.sampling import Table, make_table
from sparse_ddpm.ticket import DiffusionConfig, UNetConfig, load_ticket, shipped_ticket_path
from sparse_ddpm.ticket.synthetic import synthetic_ticket

SAMPLERS = {"ddim-4": "ddim", "ddpm-5": "ddpm", "dpm++-6": "dpm++"}


def tables(diffusion: DiffusionConfig | None = None) -> dict[str, Table]:
    return {
        name: make_table(
            diffusion or DiffusionConfig(), sampler=sampler, steps=int(name.rpartition("-")[2])
        )
        for name, sampler in SAMPLERS.items()
    }


def write_shipped(path: Path) -> None:
    """The shipped ticket as a model."""
    ticket = load_ticket(shipped_ticket_path())
    text = {"dataset": "mnist", "note": "a=b"}
    write_native(path, lower(ticket), tables(ticket.diffusion), text=text)


TINY = UNetConfig(dim=6, dim_mults=(1, 2), channels=3, image_size=8, groups=3, heads=2, dim_head=4)


def tiny_model(**options: Any) -> NDArray[np.uint8]:
    content = native_model(lower(synthetic_ticket(TINY, 0.8)), tables(), **options)
    return aligned(content)


def odd_program() -> Program:
    """The operations that the U-Nets lack: a bias of time, sums, copies, attention on its own."""
    rng = np.random.default_rng(0)

    def dense(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32)

    film = Dense(dense(12, 8))
    time = TimeEmbedding(4, dense(8, 4), dense(8), dense(8, 8), dense(8), film, dense(12))
    operations = (
        Conv("a", "x", Dense(dense(4, 18)), 3, bias=dense(4), film=0),
        NormAct("b", "a", 2, dense(4), dense(4), film=4),
        Conv("qkv", "b", Dense(dense(12, 4)), 1, bias=dense(12)),
        LinearAttention("c", "qkv", 2, 2),
        Add("d", "c", "b"),
        Concat("e", "d", "d"),
        SpaceToDepth("f", "e"),
        Conv("g", "f", Dense(0.1 * dense(3, 32 * 25)), 5),
        Upsample2x("h", "g"),
        Concat("i", "h", "a"),
        Conv("l", "i", Dense(dense(2, 7)), 1, residual="x"),
    )
    return Program(operations, "x", (2, 6, 6), "l", time)
