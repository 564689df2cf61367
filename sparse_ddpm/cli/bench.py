"""``sparse-ddpm bench``: this engine's step beside those of other runtimes."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_ddpm.cli import common

if TYPE_CHECKING:
    from sparse_ddpm.ticket import Ticket


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "bench",
        help="time a step beside torch, onnxruntime and OpenVINO",
        description="Time one denoising step of a ticket: this package's engine and its peers on "
        "the same masked weights, each in a process of its own, in turns. Outputs are compared "
        'with the float64 reference before anything is timed. Peers: pip install ".[peers]".',
    )
    common.add_ticket(parser)
    parser.add_argument(
        "--batch",
        type=common.positive,
        nargs="+",
        default=[1, 16],
        help="images at once, one or more numbers (default: 1 16)",
    )
    common.add_engine(parser)
    parser.add_argument(
        "--dtype",
        nargs="+",
        metavar="DTYPE",
        help=f"of this package's engine, one or more of {common.DTYPE_HELP} (default: all, or "
        "float32 with --layers or --device numpy)",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help="all, none, or names (default: all)",
    )
    parser.add_argument(
        "--dense",
        action="store_true",
        help="also this package's engine with every weight stored, those pruned too: what the "
        "sparsity alone is worth",
    )
    parser.add_argument(
        "--layers",
        action="store_true",
        help="no peers: each layer of this package's engine beside the machine's limits",
    )
    parser.add_argument(
        "--rounds", type=common.positive, default=10, help="turns of each engine (default: 10)"
    )
    parser.add_argument(
        "--seed", type=common.natural, default=0, help="of the input and of the order (default: 0)"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="also draw the steps as bars (.png, .svg, .pdf)",
    )
    common.add_json(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Time the engines, or with ``--layers`` the layers of one."""
    if args.synthetic is not None:
        args.synthetic = fraction(args.synthetic)
    return run_layers(args) if args.layers else run_engines(args)


def run_engines(args: argparse.Namespace) -> int:
    """Build, compare, time, report."""
    from sparse_ddpm.bench.engines import ours, select_peers
    from sparse_ddpm.bench.machine import cores, machine, versions
    from sparse_ddpm.bench.measure import Rhythm
    from sparse_ddpm.bench.picture import check_picture, save_steps
    from sparse_ddpm.bench.report import problem_row, result_row, table
    from sparse_ddpm.bench.run import Settings, benchmark, ratios
    from sparse_ddpm.errors import ConfigError
    from sparse_ddpm.lower import lower

    try:
        engines = (
            *(ours(name, args.device) for name in dtypes(args)),
            *(ours(name, args.device, dense=True) for name in dtypes(args) if args.dense),
            *select_peers(args.peers, args.device),
        )
    except ConfigError as error:
        args.parser.error(str(error))
    if args.picture:
        check_picture(args.picture)
    ticket, name = common.open_ticket(args)
    threads = args.threads or cores()
    started = machine()
    with ticket_file(args, ticket) as path:
        settings = Settings(
            ticket=str(path),
            program=lower(ticket),
            timesteps=ticket.diffusion.timesteps,
            batches=tuple(dict.fromkeys(args.batch)),
            threads=threads,
            device=args.device,
            engines=engines,
            rhythm=Rhythm(rounds=args.rounds),
            seed=args.seed,
        )
        outcomes = benchmark(settings, progress)
    clear_progress()
    found = ratios(outcomes)
    failed = [o for o in outcomes if o.times is None]
    result = {
        **about(ticket, name, args.device, threads),
        "results": [result_row(o) for o in outcomes if o.times is not None],
        "ratios": found,
        "missing": [problem_row(o) for o in failed if o.missing],
        "failed": [problem_row(o) for o in failed if not o.missing],
        "rounds": args.rounds,
        "seed": args.seed,
        "machine": started,
        "versions": versions(),
    }
    if args.picture and result["results"]:
        save_steps(result, args.picture)
    if args.json:
        common.print_json(result)
    else:
        print(heading(ticket, name, threads))
        for line in table(outcomes, found):
            print(line)
    # What this machine lacks is a failure only where it was asked for by name.
    ok = all(not o.spec.own or (o.missing and args.dtype is None) for o in failed)
    return 0 if ok else 1


def dtypes(args: argparse.Namespace) -> tuple[str, ...]:
    """Of this package's engine: those asked for, without repetition."""
    from sparse_ddpm.bench.engines import OUR_TOLERANCES

    if args.dtype is not None:
        return tuple(dict.fromkeys(args.dtype))
    if args.device == "cuda":
        return ("float16", "bfloat16")
    return ("float32",) if args.layers or args.device == "numpy" else tuple(OUR_TOLERANCES)


