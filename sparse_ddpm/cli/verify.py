"""``sparse-ddpm verify``: the sparse engine against masked dense, on this ticket."""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

from sparse_ddpm.cli import common


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "verify",
        help="check the sparse engine against masked dense torch",
        description="Run a ticket through the sparse engine and through masked dense torch in "
        "float64 (the numpy reference where torch is not installed), and compare every "
        "operation, the network's output, and whole images. Exit status 1 on a difference.",
    )
    common.add_ticket(parser)
    parser.add_argument("--steps", type=common.positive, default=50, help="DDIM steps (default 50)")
    parser.add_argument("--seed", type=common.natural, default=0, help="default: 0")
    parser.add_argument(
        "--oracle", choices=("auto", "torch", "numpy"), default="auto", help="default: auto"
    )
    common.add_engine(parser)
    common.add_dtype(parser)
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare and report."""
    from sparse_ddpm.verify import verify

    ticket, name = common.open_ticket(args)

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[Kverify: {text}", end="", file=sys.stderr, flush=True)

    found = verify(
        ticket,
        device=args.device,
        threads=args.threads,
        dtype=args.dtype,
        steps=args.steps,
        seed=args.seed,
        oracle=args.oracle,
        progress=progress,
    )
    progress("done\n")
    worst_name, worst = found.worst
    most = found.tolerance
    if args.json:
        common.print_json(
            {
                "ticket": name,
                "passed": found.passed,
                "oracle": found.oracle,
                "engine": found.engine,
                "steps": found.steps,
                "dtype": found.dtype,
                "operation_tolerance": most.operation,
                "output_tolerance": most.output,
                "image_tolerance": _number(most.image),
                "image_psnr_tolerance": most.psnr,
                "worst_operation": worst_name,
                "worst_operation_error": _number(worst),
                "output_error": _number(found.output_error),
                "image_error": _number(found.image_error),
                "image_psnr": _number(found.image_psnr),
                "operations": {k: _number(v) for k, v in found.operations.items()},
                "unmatched": list(found.unmatched),
            }
        )
    else:
        print(f"{name}: {found.engine} against {found.oracle}")
        print(f"  operations compared   {len(found.operations)}")
        print(f"  worst operation       {worst:.1e}  {worst_name}  (limit {most.operation:g})")
        print(f"  network output        {found.output_error:.1e}  (limit {most.output:g})")
        print(
            f"  images, {found.steps} steps".ljust(24)
            + f"{found.image_error:.1e}"
            + (f"  (limit {most.image:g})" if math.isfinite(most.image) else "")
            + f", PSNR {found.image_psnr:.1f} dB  (at least {most.psnr:g})"
        )
        print("passed" if found.passed else "FAILED")
    return 0 if found.passed else 1


def _number(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else None
