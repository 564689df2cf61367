"""``sparse-ddpm export``: a ticket as an ONNX file, or as one for the library without Python."""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_ddpm.cli import common

if TYPE_CHECKING:
    from sparse_ddpm.ticket import Ticket

STEPS = 50


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "export",
        help="write a ticket as an ONNX file, or as a native model",
        description="Write a ticket as one ONNX file that standard runtimes load without plug-ins: "
        "the network, or a whole sampler, noise in and images out. Sparse weights stay small in "
        "the file. It is held against our engine in onnxruntime before it gets its name. "
        "Needs onnx and onnxruntime: pip install 'sparse-ddpm[onnx]'. Or, with --what native, as "
        "a model for the C library, which needs neither (docs/native.md).",
    )
    common.add_ticket(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="MODEL.onnx", help="the file to write"
    )
    parser.add_argument(
        "--what",
        choices=tuple(EXPORTERS),
        default="denoiser",
        help="denoiser: one call of the network (default); sampler: all steps in one Loop; "
        "step: one step of a sampler, for callers that show progress; native: weights and "
        "samplers for the C library",
    )
    sampler = parser.add_argument_group("of a sampler or a step")
    sampler.add_argument("--sampler", choices=("ddpm", "ddim", "dpm++"), help="default: ddim")
    sampler.add_argument("--steps", type=common.positive, help=f"default: {STEPS}")
    sampler.add_argument("--eta", type=float, help="noise of ddim, 0 to 1 (default: 0)")
    sampler.add_argument(
        "--seed",
        type=common.natural,
        help="of a sampler: put the noise of this seed into the file, which then has no inputs",
    )
    sampler.add_argument(
        "--images", type=common.positive, help="with --seed: how many (default: 1)"
    )
    native = parser.add_argument_group("of a native model")
    native.add_argument(
        "--samplers",
        nargs="+",
        metavar="NAME:STEPS",
        help="several, such as ddim:50 dpm++:20, instead of --sampler and --steps",
    )
    native.add_argument(
        "--batch",
        type=common.positive,
        nargs="+",
        metavar="N",
        help="images at once to plan for; others work too (default: 1 16)",
    )
    form = parser.add_argument_group("the file")
    form.add_argument(
        "--weights",
        choices=("packed", "dense", "sparse"),
        default="packed",
        help="packed: gaps and values, decoded at load (default); dense; sparse: the standard's "
        "sparse constants, poorly supported",
    )
    form.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the weights in the file; the computation is float32 (default: float32)",
    )
    form.add_argument("--opset", type=int, help="17 to 22 (default: 17)")
    form.add_argument(
        "--keep-dead",
        action="store_true",
        help="keep channels that no image depends on, and hand convolutions all of their input",
    )
    form.add_argument(
        "--no-check", action="store_true", help="do not run the file beside our engine"
    )
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, write, report."""
    ticket, name = common.open_ticket(args)
    report, text = EXPORTERS[args.what](args, ticket)
    if args.json:
        common.print_json({"ticket": name, "output": str(args.output), "what": args.what, **report})
    else:
        print(f"{args.output}: {args.what}, {text}")
    return 0


Exporter = Callable[[argparse.Namespace, "Ticket"], tuple[dict[str, Any], str]]
"""Writes ``args.output``; returns what ``--json`` prints of it, and a line for people."""


def _onnx(args: argparse.Namespace, ticket: Ticket) -> tuple[dict[str, Any], str]:
    from sparse_ddpm_export import Export, Form

    from sparse_ddpm.errors import ConfigError, expected
    from sparse_ddpm.files import write_atomically

    for name in ("samplers", "batch"):
        if getattr(args, name) is not None:
            got = f"--what {args.what}"
            raise ConfigError(expected(f"--{name}", "--what native beside it", got))
    form = Form(args.weights, args.dtype, *(() if args.opset is None else (args.opset,)))
    export = Export(ticket, args.what, **_sampling(args), remove=not args.keep_dead)
    content = export.content(form)
    error = None if args.no_check else export.check(content, form)
    dense = export.plain(form.opset)
    zipped = len(gzip.compress(dense, compresslevel=6))
    write_atomically(args.output, lambda file: file.write(content))
    report = {
        "opset": form.opset,
        "weights": form.weights,
        "dtype": form.dtype,
        "sparsity": ticket.sparsity,
        "bytes": len(content),
        "dense_bytes": len(dense),
        "gzip_dense_bytes": zipped,
        "ratio": len(content) / len(dense),
        "checked": error is not None,
        "error": error,
    }
    checked = "not checked" if error is None else f"within {error:.1g} of our engine"
    return report, (
        f"opset {form.opset}, {len(content) / 1e6:.2f} MB ({len(content) / len(dense):.1%} of "
        f"dense {len(dense) / 1e6:.2f} MB; gzip of dense {zipped / 1e6:.2f} MB), {checked}"
    )


def _native(args: argparse.Namespace, ticket: Ticket) -> tuple[dict[str, Any], str]:
    from sparse_ddpm.cli.export_native import export_native

    return export_native(args, ticket, _sampling(args))


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of a sampler that were given; `ConfigError` where ``--what`` has none."""
    from sparse_ddpm.errors import ConfigError, expected

    given = {
        name: getattr(args, name)
        for name in ("sampler", "steps", "eta", "seed", "images")
        if getattr(args, name) is not None
    }
    known = {"sampler": 5, "step": 3, "native": 3}.get(args.what, 0)
    for name in given:
        if name not in ("sampler", "steps", "eta", "seed", "images")[:known]:
            raise ConfigError(expected(f"--{name}", f"none with --what {args.what}", given[name]))
    if "images" in given and "seed" not in given:
        raise ConfigError(expected("--images", "--seed beside it", "none"))
    return given


EXPORTERS: dict[str, Exporter] = {
    "denoiser": _onnx,
    "sampler": _onnx,
    "step": _onnx,
    "native": _native,
}
