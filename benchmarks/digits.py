"""Judge the digits that a ticket draws by a classifier trained on MNIST, beside real images.

python benchmarks/digits.py [TICKET] --data MNIST_DIR --classifier FILE [-n 1000] [--json]

The classifier is trained when FILE is absent (a few minutes on two cores) and kept there. Exit
status: 0 if all targets are met, 1 if not, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ddpm.data import Images, load_images
from sparse_ddpm.data.images import convert
from sparse_ddpm.errors import SparseDDPMError
from sparse_ddpm.metrics import DigitScores, score_digits
from sparse_ddpm.metrics.digits import CONFIDENCE, LEAST_RATIO, SHARES

LEAST_ACCURACY = 0.99


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ticket", nargs="?", help="default: the ticket that ships")
    parser.add_argument("--data", required=True, metavar="DIR", help="the four MNIST files")
    parser.add_argument("--classifier", type=Path, metavar="FILE", help="keep its weights here")
    parser.add_argument("--epochs", type=int, default=4, help="to train the classifier")
    parser.add_argument(
        "--plain", action="store_true", help="train the classifier on digits alone: a milder judge"
    )
    parser.add_argument("--images", type=Path, metavar="FILE.npy", help="judge uint8 [N, H, W, C]")
    parser.add_argument("-n", type=int, default=1000, help="samples (default 1000)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--sampler", default="ddim", choices=("ddpm", "ddim", "dpm++"))
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.images and options.ticket:
        parser.error("give a ticket or --images, not both")
    return options


def draw(options: argparse.Namespace) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The samples to judge: uint8 ``[N, H, H, 1]``."""
    if options.images:
        try:
            images = np.load(options.images, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SparseDDPMError(f"{options.images}: {error}") from error
        images = Images(images, None, options.images.name).images
    else:
        from sparse_ddpm.api import Sampler

        with Sampler.load(options.ticket, threads=options.threads) as sampler:
            images = sampler.sample(
                options.n,
                steps=options.steps,
                sampler=options.sampler,
                seed=options.seed,
                progress=True,
            )
    return convert(images, channels=1)


def judge(options: argparse.Namespace) -> DigitScores:
    import torch

    from sparse_ddpm.metrics import classifier

    if options.threads:
        torch.set_num_threads(options.threads)
    samples = draw(options)
    size = samples.shape[1]
    test = load_images(f"mnist:{options.data}", split="test", image_size=size)
    if options.classifier and options.classifier.exists():
        model = classifier.load_classifier(options.classifier)
    else:
        train = load_images(f"mnist:{options.data}", image_size=size)
        assert train.labels is not None
        model = classifier.train_classifier(
            train.images,
            train.labels,
            epochs=options.epochs,
            exposure=0.0 if options.plain else 0.5,
            progress=True,
        )
        if options.classifier:
            classifier.save_classifier(model, options.classifier)
    assert test.labels is not None
    return score_digits(
        classifier.probabilities(model, test.images),
        test.labels,
        classifier.probabilities(model, samples),
    )


def report(scores: DigitScores) -> str:
    def line(what: str, value: str, target: str, met: bool) -> str:
        return f"{what:<44} {value:>16}  {target:<16} {'yes' if met else 'NO'}"

    low, high = min(scores.shares), max(scores.shares)
    lines = [
        line(
            "classifier's accuracy on real test images",
            f"{scores.accuracy:.2%}",
            f">= {LEAST_ACCURACY:.0%}",
            scores.accuracy >= LEAST_ACCURACY,
        ),
        f"{f'real test images recognised above {CONFIDENCE}':<44} {scores.real_recognised:>16.2%}",
        f"{f'samples recognised above {CONFIDENCE}':<44} {scores.sample_recognised:>16.2%}",
        line("ratio", f"{scores.ratio:.3f}", f">= {LEAST_RATIO}", scores.recognised),
        line(
            "share of the rarest and commonest digit",
            f"{low:.1%} {high:.1%}",
            f"{SHARES[0]:.0%} to {SHARES[1]:.0%}",
            scores.varied,
        ),
        "digits 0 to 9: " + " ".join(f"{share:.1%}" for share in scores.shares),
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        scores = judge(options)
    except SparseDDPMError as error:
        print(error, file=sys.stderr)
        return 1
    met = scores.accuracy >= LEAST_ACCURACY and scores.recognised and scores.varied
    if options.json:
        result = {
            "schema": 1,
            "accuracy": scores.accuracy,
            "confidence": CONFIDENCE,
            "real_recognised": scores.real_recognised,
            "sample_recognised": scores.sample_recognised,
            "ratio": scores.ratio,
            "shares": list(scores.shares),
            "targets_met": met,
        }
        print(json.dumps(result))
    else:
        print(report(scores))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
