"""``sparse-ddpm sample``: images from a ticket."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from sparse_ddpm.cli import common


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "sample",
        help="draw images from a ticket",
        description="Draw images from a ticket through the sparse engine. Needs no torch.",
    )
    common.add_ticket(parser, synthetic=False)
    parser.add_argument("-n", type=common.positive, default=16, help="images (default: 16)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("samples.png"),
        help="a picture of all images in a grid, or raw uint8 [n, H, W, C] as .npy "
        "(default: samples.png)",
    )
    parser.add_argument(
        "--sampler", choices=("ddpm", "ddim", "dpm++"), default="ddim", help="default: ddim"
    )
    parser.add_argument("--steps", type=common.positive, default=50, help="default: 50")
    parser.add_argument("--eta", type=float, help="noise of ddim, 0 to 1 (default: 0)")
    parser.add_argument("--seed", type=common.natural, default=0, help="default: 0")
    parser.add_argument(
        "--batch", type=common.positive, help="images at once (default: 16, on a GPU 256)"
    )
    common.add_engine(parser)
    common.add_dtype(parser)
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw, write, report."""
    import numpy as np

    from sparse_ddpm.api import Sampler
    from sparse_ddpm.engine import default_dtype
    from sparse_ddpm.errors import ConfigError, expected
    from sparse_ddpm.files import write_atomically
    from sparse_ddpm.pictures import FORMATS, save_grid

    suffix = args.output.suffix.lower()
    if suffix not in (*FORMATS, ".npy"):
        wanted = f"a suffix among {', '.join((*FORMATS, '.npy'))}"
        raise ConfigError(expected(f"output {args.output}", wanted, repr(args.output.suffix)))
    ticket, name = common.open_ticket(args)
    settings = {"device": args.device, "threads": args.threads, "dtype": args.dtype}
    with Sampler(ticket, **settings) as sampler:
        start = time.perf_counter()
        images = sampler.sample(
            args.n,
            steps=args.steps,
            sampler=args.sampler,
            seed=args.seed,
            eta=args.eta,
            batch_size=args.batch,
            progress=True,
        )
        seconds = time.perf_counter() - start
        engine = sampler.description
    if suffix == ".npy":
        write_atomically(args.output, lambda file: np.save(file, images))
    else:
        save_grid(images, args.output)
    if args.json:
        common.print_json(
            {
                "ticket": name,
                "output": str(args.output),
                "images": args.n,
                "shape": list(images.shape),
                "sampler": args.sampler,
                "steps": args.steps,
                "seed": args.seed,
                "engine": engine,
                "dtype": args.dtype or default_dtype(args.device),
                "seconds": seconds,
                "images_per_s": args.n / seconds,
            }
        )
    else:
        size = f"{images.shape[2]}x{images.shape[1]}"
        print(
            f"{args.output}: {args.n} images of {size}, {args.steps} {args.sampler} steps, "
            f"{seconds:.2f} s on {engine}"
        )
    return 0
