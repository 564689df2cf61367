"""What ``sample`` and ``evaluate`` share: how images are drawn."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparse_ddpm.cli import common

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sparse_ddpm.ticket import Ticket


@dataclass(frozen=True, slots=True)
class Drawing:
    """Images uint8 ``[n, H, W, C]``, and how they were drawn."""

    images: NDArray[np.uint8]
    seconds: float
    engine: str
    dtype: str


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """``--sampler``, ``--steps``, ``--eta``, ``--seed``, ``--batch``, and those of the engine."""
    add = parser.add_argument
    add("--sampler", choices=("ddpm", "ddim", "dpm++"), default="ddim", help="default: ddim")
    add("--steps", type=common.positive, default=50, help="default: 50")
    add("--eta", type=float, help="noise of ddim, 0 to 1 (default: 0)")
    add("--seed", type=common.natural, default=0, help="default: 0")
    add("--batch", type=common.positive, help="images at once (default: 16, on a GPU 256)")
    common.add_engine(parser)
    common.add_dtype(parser)


def draw(ticket: Ticket, count: int, args: argparse.Namespace) -> Drawing:
    """``count`` images, with a progress bar; the time is that of drawing alone."""
    from sparse_ddpm.api import Sampler
    from sparse_ddpm.engine import default_dtype

    settings: dict[str, Any] = {
        name: getattr(args, name) for name in ("device", "threads", "dtype")
    }
    with Sampler(ticket, **settings) as sampler:
        start = time.perf_counter()
        images = sampler.sample(
            count,
            steps=args.steps,
            sampler=args.sampler,
            seed=args.seed,
            eta=args.eta,
            batch_size=args.batch,
            progress=True,
        )
        seconds = time.perf_counter() - start
        engine = sampler.description
    return Drawing(images, seconds, engine, args.dtype or default_dtype(args.device))
