"""``sparse-ddpm sample``: images from a ticket."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparse_ddpm.cli import common
from sparse_ddpm.cli.drawing import add_drawing, draw


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
    add_drawing(parser)
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw, write, report."""
    import numpy as np

    from sparse_ddpm.errors import ConfigError, expected
    from sparse_ddpm.files import write_atomically
    from sparse_ddpm.pictures import FORMATS, save_grid

    suffix = args.output.suffix.lower()
    if suffix not in (*FORMATS, ".npy"):
        wanted = f"a suffix among {', '.join((*FORMATS, '.npy'))}"
        raise ConfigError(expected(f"output {args.output}", wanted, repr(args.output.suffix)))
    ticket, name = common.open_ticket(args)
    drawing = draw(ticket, args.n, args)
    images, seconds = drawing.images, drawing.seconds
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
                "engine": drawing.engine,
                "dtype": drawing.dtype,
                "seconds": seconds,
                "images_per_s": args.n / seconds,
            }
        )
    else:
        size = f"{images.shape[2]}x{images.shape[1]}"
        print(
            f"{args.output}: {args.n} images of {size}, {args.steps} {args.sampler} steps, "
            f"{seconds:.2f} s on {drawing.engine}"
        )
    return 0