def run_layers(args: argparse.Namespace) -> int:
    """A roofline: every operation of the engine's step beside the measured limits."""
    from sparse_ddpm.bench.ceilings import measure_ceilings
    from sparse_ddpm.bench.layers import table, time_layers, totals
    from sparse_ddpm.bench.machine import cores, machine
    from sparse_ddpm.lower import lower

    dtype, *more = dtypes(args)
    if args.device in ("numpy", "cuda") or more or args.picture or args.dense:
        args.parser.error("--layers: expected the cpu engine, one --dtype, no --picture or --dense")
    ticket, name = common.open_ticket(args)
    program = lower(ticket)
    progress("the machine's limits")
    ceilings = measure_ceilings(args.threads or cores())
    middle = float(ticket.diffusion.timesteps // 2)
    found = []
    for batch in dict.fromkeys(args.batch):
        progress(f"batch {batch}: layers")
        found.append(
            time_layers(
                program,
                ceilings,
                batch=batch,
                timestep=middle,
                dtype=dtype,
                seed=args.seed,
            )
        )
    clear_progress()
    if args.json:
        common.print_json(
            {
                **about(ticket, name, args.device, ceilings.threads),
                "dtype": dtype,
                "ceilings": ceilings.as_json(),
                "totals": [totals(layers) for layers in found],
                "layers": [layer.as_json() for layers in found for layer in layers],
                "machine": machine(),
            }
        )
        return 0
    limits = ceilings.as_json()
    levels = ", ".join(f"{level} {rate:.0f}" for level, rate in limits["gbytes_per_s"].items())
    print(
        f"{heading(ticket, name, ceilings.threads)}\n{ceilings.isa}: "
        f"{limits['gflops_per_s']:.0f} GFLOP/s of multiply-adds; GB/s read from {levels}"
    )
    for layers in found:
        print(f"\nbatch {layers[0].batch}")
        for line in table(layers):
            print(line)
    return 0


def about(ticket: Ticket, name: str, device: str, threads: int) -> dict[str, Any]:
    """What both forms of the JSON object begin with."""
    return {
        "device": device,
        "threads": threads,
        "model": model_name(ticket),
        "sparsity": ticket.sparsity,
        "pattern": ticket.provenance.pattern,
        "ticket": name,
    }


def heading(ticket: Ticket, name: str, threads: int) -> str:
    """The same for people."""
    from sparse_ddpm.bench.machine import cpu_name

    return (
        f"{name}: {model_name(ticket)}, {ticket.sparsity:.2%} of the prunable weights pruned "
        f"({ticket.provenance.pattern}); {threads} thread{'s' * (threads > 1)} on {cpu_name()}"
    )


def fraction(text: str) -> str:
    """``MODEL:SPARSITY:PATTERN`` with a percentage (``90%``, ``90``) written as a fraction."""
    model, _, rest = text.partition(":")
    sparsity, colon, pattern = rest.partition(":")
    try:
        number = float(sparsity.removesuffix("%"))
    except ValueError:
        return text
    if sparsity.endswith("%") or 1.0 < number < 100.0:
        sparsity = repr(round(number / 100.0, 12))
    return f"{model}:{sparsity}{colon}{pattern}"


def model_name(ticket: Ticket) -> str:
    """``paper`` or ``small`` where the architecture is that preset, else its widths."""
    from sparse_ddpm.ticket import MODELS, UNet2DConfig

    config = ticket.architecture
    named = [name for name, model in MODELS.items() if model == config]
    if named:
        return named[0]
    size = f"{config.channels}x{config.image_size}x{config.image_size}"
    if isinstance(config, UNet2DConfig):
        return f"unet2d-{'-'.join(map(str, config.block_out_channels))}-{size}"
    return f"unet-{config.dim}x{'-'.join(map(str, config.dim_mults))}-{size}"


@contextlib.contextmanager
def ticket_file(args: argparse.Namespace, ticket: Ticket) -> Iterator[Path]:
    """The file of ``ticket``, a temporary one where it is synthetic."""
    from sparse_ddpm.ticket import find_ticket, save_ticket

    if args.synthetic is None:
        yield find_ticket(args.ticket)
        return
    with tempfile.TemporaryDirectory(prefix="sparse-ddpm-bench-") as folder:
        path = Path(folder) / "ticket.safetensors"
        save_ticket(ticket, path)
        yield path


def progress(text: str) -> None:
    """On a terminal one line that changes, else a line for each engine built."""
    if sys.stderr.isatty():
        print(f"\r\x1b[Kbench: {text}", end="", file=sys.stderr, flush=True)
    else:
        print(f"bench: {text}", file=sys.stderr, flush=True)


def clear_progress() -> None:
    """Leave no half line on a terminal."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
