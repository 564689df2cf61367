"""``sparse-ddpm convert``: from other people's checkpoints to a ticket."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sparse_ddpm.cli import common


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "convert",
        help="make a ticket of another program's checkpoint",
        description="Convert a checkpoint: a file of denoising-diffusion-pytorch's trainer "
        "(model-N.pt) or of the paper's fork of it, a state dict of its U-Net with or without "
        "masks (torch.nn.utils.prune, or a table with state_dict and mask), or a folder of "
        "diffusers with a UNet2DModel. Needs torch. Nothing in a file is run. What cannot be "
        "carried over exactly is refused with the reason.",
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the file or folder")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="TICKET",
        help="the ticket to write, .pt or .safetensors",
    )
    add = parser.add_argument_group("what the source does not say").add_argument
    add("--image-size", type=common.positive, metavar="N", help="sides of its images")
    add("--objective", choices=("eps", "x0", "v"), help="what its network predicts")
    add("--schedule", choices=("linear", "cosine", "sigmoid"))
    add("--timesteps", type=common.positive, metavar="T")
    add("--groups", type=common.positive, metavar="N", help="of its group norms (default: 8)")
    add(
        "--heads",
        type=common.positive,
        metavar="N",
        help="of its attention (default: 4, where they have 128 channels)",
    )
    add("--no-clip", action="store_true", help="x0 is not clipped to [-1, 1] while sampling")
    add("--source-version", metavar="VERSION", help="of the package that wrote it, as 1.6.4")
    add("--raw", action="store_true", help="the trained weights, not their average")
    add = parser.add_argument_group("pruning in one shot").add_argument
    add("--prune", type=float, metavar="S", help="take this part of the prunable weights away")
    add("--pattern", help="element, vector:G or block:RxC, with --prune (default: element)")
    add(
        "--allocation",
        choices=("uniform", "global", "erk", "lamp"),
        help="how the survivors are shared out, with --prune (default: uniform)",
    )
    parser.add_argument(
        "--store",
        choices=("float32", "float16"),
        default="float32",
        help="values of the ticket; float16 halves its file (default: float32)",
    )
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert, prune if asked to, write."""
    from sparse_ddpm.errors import ConfigError, MissingDependencyError, expected
    from sparse_ddpm.ticket import save_ticket

    try:
        from sparse_ddpm.convert import Options, convert, prune_ticket
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        wanted = "torch (pip install 'sparse-ddpm[train]')"
        raise MissingDependencyError(expected("convert", wanted, "none installed")) from error
    if args.prune is None:
        for name in ("pattern", "allocation"):
            if getattr(args, name) is not None:
                raise ConfigError(expected(f"--{name}", "--prune beside it", "none"))
    notes: list[str] = []
    options = Options(
        raw=args.raw,
        image_size=args.image_size,
        groups=args.groups,
        heads=args.heads,
        schedule=args.schedule,
        objective=args.objective,
        timesteps=args.timesteps,
        clip=False if args.no_clip else None,
        source_version=args.source_version,
        tell=notes.append,
    )
    ticket = convert(args.source, options)
    if args.prune is not None:
        ticket = prune_ticket(
            ticket,
            args.prune,
            pattern=args.pattern or "element",
            allocation=args.allocation or "uniform",
        )
        notes.append(
            f"pruned in one shot to a sparsity of {ticket.sparsity:.2%}: its images will be poor "
            f"until it is fine-tuned (sparse-ddpm train --from {args.output} --data ... --out ...)"
        )
    if args.store == "float16":
        ticket = ticket.rounded_to_float16()
    save_ticket(ticket, args.output)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    size = args.output.stat().st_size
    prunable = sum(ticket.weights[p.name].size for p in ticket.parameters() if p.prunable)
    if args.json:
        common.print_json(
            {
                "ticket": str(args.output),
                "file_bytes": size,
                "parameters": sum(weight.size for weight in ticket.weights.values()),
                "prunable": prunable,
                "sparsity": ticket.sparsity,
                "pattern": ticket.provenance.pattern,
                "fine_tuning_needed": args.prune is not None,
                "notes": notes,
            }
        )
        return 0
    diffusion = ticket.diffusion
    print(
        f"{args.output}: {size / 1e3:.0f} kB, {prunable:,} prunable weights, sparsity "
        f"{ticket.sparsity:.2%}; {diffusion.objective} objective, {diffusion.schedule} schedule "
        f"of {diffusion.timesteps} steps"
    )
    return 0
