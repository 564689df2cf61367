"""``sparse-ddpm train``: from images to a lottery ticket."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_ddpm.cli import common

if TYPE_CHECKING:
    from fractions import Fraction

    from sparse_ddpm.ticket.config import Pattern, UNetConfig


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
    add(
        "--from",
        dest="begin",
        type=Path,
        default=None,
        metavar="TICKET",
        help="begin with this ticket, its network and diffusion: train on under its mask for "
        "--steps steps or, with --rounds or --sparsity, prune on from there",
    )
    add("--resume", action="store_true", default=False, help="go on with the run in --out")
    add("--download", action="store_true", default=False, help="fetch official data if missing")
    network = parser.add_argument_group("network and diffusion")
    add = network.add_argument
    add("--preset", choices=("small", "paper"), help="default: small")
    add("--image-size", type=int, metavar="N", help="instead of the preset's 32")
    add("--dim", type=int, metavar="N", help="channels of the first level, instead of the preset's")
    add(
        "--weight-standardization",
        choices=("surviving", "full", "none"),
        help="of the 3x3 convolutions in the blocks, over surviving weights or over all, pruned "
        "zeros included (default: surviving)",
    )
    schedules = ("linear", "cosine", "sigmoid", "scaled_linear")
    add("--schedule", choices=schedules, help="default: sigmoid")
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
        choices=("uniform", "global", "erk", "lamp", "similarity", "latency"),
        help="how the survivors are shared out: the same fraction in each layer, one threshold of "
        "magnitude over all, Erdos-Renyi-kernel densities, LAMP scores, densities from the "
        "likeness of two tickets, or LAMP scores over estimated time on the CPU engine "
        "(default: uniform)",
    )
    add(
        "--similar-to",
        nargs=2,
        type=Path,
        default=[],
        metavar="TICKET",
        help="two tickets for --allocation similarity: blocks whose masks are more alike than "
        "chance stay denser; of one --seed and two --data-seed, as two seeds agree nowhere",
    )
    add(
        "--pattern",
        help="the unit of convolutions that is pruned: element, vector:G (G output channels) or "
        "block:RxC (R output by C input channels of one tap) (default: vector:8, of those measured "
        "the fastest at equal quality on a CPU)",
    )
    add(
        "--permute",
        action="store_true",
        help="before the first pruning, reorder channels so that units keep more; exact",
    )
    add(
        "--gradual",
        action="store_true",
        help="one round that begins dense, its mask on a cubic schedule, instead of many rounds",
    )
    add(
        "--ramp",
        type=float,
        metavar="PART",
        help="part, below 1, of a gradual round's steps in which weights go; in the rest the "
        "mask stays as it is (default: 0.75)",
    )
    add("--rewind", help="init, late:K (weights after K dense steps) or lr (default: init)")
    add("--dense-steps", type=int, metavar="N", help="steps of round 0 (default: 2000)")
    add("--steps", type=int, metavar="N", help="steps of every other round (default: 2000)")
    add("--final-steps", type=int, metavar="N", help="steps of the last round, if not --steps")
    add(
        "--control",
        action="append",
        type=_control,
        default=[],
        metavar="NAME",
        help="after the last round also train fresh weights with its masks (reinit), its weights "
        "with random masks of the same densities (random-mask), or a dense U-Net of part of the "
        "width (narrow:FRACTION); may be given again",
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
    add(
        "--distil",
        type=float,
        metavar="WEIGHT",
        help="part, from 0 to 1, of the dense average's prediction in what rounds after the dense "
        "one learn (default: 0)",
    )
    add("--ema", type=float, metavar="DECAY", help="default: 0.995")
    add("--flip", action="store_true", help="flip half of the images left to right")
    add("--seed", type=int, help="default: 0")
    add(
        "--data-seed",
        type=int,
        metavar="SEED",
        help="of the order of images, timesteps and noise, where the weights begin as --seed says "
        "(default: that of --seed)",
    )
    machine = parser.add_argument_group("machine and files")
    add = machine.add_argument
    add("--device", choices=("auto", "cpu", "cuda"), help="default: auto")
    add(
        "--precision",
        choices=("auto", "float32", "bf16"),
        help="bf16 is autocast; auto is bf16 where the processor multiplies it (default: auto)",
    )
    add(
        "--kernels",
        choices=("auto", "torch", "sparse"),
        help="torch's, or our own for the CPU, float32, whose time is that of the surviving "
        "weights; auto takes the faster for the density of each round (default: auto)",
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


def _control(text: str) -> str:
    from sparse_ddpm.errors import ConfigError
    from sparse_ddpm.lottery.controls import check_control

    try:
        check_control(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def weight_costs(architecture: UNetConfig, pattern: Pattern, density: Fraction) -> dict[str, float]:
    """What one surviving weight of each prunable parameter costs in a step on the CPU engine.

    In multiply-adds of a vector of pixels, by the plan's own model: the pixels that the weight is
    used on, times the time of the panel entries that hold a random mask of ``pattern`` and
    ``density``, over the weights in them. Float32, a vector of images at once.
    """
    import numpy as np

    from sparse_ddpm.engine.costs import IMAGES_COSTS, Way
    from sparse_ddpm.engine.panels import choose_group
    from sparse_ddpm.formats import CSR
    from sparse_ddpm.lottery.costs import pixels_of
    from sparse_ddpm.lottery.pruning import prunable
    from sparse_ddpm.ticket.synthetic import random_mask

    costs = IMAGES_COSTS["float32"]
    pixels = pixels_of(architecture)
    rng = np.random.default_rng(0)
    out: dict[str, float] = {}
    for parameter in prunable(architecture):
        name = parameter.name
        if pixels[name] == 0:
            out[name] = 0.0
            continue
        mask = random_mask(parameter.shape, 1.0 - float(density), pattern, rng)
        mask = mask.reshape(len(mask), -1)
        choice = choose_group(CSR.from_dense(mask.astype(np.float32), mask), costs=costs)
        entry = choice.entries * costs[Way(choice.group, False)].entry / np.count_nonzero(mask)
        out[name] = float(pixels[name] * entry)
    return out


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
    not_settings = ("command", "run", "out", "begin", "resume", "download", "control", "similar_to")
    chosen = {
        name: value
        for name, value in given.items()
        if name not in (*not_settings, "json", "steps_per_checkpoint")
    }
    if "gradual" in chosen:
        chosen.setdefault("rounds", 1)
    metrics = train(
        args.out,
        chosen,
        resume=args.resume,
        download=args.download,
        controls=args.control,
        begin=args.begin,
        similar_to=args.similar_to,
        costs=weight_costs,
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
