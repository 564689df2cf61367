"""``sparse-ddpm train``: from images to a lottery ticket."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparse_ddpm.cli import common


def add_parser(subparsers: Any) -> None:
    """Register the command; an option that is not given is not in the namespace."""
    parser = subparsers.add_parser(
        "train",
        help="find a lottery ticket by iterative magnitude pruning",
        description="Train a U-Net and prune it in rounds. Needs torch. A run that was stopped, "
        "or killed, goes on with --resume and ends with the same ticket.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--data", metavar="SPEC", help="mnist:DIR, cifar10:PATH, cifar100:PATH or images:PATH")
    add("--out", required=True, type=Path, metavar="DIR", help="the folder of this run")
    add("--resume", action="store_true", default=False, help="go on with the run in --out")
    add("--download", action="store_true", default=False, help="fetch official data if missing")
    network = parser.add_argument_group("network and diffusion")
    add = network.add_argument
    add("--preset", choices=("small", "paper"), help="default: small")
    add("--image-size", type=int, metavar="N", help="instead of the preset's 32")
    add(
        "--weight-standardization",
        choices=("surviving", "none"),
        help="of the 3x3 convolutions in the blocks, over surviving weights (default: surviving)",
    )
    add("--schedule", choices=("linear", "cosine", "sigmoid"), help="default: sigmoid")
    add("--objective", choices=("eps", "x0", "v"), help="default: eps")
    add("--timesteps", type=int, metavar="T", help="default: 1000")
    lottery = parser.add_argument_group("lottery")
    add = lottery.add_argument
    add("--rounds", type=int, metavar="R", help="pruning rounds after the dense one (default: 11)")
    amount = lottery.add_mutually_exclusive_group()
    amount.add_argument(
        "--prune-fraction",
        type=float,
        metavar="F",
        help="part of the remaining weights that goes in each round (default: 0.2)",
    )
    amount.add_argument(
        "--sparsity", type=float, metavar="S", help="part of all that is gone after the last round"
    )
    add(
        "--allocation",
        choices=("uniform", "global"),
        help="the same fraction in each layer, or one threshold over all (default: uniform)",
    )
    add("--pattern", help="the unit that is pruned (default: element, the only one yet)")
    add("--rewind", help="init, late:K (weights after K dense steps) or lr (default: init)")
    add("--dense-steps", type=int, metavar="N", help="steps of round 0 (default: 2000)")
    add("--steps", type=int, metavar="N", help="steps of every other round (default: 2000)")
    add("--final-steps", type=int, metavar="N", help="steps of the last round, if not --steps")
    add(
        "--control",
        action="append",
        choices=("reinit", "random-mask"),
        default=[],
        help="after the last round also train fresh weights with its masks (reinit), or its "
        "weights with random masks of the same densities; may be given twice",
    )
    optimization = parser.add_argument_group("optimization")
    add = optimization.add_argument
    add("--batch-size", type=int, metavar="N", help="default: 64")
    add("--lr", type=float, help="default: 3e-4")
    add(
        "--lr-schedule",
        choices=("constant", "one-cycle"),
        help="begun anew in every round (default: constant)",
    )
    add("--optimizer", choices=("adam", "adamw"), help="default: adam")
    add("--weight-decay", type=float, help="default: 0")
    add("--clip-gradient", type=float, metavar="NORM", help="default: 1")
    add("--loss", choices=("l1", "l2"), help="default: l1")
    add("--ema", type=float, metavar="DECAY", help="default: 0.995")
    add("--flip", action="store_true", help="flip half of the images left to right")
    add("--seed", type=int, help="default: 0")
    machine = parser.add_argument_group("machine and files")
    add = machine.add_argument
    add("--device", choices=("auto", "cpu", "cuda"), help="default: auto")
    add(
        "--precision",
        choices=("auto", "float32", "bf16"),
        help="bf16 is autocast; auto is bf16 where the processor multiplies it (default: auto)",
    )
    add("--threads", type=common.positive, help="default: all cores at hand")
    add(
        "--store",
        choices=("float32", "float16"),
        help="values of the final ticket; float16 halves its file (default: float32)",
    )
    add(
        "--steps-per-checkpoint",
        type=common.positive,
        default=500,
        metavar="N",
        help="how much work a kill can cost (default: 500)",
    )
    add("--json", action="store_true", default=False, help="print one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, then report where the ticket is and how each round went."""
    try:
        from sparse_ddpm.lottery.session import train
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from sparse_ddpm.errors import MissingDependencyError, expected

        raise MissingDependencyError(
            expected("train", "torch (pip install 'sparse-ddpm[train]')", "none installed")
        ) from error
    given = vars(args)
    not_settings = ("command", "run", "out", "resume", "download", "control", "json")
    chosen = {
        name: value
        for name, value in given.items()
        if name not in (*not_settings, "steps_per_checkpoint")
    }
    metrics = train(
        args.out,
        chosen,
        resume=args.resume,
        download=args.download,
        controls=args.control,
        steps_per_checkpoint=args.steps_per_checkpoint,
    )
    ticket = args.out / "ticket.pt"
    if args.json:
        common.print_json(
            {
                "out": str(args.out),
                "ticket": str(ticket),
                "rounds": [m for m in metrics if m["control"] is None],
                "controls": [m for m in metrics if m["control"] is not None],
            }
        )
        return 0
    for m in metrics:
        name = m["control"] or f"round {m['round']}"
        print(
            f"{name:12} density {m['density']:8.3%}  train {m['train_loss']:.4f}  "
            f"held out {m['held_out_loss']:.4f}  {m['seconds']:.0f} s"
        )
    print(f"{ticket}: {ticket.stat().st_size / 1e3:.0f} kB")
    return 0
