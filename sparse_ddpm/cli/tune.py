"""``sparse-ddpm tune``: measure which GPU kernel suits each layer, once for a GPU."""

from __future__ import annotations

import argparse
from typing import Any

from sparse_ddpm.cli import common


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "tune",
        help="measure the GPU's kernels on a ticket, for later runs",
        description="Time the kernels that could run each convolution of a ticket on the GPU at "
        "hand, and keep the fastest. Every later run of --device cuda on this GPU, with this "
        "version of Triton, uses what was found. Layers that were timed before are not timed "
        "again.",
    )
    common.add_ticket(parser)
    parser.add_argument(
        "--batch", type=common.positive, nargs="+", default=[16], help="default: 16"
    )
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="of weights "
        "and activations (default: float16)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no new layer after this time"
    )
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, write the table, report."""
    from tqdm import tqdm

    from sparse_ddpm.engine import require_cuda
    from sparse_ddpm.lower import lower

    require_cuda()
    import triton

    from sparse_ddpm.engine.cuda.engine import gpu_name
    from sparse_ddpm.engine.cuda.tune import tune
    from sparse_ddpm.engine.cuda.tuned import Tuned

    ticket, name = common.open_ticket(args)
    program = lower(ticket)
    gpu = gpu_name()
    table = Tuned(gpu, triton.__version__) if args.again else Tuned.load(gpu, triton.__version__)
    measured = 0
    for batch in dict.fromkeys(args.batch):
        with tqdm(desc=f"batch {batch}", unit="layer", leave=False, disable=None) as bar:

            def progress(done: int, total: int, layer: str, bar: Any = bar) -> None:
                bar.total = total
                bar.set_postfix_str(layer, refresh=False)
                bar.update(done - bar.n)

            measured += tune(
                program, batch, args.dtype, table, seconds=args.seconds, progress=progress
            )
    path = table.save()
    if args.json:
        common.print_json(
            {
                "ticket": name,
                "gpu": gpu,
                "triton": triton.__version__,
                "dtype": args.dtype,
                "batch": args.batch,
                "measured": measured,
                "known": len(table.layers),
                "table": str(path),
            }
        )
    else:
        print(f"{path}: {measured} layers measured on {gpu}, {len(table.layers)} known")
    return 0
