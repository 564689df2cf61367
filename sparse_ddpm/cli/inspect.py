"""``sparse-ddpm inspect``: FLOPs, bytes, formats and kernels of a ticket, layer by layer."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from sparse_ddpm.cli import common

if TYPE_CHECKING:
    from sparse_ddpm.accounting import OperationAccount
    from sparse_ddpm.engine.base import AnyPlan
    from sparse_ddpm.program import Program
    from sparse_ddpm.ticket import Ticket

SUMS = (
    "dense_flops",
    "surviving_flops",
    "executed_flops",
    "weight_bytes",
    "dense_weight_bytes",
    "read_bytes",
    "written_bytes",
)


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="what a ticket costs, layer by layer, and which kernels run it",
        description="Account for every operation of a ticket as an engine plans it. A "
        "multiplication and its addition are two FLOPs. FLOPs and activations are for one image "
        "and one step; dense counts all weights, surviving those that are stored, executed those "
        "that the kernel multiplies, filled-in zeros included. A LinearBlock is a linear attention "
        "with the norms and 1x1 convolutions around it, in one row because they run as one.",
    )
    common.add_ticket(parser)
    parser.add_argument(
        "--batch", type=common.positive, default=16, help="images at once (default: 16)"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="whose plan; cuda needs no GPU for it (default: cpu)",
    )
    common.add_dtype(parser)
    parser.add_argument(
        "--reasons", action="store_true", help="also print why each kernel was chosen"
    )
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Account and print."""
    from sparse_ddpm.accounting import account
    from sparse_ddpm.engine import default_dtype
    from sparse_ddpm.lower import lower
    from sparse_ddpm.ticket import find_ticket

    ticket, name = common.open_ticket(args)
    dtype = args.dtype or default_dtype(args.device)
    plan = _plan(lower(ticket), args.device, args.batch, dtype)
    rows = account(plan)
    totals: dict[str, int | None] = {key: sum(getattr(row, key) for row in rows) for key in SUMS}
    totals["arena_bytes"] = plan.arena_bytes
    totals["file_bytes"] = None
    if args.synthetic is None:
        totals["file_bytes"] = find_ticket(args.ticket).stat().st_size
    if args.json:
        common.print_json(
            {
                "ticket": name,
                "batch": args.batch,
                "device": args.device,
                "dtype": dtype,
                "sparsity": ticket.sparsity,
                "parameters": _parameters(ticket),
                "architecture": dataclasses.asdict(ticket.architecture),
                "diffusion": dataclasses.asdict(ticket.diffusion),
                "provenance": dataclasses.asdict(ticket.provenance),
                "totals": totals,
                "operations": [dataclasses.asdict(row) for row in rows],
            }
        )
    else:
        _print_summary(ticket, name)
        _print_table(rows, totals, plan, reasons=args.reasons)
    return 0


def _plan(program: Program, device: str, batch: int, dtype: str) -> AnyPlan:
    if device == "cuda":
        from sparse_ddpm.engine.cuda.plan import make_cuda_plan

        return make_cuda_plan(program, batch, dtype)
    from sparse_ddpm.engine.plan import make_plan

    return make_plan(program, batch, dtype)


def _parameters(ticket: Ticket) -> dict[str, int]:
    prunable = [p.name for p in ticket.parameters() if p.prunable]
    return {
        "all": sum(weight.size for weight in ticket.weights.values()),
        "prunable": sum(ticket.weights[name].size for name in prunable),
        "surviving": sum(ticket.survivors(name) for name in prunable),
    }


def _print_summary(ticket: Ticket, name: str) -> None:
    config, diffusion, origin = ticket.architecture, ticket.diffusion, ticket.provenance
    count = _parameters(ticket)
    size = config.image_size
    print(f"{name}")
    print(
        f"  U-Net {config.dim} x {config.dim_mults}, images {config.channels}x{size}x{size}; "
        f"{diffusion.objective} objective, {diffusion.schedule} schedule of "
        f"{diffusion.timesteps} steps"
    )
    print(
        f"  {count['surviving']:,} of {count['prunable']:,} prunable weights survive: "
        f"sparsity {ticket.sparsity:.2%}, pattern {origin.pattern}"
    )
    if origin.dataset:
        print(
            f"  from {origin.dataset}, seed {origin.seed}, round {origin.round}, "
            f"rewinding {origin.rewinding}, allocation {origin.allocation}"
        )
    print()


def _print_table(
    rows: tuple[OperationAccount, ...],
    totals: dict[str, int | None],
    plan: AnyPlan,
    *,
    reasons: bool,
) -> None:
    header = (
        f"{'operation':<22} {'kind':<15} {'output':>12} {'density':>8} "
        f"{'dense':>9} {'surviving':>9} {'executed':>9} {'weights':>9}  kernel"
    )
    print(header)
    print(f"{'':<22} {'':<15} {'':>12} {'':>8} {'MFLOP':>9} {'MFLOP':>9} {'MFLOP':>9} {'KiB':>9}")
    for row in rows:
        shape = "x".join(str(side) for side in row.shape)
        density = "" if row.density is None else f"{row.density:.1%}"
        kernel = f"{row.format} {row.kernel}".strip()
        print(
            f"{row.name:<22} {row.kind:<15} {shape:>12} {density:>8} "
            f"{_mega(row.dense_flops):>9} {_mega(row.surviving_flops):>9} "
            f"{_mega(row.executed_flops):>9} {_kibi(row.weight_bytes):>9}  {kernel}"
            + (f": {row.reason}" if reasons else "")
        )
    print("-" * len(header))
    dense, surviving, executed = (
        _mega(totals[key]) for key in ("dense_flops", "surviving_flops", "executed_flops")
    )
    weights = _kibi(totals["weight_bytes"])
    print(
        f"{'total':<22} {'':<15} {'':>12} {'':>8} "
        f"{dense:>9} {surviving:>9} {executed:>9} {weights:>9}"
    )
    print()
    print(
        f"weights in memory     {weights:>9} KiB, dense {_kibi(totals['dense_weight_bytes'])} KiB"
    )
    arena = _kibi(totals["arena_bytes"])
    print(f"activations (arena)   {arena:>9} KiB at batch {plan.batch}, {plan.dtype}")
    if totals["file_bytes"] is not None:
        print(f"file                  {_kibi(totals['file_bytes']):>9} KiB")


def _mega(flops: int | None) -> str:
    return f"{flops / 1e6:,.2f}" if flops else ""


def _kibi(size: int | None) -> str:
    return f"{size / 1024:,.1f}" if size else ""
