"""``sparse-ddpm evaluate``: how far samples are from real images."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_ddpm.cli import common
from sparse_ddpm.cli.drawing import add_drawing, draw

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sparse_ddpm.metrics import Evaluation, Judge
    from sparse_ddpm.ticket import Ticket


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score samples: Fréchet distance, precision and recall, classes",
        description="Draw samples from a ticket and compare them with real images through the "
        "features of a small classifier. The one that ships was trained on MNIST and knows its "
        "statistics at 16x16 and 32x32, so that no data is needed; precision and recall need "
        "--reference. Distances of different judges cannot be compared. Needs no torch.",
    )
    common.add_ticket(parser, synthetic=False)
    add = parser.add_argument
    add("--images", type=Path, metavar="FILE.npy", help="score uint8 [n, H, W, C] instead")
    add("-n", "--samples", type=common.positive, default=10_000, help="default: 10000")
    add(
        "--reference",
        "--data",
        metavar="SPEC",
        help="real images: mnist:DIR, cifar10:PATH, cifar100:PATH or images:PATH (default: the "
        "statistics that the judge's file holds)",
    )
    add("--split", choices=("train", "test"), default="train", help="of them (default: train)")
    add("--judge", type=Path, metavar="FILE", help="from sparse-ddpm judge (default: shipped)")
    add(
        "--inception",
        action="store_true",
        help="also the Inception distance (FID), against --reference; needs torch-fidelity",
    )
    add(
        "--inception-weights",
        type=Path,
        metavar="FILE",
        help="torch-fidelity's (default: it downloads them)",
    )
    add_drawing(parser)
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw, compare, report."""
    from tqdm import tqdm

    from sparse_ddpm.data import load_images
    from sparse_ddpm.metrics import evaluate, load_judge, shipped_judge

    judge = shipped_judge() if args.judge is None else load_judge(args.judge)
    if args.inception:
        _check_inception(args)
    # What cannot be judged is refused before minutes are spent on drawing it.
    given = _given(args) if args.images else None
    if given is None:
        ticket, name = common.open_ticket(args)
        size, channels = ticket.architecture.image_size, ticket.architecture.channels
        count = args.samples
    else:
        name = str(args.images)
        size, channels, count = given.shape[1], given.shape[3], len(given)
    _check(judge, size, channels, count, args)
    real = None
    if args.reference is not None:
        real = load_images(
            args.reference, image_size=size, channels=channels, split=args.split
        ).images
    drawing: dict[str, Any] = {}
    if given is None:
        given, drawing = _drawn(ticket, args)
    start = time.perf_counter()
    total = len(given) + (0 if real is None else len(real))
    with tqdm(total=total, unit="image", desc="features", leave=False, disable=None) as bar:
        found = evaluate(judge, given, real=real, split=args.split, progress=bar.update)
    seconds = time.perf_counter() - start
    fid = None
    if args.inception:
        from sparse_ddpm.metrics.inception import inception_distance

        assert real is not None
        fid = inception_distance(given, real, args.inception_weights)
    if args.json:
        common.print_json(
            {
                "ticket": None if args.images else name,
                "images": str(args.images) if args.images else None,
                **drawing,
                **_scores(found),
                "inception_distance": fid,
                "image_size": size,
                "judge": {
                    "dataset": judge.dataset,
                    "features": judge.network.dimension,
                    "sha256": judge.network.digest,
                },
                "reference": {
                    "split": args.split,
                    "data": args.reference,
                    "images": found.reference,
                },
                "scoring_seconds": seconds,
            }
        )
    else:
        print(_report(name, judge, found, args.split, fid, drawing, seconds))
    return 0


def _check(judge: Judge, size: int, channels: int, count: int, args: argparse.Namespace) -> None:
    from sparse_ddpm.errors import DataError, expected

    network = judge.network
    if channels != network.channels:
        wanted = f"images of {network.channels} channel{'s' * (network.channels > 1)}"
        what = f"judge of {judge.dataset} (choose another with --judge)"
        raise DataError(expected(what, wanted, f"{channels} channel{'s' * (channels > 1)}"))
    if count <= network.dimension:
        wanted = f"more than {network.dimension}, the number of features"
        raise DataError(expected("samples", wanted, count))
    if args.reference is None:
        judge.reference(args.split, size)


def _check_inception(args: argparse.Namespace) -> None:
    from sparse_ddpm.errors import ConfigError, expected
    from sparse_ddpm.metrics.inception import require

    require()
    if args.reference is None:
        raise ConfigError(expected("--inception", "real images from --reference", "none"))


def _given(args: argparse.Namespace) -> NDArray[np.uint8]:
    """The images of ``--images``."""
    import numpy as np

    from sparse_ddpm.data import Images
    from sparse_ddpm.errors import ConfigError, DataError, expected

    if args.ticket is not None:
        raise ConfigError(expected("--images", "no TICKET beside it", args.ticket))
    try:
        array = np.load(args.images, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        wanted = "uint8 [n, H, W, C] as .npy"
        raise DataError(expected(str(args.images), wanted, error)) from error
    return Images(array, None, args.images.name).images


def _drawn(ticket: Ticket, args: argparse.Namespace) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Samples, and how they were drawn."""
    drawing = draw(ticket, args.samples, args)
    return drawing.images, {
        "sampler": args.sampler,
        "steps": args.steps,
        "eta": args.eta,
        "seed": args.seed,
        "engine": drawing.engine,
        "dtype": drawing.dtype,
        "sampling_seconds": drawing.seconds,
    }


def _scores(found: Evaluation) -> dict[str, Any]:
    from sparse_ddpm.metrics.evaluation import SOUND

    return {
        "samples": found.samples,
        "sound": found.samples >= SOUND,
        "distance": found.distance,
        "real_distance": found.real_distance,
        "precision": found.precision,
        "recall": found.recall,
        "classes": list(found.classes),
        "reference_classes": list(found.reference_classes),
        "class_distance": found.class_distance,
    }


def _report(
    name: str,
    judge: Judge,
    found: Evaluation,
    split: str,
    fid: float | None,
    drawing: dict[str, Any],
    seconds: float,
) -> str:
    from sparse_ddpm.metrics.evaluation import SOUND

    lines = [
        f"{name}: {found.samples:,} samples against {found.reference:,} {split} images, by the "
        f"judge of {judge.dataset} ({judge.network.dimension} features)"
    ]
    if found.samples < SOUND:
        lines.append(f"  fewer than {SOUND:,} samples: the distance is too large, and rough")
    lines.append(f"  Fréchet distance       {found.distance:.4f}")
    if found.real_distance is not None:
        other = "test" if split == "train" else "train"
        lines.append(f"  that of real images    {found.real_distance:.4f}  ({other} to {split})")
    if found.precision is None or found.recall is None:
        lines.append("  precision and recall   with --reference only")
    else:
        lines.append(f"  precision              {found.precision:.3f}")
        lines.append(f"  recall                 {found.recall:.3f}")
    if fid is not None:
        lines.append(f"  Inception distance     {fid:.3f}")
    lines.append(f"  classes, off by        {found.class_distance:.2%}")
    if len(found.classes) <= 10:
        for what, shares in (("samples", found.classes), ("real", found.reference_classes)):
            lines.append(f"    {what:<8}" + "".join(f"{share:7.1%}" for share in shares))
    spent = f"{seconds:.1f} s to compare"
    if drawing:
        spent = f"{drawing['sampling_seconds']:.1f} s to draw on {drawing['engine']}, {spent}"
    lines.append(f"  {spent}")
    return "\n".join(lines)
