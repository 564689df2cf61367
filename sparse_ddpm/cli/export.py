"""``sparse-ddpm export``: a ticket as an ONNX file."""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_ddpm.cli import common

if TYPE_CHECKING:
    from sparse_ddpm.ticket import Ticket


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "export",
        help="write a ticket as an ONNX file",
        description="Write the network of a ticket as one ONNX file: inputs x [N, C, H, W] and "
        "t [N], output model_output. Sparse weights stay small in the file and need no plug-in. "
        "Needs onnx: pip install 'sparse-ddpm[onnx]'.",
    )
    common.add_ticket(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="MODEL.onnx", help="the file to write"
    )
    parser.add_argument(
        "--what",
        choices=("denoiser",),
        default="denoiser",
        help="denoiser: one call of the network (default)",
    )
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, write, report."""
    from sparse_ddpm_export import OPSET, export_denoiser

    from sparse_ddpm.files import write_atomically
    from sparse_ddpm.lower import lower

    ticket, name = common.open_ticket(args)
    program = lower(ticket)
    content = export_denoiser(program, metadata=ticket_metadata(ticket)).SerializeToString()
    dense = export_denoiser(program, packed=False).SerializeToString()
    zipped = len(gzip.compress(dense, compresslevel=6))
    write_atomically(args.output, lambda file: file.write(content))
    if args.json:
        common.print_json(
            {
                "ticket": name,
                "output": str(args.output),
                "what": args.what,
                "opset": OPSET,
                "sparsity": ticket.sparsity,
                "bytes": len(content),
                "dense_bytes": len(dense),
                "gzip_dense_bytes": zipped,
                "ratio": len(content) / len(dense),
            }
        )
    else:
        print(
            f"{args.output}: {args.what}, opset {OPSET}, {len(content) / 1e6:.2f} MB "
            f"({len(content) / len(dense):.1%} of dense {len(dense) / 1e6:.2f} MB; "
            f"gzip of dense {zipped / 1e6:.2f} MB)"
        )
    return 0


def ticket_metadata(ticket: Ticket) -> dict[str, str]:
    """What a user of the file needs to sample from it, and where it came from, as strings.

    The command that trained the ticket stays out: it may name private paths.
    """
    from sparse_ddpm import __version__

    diffusion, provenance = ticket.diffusion, ticket.provenance
    return {
        "sparse_ddpm_version": __version__,
        "timesteps": str(diffusion.timesteps),
        "schedule": diffusion.schedule,
        "objective": diffusion.objective,
        "clip": str(diffusion.clip).lower(),
        "image_range": "-1 1",
        "dataset": provenance.dataset,
        "seed": str(provenance.seed),
        "round": str(provenance.round),
        "rewinding": provenance.rewinding,
        "allocation": provenance.allocation,
        "pattern": provenance.pattern,
        "sparsity": f"{ticket.sparsity:.6f}",
        "initial_sha256": provenance.initial_sha256,
    }
