"""``sparse-ddpm judge``: train the classifier whose features ``evaluate`` compares."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from sparse_ddpm.cli import common


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "judge",
        help="train the classifier that evaluate judges samples by",
        description="Train a small classifier on labelled images, measure its features on them, "
        "and write both to one file for evaluate --judge. Needs torch; a few minutes on two cores "
        "for MNIST, whose judge ships with the package. The same command gives the same file on "
        "the same number of threads.",
    )
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="SPEC",
        help="mnist:DIR, cifar10:PATH, cifar100:PATH, or images:PATH with a folder per class",
    )
    add("--test", metavar="SPEC", help="test images (default: the test split of --data)")
    add("-o", "--output", required=True, type=Path, metavar="FILE", help="the judge's file")
    add(
        "--sizes",
        nargs="+",
        type=common.positive,
        metavar="N",
        help="image sizes to know real images at (default: 16 32 for grey images, 32 for colour)",
    )
    add("--epochs", type=common.positive, default=8, help="default: 8")
    add("--seed", type=common.natural, default=0, help="default: 0")
    add("--threads", type=common.positive, help="default: all cores at hand")
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, measure, write, report."""
    from tqdm import tqdm

    from sparse_ddpm.data import load_images
    from sparse_ddpm.data.images import convert
    from sparse_ddpm.errors import DataError, MissingDependencyError, expected
    from sparse_ddpm.metrics.features import INPUT_SIZE
    from sparse_ddpm.metrics.fidelity import class_histogram
    from sparse_ddpm.metrics.frechet import frechet_distance, statistics
    from sparse_ddpm.metrics.judge import Judge, Reference, save_judge

    try:
        import torch

        from sparse_ddpm.metrics.training import train_features
    except ImportError as error:
        wanted = 'torch (pip install "sparse-ddpm[train]")'
        raise MissingDependencyError(expected("judge", wanted, str(error))) from error
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.test is None and args.data.startswith("images:"):
        wanted = "test images of their own beside images:PATH, which has one split"
        raise DataError(expected("--test", wanted, "nothing"))
    start = time.perf_counter()
    splits = {
        "train": load_images(args.data),
        "test": load_images(args.test or args.data, split="test"),
    }
    for split, part in splits.items():
        if part.labels is None:
            raise DataError(expected(f"{split} images", "a label for each", "none"))
    train = splits["train"]
    channels = train.images.shape[3]
    labels = train.labels
    assert labels is not None
    network = train_features(
        convert(train.images, INPUT_SIZE, channels),
        labels,
        epochs=args.epochs,
        seed=args.seed,
        progress=True,
    )
    accuracy: dict[int, float] = {}
    references: dict[tuple[str, int], Reference] = {}
    sizes = args.sizes or ([INPUT_SIZE // 2, INPUT_SIZE] if channels == 1 else [INPUT_SIZE])
    for size in sorted(set(sizes)):
        for split, part in splits.items():
            what = f"{split} {size}x{size}"
            with tqdm(total=len(part), desc=what, leave=False, disable=None) as bar:
                features, logits = network(convert(part.images, size, channels), bar.update)
            found = statistics(features)
            references[split, size] = Reference(found, class_histogram(logits))
            if split == "test":
                assert part.labels is not None
                accuracy[size] = float((logits.argmax(axis=1) == part.labels).mean())
    judge = Judge(network, train.name, accuracy, references)
    save_judge(judge, args.output)
    seconds = time.perf_counter() - start
    distances = {
        size: frechet_distance(
            references["test", size].statistics, references["train", size].statistics
        )
        for size in accuracy
    }
    if args.json:
        common.print_json(
            {
                "output": str(args.output),
                "dataset": train.name,
                "images": len(train),
                "classes": network.classes,
                "features": network.dimension,
                "bytes": args.output.stat().st_size,
                "sha256": network.digest,
                "accuracy": {str(size): value for size, value in accuracy.items()},
                "real_distance": {str(size): value for size, value in distances.items()},
                "seconds": seconds,
            }
        )
    else:
        size = args.output.stat().st_size
        print(f"{args.output}: {size:,} bytes, {network.dimension} features, {seconds:.0f} s")
        for side, value in accuracy.items():
            print(
                f"  {side}x{side}: {value:.2%} of test images right, distance of test to train "
                f"{distances[side]:.4f}"
            )
    return 0
