"""diffusers' pipelines with our network and with theirs, on the same pruned weights.

python benchmarks/dropin.py [--sparsity 0.9 0.95 0.99] [--pattern element vector:16] [--json FILE]

Needs torch and diffusers. A ``UNet2DModel`` with random weights, masked at random, runs in a
``DDPMPipeline``; then the same weights, converted to a ticket, do in the same pipeline with the
same noise. Outputs and images are compared first (not in a ``DDIMPipeline``, where a network of
random weights makes much of any rounding); then the two take turns, and a step's time is the
pipeline's wall time over its steps, scheduler included, the median of the turns. ``--model
cifar10`` is the network of google/ddpm-cifar10-32 (35.7 M parameters). Progress goes to stderr;
stdout gets a table. Exit status 0: images are the same; 1: they are not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm import Sampler
from sparse_ddpm.bench.machine import cores, machine
from sparse_ddpm.cli.common import positive
from sparse_ddpm.convert import convert
from sparse_ddpm.files import write_atomically
from sparse_ddpm.ticket import Pattern

MODELS: dict[str, dict[str, Any]] = {
    "cifar10": {
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    "tiny": {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
    },
}
DENSE = ("conv_in", "conv_out", "time_embedding")
"""What is never pruned."""
COMPARED_STEPS = 50
ERROR = 1e-3
"""Most difference of an image, in [0, 1]."""
OUTPUT_ERROR = 1e-5
"""Of the networks' outputs, relative."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="cifar10")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.99])
    parser.add_argument("--pattern", nargs="+", default=["element", "vector:16"])
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=positive, default=4, help="of a turn (default: 4)")
    parser.add_argument("--turns", type=positive, default=5, help="of each (default: 5)")
    parser.add_argument("--threads", type=positive, default=cores())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args(arguments)


def masked_model(settings: dict[str, Any], sparsity: float, pattern: Pattern) -> Any:
    """A ``UNet2DModel`` whose matrices keep random units of ``pattern``."""
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = UNet2DModel(**settings).eval()
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or name.startswith(DENSE):
            continue
        units = tuple(
            -(-size // unit)
            for size, unit in zip(weight.shape, (pattern.rows, pattern.columns, 1, 1), strict=False)
        )
        keep = rng.random(units) >= sparsity
        keep = keep.repeat(pattern.rows, 0).repeat(pattern.columns, 1)
        keep = keep[: weight.shape[0], : weight.shape[1]]
        with torch.no_grad():
            # As from training: what is left makes up for what is gone.
            weight.mul_(torch.from_numpy(keep) / (1.0 - sparsity) ** 0.5)
    return model


def images(network: Any, batch: int, steps: int) -> NDArray[np.float32]:
    """Of a DDPMPipeline, float32 ``[batch, H, W, C]`` in [0, 1]."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler

    scheduler = DDPMScheduler(timestep_spacing="trailing")
    pipeline = DDPMPipeline(unet=network, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        batch_size=batch,
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=steps,
        output_type="np",
    )
    return np.asarray(made.images, np.float32)


def relative_error(ours: Any, theirs: Any) -> float:
    """Largest difference of the networks' outputs, as a part of the largest output."""
    import torch

    config = theirs.config
    size = (2, config.in_channels, config.sample_size, config.sample_size)
    x = torch.randn(size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs(x, 500).sample
    return float((ours(x, 500).sample - wanted).abs().max() / wanted.abs().max())


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each pattern, sparsity and batch."""
    import torch

    torch.set_num_threads(options.threads)
    for text in options.pattern:
        for sparsity in options.sparsity:
            theirs = masked_model(MODELS[options.model], sparsity, Pattern.parse(text))
            with tempfile.TemporaryDirectory(prefix="sparse-ddpm-dropin-") as folder:
                theirs.save_pretrained(folder)
                (Path(folder) / "scheduler_config.json").write_text(
                    '{"_class_name": "DDPMScheduler", "beta_schedule": "linear"}'
                )
                ticket = convert(folder)
            with Sampler(ticket, threads=options.threads) as sampler:
                ours = sampler.unet2d()
                output_error = relative_error(ours, theirs)
                difference = images(ours, 1, COMPARED_STEPS) - images(theirs, 1, COMPARED_STEPS)
                for batch in options.batch:
                    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
                    for turn in range(options.turns + 1):
                        for name, network in (("ours", ours), ("theirs", theirs)):
                            begun = time.perf_counter()
                            images(network, batch, options.steps)
                            if turn:
                                seconds[name].append(time.perf_counter() - begun)
                    step = {
                        k: 1e3 * statistics.median(v) / options.steps for k, v in seconds.items()
                    }
                    print(
                        f"dropin: {text} {sparsity:g}, batch {batch}", file=sys.stderr, flush=True
                    )
                    yield {
                        "pattern": text,
                        "sparsity": ticket.sparsity,
                        "batch": batch,
                        "step_ms": step["ours"],
                        "diffusers_step_ms": step["theirs"],
                        "ratio": step["theirs"] / step["ours"],
                        "output_error": output_error,
                        "image_error": float(np.abs(difference).max()),
                    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    print(
        f"{'pattern':<10} {'pruned':>7} {'batch':>5} {'ours ms':>9} {'theirs ms':>9} {'ratio':>6}"
    )
    rows = []
    for row in measure(options):
        rows.append(row)
        print(
            f"{row['pattern']:<10} {100 * row['sparsity']:>6.1f}% {row['batch']:>5} "
            f"{row['step_ms']:>9.2f} {row['diffusers_step_ms']:>9.2f} {row['ratio']:>5.1f}x",
            flush=True,
        )
    worst = max(row["image_error"] for row in rows)
    output = max(row["output_error"] for row in rows)
    good = worst <= ERROR and output <= OUTPUT_ERROR
    print(
        f"{'holds' if good else 'FAILS'}: images differ by {worst:.1e} (wanted: {ERROR:g}), "
        f"outputs by {output:.1e} (wanted: {OUTPUT_ERROR:g})"
    )
    if options.json:
        settings = {key: getattr(options, key) for key in ("model", "threads", "steps", "turns")}
        result = {"schema": 1, **settings, "machine": machine(), "results": rows}
        text = json.dumps(result, indent=1) + "\n"
        write_atomically(options.json, lambda file: file.write(text.encode()))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
