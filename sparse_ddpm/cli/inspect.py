"""``sparse-ddpm inspect``: FLOPs, bytes, times, formats and kernels of a ticket, layer by layer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_ddpm.cli import common

if TYPE_CHECKING:
    from sparse_ddpm.inspection import Inspection, Settings

SORTS = ("time", "flops", "bytes", "weights", "density", "order")


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="what a ticket costs, layer by layer, and which kernels run it",
        description="Account for every operation of a ticket as an engine plans it, or of two "
        "tickets side by side. A multiplication and its addition are two FLOPs. FLOPs and "
        "activations are for one image and one step; dense counts all weights, surviving those "
        "that are stored, executed what the kernel multiplies: the zeros that fill panels, the "
        "halo and the rest of vectors included. Times are for a step of the whole batch: the "
        "least that the machine's ceilings allow, what the plan's cost model predicts and, with "
        "--measure, what the clock says. A layer runs dense where more of it is stored than at its "
        "break-even density. A LinearBlock is a linear attention with the norms and 1x1 "
        "convolutions around it, in one row because they run as one.",
    )
    common.add_ticket(parser)
    parser.add_argument(
        "other", nargs="?", metavar="OTHER", help="a second ticket, to lay beside the first"
    )
    parser.add_argument(
        "--batch", type=common.positive, default=16, help="images at once (default: 16)"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="whose plan; cuda needs no GPU for it (default: cpu)",
    )
    parser.add_argument(
        "--threads", type=common.positive, help="of the cpu engine (default: all cores at hand)"
    )
    parser.add_argument(
        "--steps",
        type=common.positive,
        default=50,
        help="of the sampler, for what an image costs (default: 50)",
    )
    common.add_dtype(parser)
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also time every operation, and this machine's ceilings: some seconds",
    )
    parser.add_argument(
        "--sort", default="time", choices=SORTS, help="of the table, largest first (default: time)"
    )
    parser.add_argument(
        "--reasons", action="store_true", help="also print why each kernel was chosen"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="also draw FLOPs, memory over the step, a roofline and the file's bytes (.html, one "
        "file that needs nothing else; .png, .svg, .pdf with matplotlib)",
    )
    common.add_json(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Account, draw, print."""
    from sparse_ddpm.inspection import check_plot, compare_inspections, save_plot

    if args.measure and args.device == "cuda":
        args.parser.error("--measure: expected the cpu engine")
    if args.device == "cuda" and args.threads is not None:
        args.parser.error("--threads: expected the cpu engine")
    if args.plot:
        check_plot(args.plot)
    found = _inspections(args)
    if args.plot:
        save_plot(found, args.plot)
    if not args.json:
        _print(found, args)
    elif len(found) == 1:
        common.print_json(found[0])
    else:
        first, second = found
        common.print_json(
            {"inspections": list(found), "comparison": compare_inspections(first, second)}
        )
    return 0


def _inspections(args: argparse.Namespace) -> tuple[Inspection, ...]:
    from sparse_ddpm.inspection import inspect_ticket
    from sparse_ddpm.ticket import find_ticket, load_ticket

    settings = _settings(args)
    _progress(args)
    if args.synthetic is not None:
        ticket, name = common.open_ticket(args)
        return (inspect_ticket(ticket, name, None, settings),)
    names = [args.ticket] if args.other is None else [args.ticket, args.other]
    found = []
    for name in names:
        path = find_ticket(name)
        shown = str(name or "shipped ticket")
        found.append(inspect_ticket(load_ticket(path), shown, path, settings))
    return tuple(found)


def _settings(args: argparse.Namespace) -> Settings:
    from sparse_ddpm.engine import default_dtype
    from sparse_ddpm.engine.cpu import default_threads
    from sparse_ddpm.inspection import Settings

    return Settings(
        batch=args.batch,
        device=args.device,
        dtype=args.dtype or default_dtype(args.device),
        threads=args.threads or default_threads(),
        steps=args.steps,
        measure=args.measure,
        gzip=args.plot is not None,
    )


def _progress(args: argparse.Namespace) -> None:
    if args.measure:
        print("inspect: measuring, some seconds", file=sys.stderr)


def _print(found: tuple[Inspection, ...], args: argparse.Namespace) -> None:
    from sparse_ddpm.inspection import comparison_lines, table_lines

    lines = (
        table_lines(found[0], args.sort, reasons=args.reasons)
        if len(found) == 1
        else comparison_lines(*found)
    )
    for line in lines:
        print(line)
    if args.plot:
        print(f"\n{args.plot}: drawn")
