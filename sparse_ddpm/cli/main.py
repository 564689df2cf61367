"""``sparse-ddpm``: one thin file per command. Heavy imports happen inside the commands."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from sparse_ddpm import __version__
from sparse_ddpm.errors import SparseDDPMError

COMMANDS = (
    "sample",
    "train",
    "convert",
    "inspect",
    "verify",
    "bench",
    "tune",
    "export",
    "compare",
    "evaluate",
    "judge",
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="sparse-ddpm",
        description="Train, check and sample from pruned diffusion models.",
        epilog="Progress goes to stderr, results to stdout. Exit status: 0 done, 1 failed, "
        "2 wrong usage. TICKET left out means the ticket that ships with the package.",
    )
    parser.add_argument("--version", action="version", version=f"sparse-ddpm {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"sparse_ddpm.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except SparseDDPMError as error:
        print(f"sparse-ddpm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sparse-ddpm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
