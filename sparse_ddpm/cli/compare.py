"""``sparse-ddpm compare``: how alike the masks of two tickets are, beyond chance."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_ddpm.cli import common

if TYPE_CHECKING:
    from sparse_ddpm.similarity import Comparison, Likeness
    from sparse_ddpm.ticket import Ticket

MARKED = 3.0
"""Deviations of chance from which a row of the table is marked."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "compare",
        help="how alike the masks of two tickets are, block by block",
        description="Compare the masks of two tickets of one architecture from upstream to "
        "downstream. Overlap: the part of the sparser mask that the other keeps too. Jaccard: kept "
        "by both over kept by either. Corrected: 1 for equal masks, 0 on average for random masks "
        "that keep as much in each layer, with the standard deviation of that. Rows of several "
        "layers add up what their layers count. Where both tickets have one pattern its units are "
        "counted, else weights. Channels are compared by their place, so tickets trained with "
        "permuted channels are alike by chance only.",
    )
    for name in ("first", "second"):
        parser.add_argument(name, metavar="TICKET", help="a .pt or .safetensors ticket")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="also draw the similarity over depth (.png, .svg, .pdf; needs matplotlib)",
    )
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, draw, print."""
    from sparse_ddpm.similarity import compare
    from sparse_ddpm.ticket import load_ticket

    if args.plot:
        from sparse_ddpm.bench.picture import check_picture

        check_picture(args.plot)
    first, second = load_ticket(args.first), load_ticket(args.second)
    found = compare(first, second)
    if args.plot:
        from sparse_ddpm.similarity.picture import save_similarity

        save_similarity(found, _title(first, second), args.plot)
    if args.json:
        common.print_json(
            {
                "tickets": [
                    _about(first, args.first),
                    _about(second, args.second),
                ],
                "same_beginning": found.same_beginning,
                "trend": found.trend,
                "trend_down": found.trend_down,
                "trend_up": found.trend_up,
                "total": found.total.as_json(),
                **{
                    level: [row.as_json() for row in getattr(found, level)]
                    for level in ("stages", "blocks", "layers")
                },
            }
        )
    else:
        _print(found, first, second, args)
    return 0


def _about(ticket: Ticket, name: str) -> dict[str, Any]:
    origin = ticket.provenance
    return {
        "ticket": name,
        "dataset": origin.dataset,
        "seed": origin.seed,
        "round": origin.round,
        "rewinding": origin.rewinding,
        "allocation": origin.allocation,
        "pattern": origin.pattern,
        "sparsity": ticket.sparsity,
        "initial_sha256": origin.initial_sha256,
    }


def _title(first: Ticket, second: Ticket) -> str:
    names = [
        f"{t.provenance.pattern}, {t.sparsity:.1%} pruned, seed {t.provenance.seed}"
        for t in (first, second)
    ]
    return " against ".join(names)


def _print(found: Comparison, first: Ticket, second: Ticket, args: argparse.Namespace) -> None:
    from sparse_ddpm.similarity import block_of

    for name, ticket in ((args.first, first), (args.second, second)):
        origin = ticket.provenance
        print(
            f"{name}: {ticket.sparsity:.2%} of the prunable weights pruned ({origin.pattern}), "
            f"seed {origin.seed}, rewinding {origin.rewinding or 'unknown'}"
        )
    print(f"same initial weights: {'yes' if found.same_beginning else 'no, or unknown'}\n")
    header = (
        f"{'':<26} {'unit':<10} {'units':>9} {'kept':>7} {'kept':>7} "
        f"{'overlap':>8} {'Jaccard':>8} {'chance':>8} {'corrected':>9} {'± chance':>8}"
    )
    print(header)
    for block in found.blocks:
        layers = [row for row in found.layers if block_of(row.name) == block.name]
        print(_line(block, block.name))
        if len(layers) > 1:
            for row in layers:
                inside = row.name.removeprefix(f"{block.name}.").removesuffix(".weight")
                print(_line(row, f"  {inside}"))
    print("-" * len(header))
    for stage in found.stages:
        print(_line(stage, stage.name))
    print("-" * len(header))
    print(_line(found.total, "all"))
    print(f"\n* more than {MARKED:g} standard deviations of chance away from chance")
    trends = {"all": found.trend, "down": found.trend_down, "up": found.trend_up}
    known = [f"{name} {trend:+.2f}" for name, trend in trends.items() if trend is not None]
    if known:
        print(f"rank correlation of depth and corrected index over blocks: {', '.join(known)}")


def _line(row: Likeness, name: str) -> str:
    mark = "*" if row.score is not None and abs(row.score) > MARKED else ""
    return (
        f"{name:<26} {row.unit:<10} {row.total:>9} {row.first / row.total:>7.1%} "
        f"{row.second / row.total:>7.1%} {_number(row.overlap):>8} {_number(row.jaccard):>8} "
        f"{_number(row.chance):>8} {_number(row.corrected):>9} "
        f"{_number(row.corrected_deviation):>8} {mark}"
    ).rstrip()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
