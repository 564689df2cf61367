"""What the commands share: arguments, opening a ticket, printing JSON."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from sparse_ddpm.errors import ConfigError, expected

if TYPE_CHECKING:
    from sparse_ddpm.ticket import Ticket

SCHEMA = 1
DTYPE_HELP = (
    "float32; float16, which stores activations so and computes in float32 (avx2, avx512, neon); "
    "bfloat16, which besides multiplies panels of 8 and 16 channels so (AVX512-BF16)"
)


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text}")
    return value


def natural(text: str) -> int:
    """An argparse type: an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, got {text}")
    return value


def add_ticket(parser: argparse.ArgumentParser, *, synthetic: bool = True) -> None:
    """``TICKET`` and, where it makes sense, ``--synthetic``."""
    parser.add_argument(
        "ticket",
        nargs="?",
        metavar="TICKET",
        help="a .pt or .safetensors ticket, or the name of one that ships (default: mnist)",
    )
    if synthetic:
        parser.add_argument(
            "--synthetic",
            metavar="MODEL:SPARSITY:PATTERN",
            help="a random ticket instead, for example paper:0.9:element or small:0.95:vector:8",
        )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--threads``."""
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda", "numpy"),
        help="engine: cpu is C++, cuda is Triton on a GPU, numpy the slow reference (default: "
        "auto, which is cpu)",
    )
    parser.add_argument(
        "--threads", type=positive, help="threads of the cpu engine (default: all cores at hand)"
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """``--dtype``, one."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help=f"of the cpu engine: {DTYPE_HELP} (default: float32); of cuda: of weights and "
        "activations, sums are float32 (default: float16)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def open_ticket(args: argparse.Namespace) -> tuple[Ticket, str]:
    """The ticket that the arguments name, and a name for it to print."""
    from sparse_ddpm.ticket import find_ticket, load_ticket

    text = getattr(args, "synthetic", None)
    if text is not None:
        if args.ticket is not None:
            raise ConfigError(expected("--synthetic", "no TICKET beside it", args.ticket))
        return synthetic(text), text
    return load_ticket(find_ticket(args.ticket)), str(args.ticket or "shipped ticket")


def synthetic(text: str) -> Ticket:
    """The random ticket described by ``MODEL:SPARSITY:PATTERN``."""
    from sparse_ddpm.ticket import MODELS, synthetic_ticket

    model, _, rest = text.partition(":")
    fraction, _, pattern = rest.partition(":")
    try:
        sparsity = float(fraction)
    except ValueError:
        sparsity = -1.0
    if model not in MODELS or not 0.0 <= sparsity < 1.0:
        wanted = f"MODEL:SPARSITY:PATTERN with MODEL one of {', '.join(MODELS)}, SPARSITY in [0, 1)"
        raise ConfigError(expected("--synthetic", wanted, repr(text)))
    return synthetic_ticket(MODELS[model], sparsity, pattern or "element")


def print_json(result: dict[str, Any]) -> None:
    """Print ``result`` as one JSON object, the schema number first."""
    print(json.dumps({"schema": SCHEMA, **result}, allow_nan=False))
