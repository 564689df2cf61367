"""Exported files: how large, how right, how fast?

python benchmarks/export.py [--only files cost speed] [--threads N] [--json FILE]

``files``: sizes, the standard's check, and parity with our engine in onnxruntime and OpenVINO, one
step and all steps of DDIM. ``cost``: what the export of a large ticket takes. ``speed``: loading,
one step, and a whole sampler beside a Python loop, all in onnxruntime; give it a quiet machine.
Progress goes to stderr, a line for each claim to stdout. With ``--only`` the other parts of the
JSON file stay as they are. Exit status 0: all claims of the parts that ran hold; 1: one does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from numpy.typing import NDArray
from sparse_ddpm_export import Export, Form

from sparse_ddpm.bench.machine import cores, machine
from sparse_ddpm.cli.common import positive, synthetic
from sparse_ddpm.engine import make_engine
from sparse_ddpm.files import write_atomically
from sparse_ddpm.sampling import make_table, normal, sample_loop
from sparse_ddpm.ticket import (
    DiffusionConfig,
    Ticket,
    UNet2DConfig,
    UNetConfig,
    find_ticket,
    load_ticket,
    synthetic_ticket,
    ticket_names,
)

PARTS = ("files", "cost", "speed")
RESULT = Path(__file__).parent / "results" / "cpu" / "export.json"
BATCHES = (1, 3, 16)
STEPS = 50
STEP_ERROR, IMAGE_ERROR = 1e-4, 1e-3
RATIOS = {"paper:0.9:element": 0.14, "paper:0.95:element": 0.08, "paper:0.99:element": 0.025}
"""Most that a packed file may have of the dense one."""
EXPORT_S, EXPORT_MIB = 20.0, 2048.0
LARGE = "paper:0.95:element"
ROUNDS, BURST_S = 20, 0.2
"""Of steps; samplers take fewer and longer ones."""
SLACK = 1.03
"""Times that differ by less are the same."""

ODD: dict[str, Callable[[], Ticket]] = {
    "odd: one level, 5x5": lambda: synthetic_ticket(
        UNetConfig(6, (3,), 1, 5, groups=3, heads=1, dim_head=3), 0.9
    ),
    "odd: RMS norms, 12x12, blocks": lambda: synthetic_ticket(
        UNetConfig(
            24, (1, 3), 2, 12, 4, 2, 8, block_norm="rms", attention_norm="rms", full_attention=(1,)
        ),
        0.95,
        "block:4x2",
    ),
    "odd: diffusers, scale and shift": lambda: synthetic_ticket(
        UNet2DConfig(
            channels=3,
            image_size=16,
            block_out_channels=(16, 24),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            time_dim=64,
            norm_num_groups=8,
            attn_norm_num_groups=8,
            resnet_time_scale_shift="scale_shift",
        ),
        0.8,
    ),
}
EPS = f"{LARGE}, eps"
"""With the sigmoid schedule and noise as the network's output; other synthetic tickets predict v.
There x0 is up to 1,825 times the output, and little is left of float32: what an image is off by is
told, with what a change of our outputs by `NUDGE` of their largest does, and nothing is claimed."""
NUDGE = 1e-6
SHIPPED = "mnist"
FILES = (SHIPPED, *RATIOS, EPS, *ODD)
SPEED = (SHIPPED, *RATIOS, "small:0.99:vector:16", "paper:0.99:vector:16")
SAMPLERS = ((SHIPPED, 1), (SHIPPED, 16), (LARGE, 1), (LARGE, 16))

Run = Callable[[dict[str, NDArray[Any]]], NDArray[np.float32]]
"""A loaded file: inputs by name to its first output."""


def ticket_of(name: str) -> Ticket:
    if name in ticket_names():
        return load_ticket(find_ticket(name))
    if name == EPS:
        return synthetic(LARGE)
    ticket = ODD[name]() if name in ODD else synthetic(name)
    v = DiffusionConfig(schedule="cosine", objective="v")
    return dataclasses.replace(ticket, diffusion=v)


def in_onnxruntime(content: bytes, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Sessions that wait must not take the cores of the one that is timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda feeds: np.asarray(session.run(None, feeds)[0])


def in_openvino(content: bytes, threads: int) -> Run:
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    return lambda feeds: np.array(compiled(feeds)[0])


RUNTIMES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def sizes(export: Export) -> dict[str, Any]:
    """Bytes of every form, and whether ``onnx.checker`` takes it."""
    dense = export.plain()
    row: dict[str, Any] = {"dense": len(dense), "gzip_dense": len(gzip.compress(dense, 6))}
    checks = {}
    for weights in ("packed", "sparse", "dense"):
        for dtype in ("float32", "float16"):
            content = export.content(Form(weights, dtype))
            row[f"{weights}_{dtype}"] = len(content)
            try:
                onnx.checker.check_model(content, full_check=True)
                checks[f"{weights}_{dtype}"] = True
            except onnx.checker.ValidationError:
                checks[f"{weights}_{dtype}"] = False
    packed = row["packed_float32"]
    return {
        "bytes": row,
        "packed_over_dense": packed / len(dense),
        "float16_over_float32": row["packed_float16"] / packed,
        "full_check": checks,
    }


def parity(name: str, ticket: Ticket, threads: int) -> Iterator[dict[str, Any]]:
    """Errors of the packed float32 files against our engine, by runtime and batch."""
    network, sampler = Export(ticket), Export(ticket, "sampler", steps=STEPS)
    files = network.content(), sampler.content()
    runs = {key: [load(file, threads) for file in files] for key, load in RUNTIMES.items()}
    shape, table = network.whole.input_shape, sampler.table
    for batch in BATCHES:
        engine = make_engine(network.whole, batch=batch, threads=threads)
        engine.set_schedule(table.timesteps)
        indices = np.arange(batch)
        noise = normal(0, indices, 0, shape)
        step = STEPS // 2
        wanted = np.array(engine.run(noise, step))
        settings = {"seed": 0, "image_indices": indices, "shape": shape}
        images = sample_loop(engine.run, table, **settings)
        nudged = sample_loop(nudging(engine.run), table, **settings) if name == EPS else images
        engine.close()
        t = np.full(batch, table.timesteps[step], np.float32)
        for key, (denoise, draw) in runs.items():
            print(f"export: {name}, batch {batch}, {key}", file=sys.stderr)
            found = denoise({"x": noise, "t": t})
            yield {
                "runtime": key,
                "batch": batch,
                "step_error": float(np.abs(found - wanted).max() / np.abs(wanted).max()),
                "image_error": float(np.abs(draw({"noise": noise}) - images).max()),
                **({"nudged_error": float(np.abs(nudged - images).max())} if name == EPS else {}),
            }


def nudging(
    run: Callable[[NDArray[np.float32], int], NDArray[np.float32]],
) -> Callable[[NDArray[np.float32], int], NDArray[np.float32]]:
    """``run`` with noise added to its outputs, up to `NUDGE` of the largest."""
    rng = np.random.default_rng(0)

    def nudged(x: NDArray[np.float32], step: int) -> NDArray[np.float32]:
        n = run(x, step)
        noise = rng.uniform(-NUDGE, NUDGE, n.shape) * np.abs(n).max()
        return (n + noise).astype(np.float32)

    return nudged


def files_part(threads: int) -> list[dict[str, Any]]:
    rows = []
    for name in FILES:
        print(f"export: sizes of {name}", file=sys.stderr)
        ticket = ticket_of(name)
        row = {"ticket": name, "sparsity": ticket.sparsity, **sizes(Export(ticket))}
        rows.append({**row, "parity": list(parity(name, ticket, threads))})
    return rows


COMMAND = """
import sys
from pathlib import Path
from sparse_ddpm.cli.main import main
status = main(sys.argv[1:])
# Not of getrusage: that remembers the process that this one was forked from.
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
sys.exit(status)
"""


def cost_part(_threads: int) -> dict[str, Any]:
    """Wall time and peak memory of the command, the check included."""
    print(f"export: cost of {LARGE}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="sparse-ddpm-export-") as folder:
        arguments = ["export", "--synthetic", LARGE, "-o", f"{folder}/model.onnx"]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, text=True
        )
        seconds = time.perf_counter() - start
    peak_mib = int(done.stdout.split()[-1]) / 1024
    return {"ticket": LARGE, "exit": done.returncode, "seconds": seconds, "peak_mib": peak_mib}


def in_turns(
    calls: dict[str, Callable[[], object]], rounds: int, burst_s: float
) -> dict[str, float]:
    """Median seconds of each call; every round runs all of them, each for ``burst_s``."""
    times: dict[str, list[float]] = {key: [] for key in calls}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for key in rng.permutation(list(calls)).tolist():
            end = time.perf_counter() + burst_s
            while True:
                start = time.perf_counter()
                calls[key]()
                times[key].append(time.perf_counter() - start)
                if time.perf_counter() >= end:
                    break
    return {key: statistics.median(seconds) for key, seconds in times.items()}


def variants(ticket: Ticket) -> dict[str, bytes]:
    """The same network as a plain file, packed, and packed without what is dead."""
    export = Export(ticket)
    kept = Export(ticket, remove=False).content()
    return {"dense": export.plain(), "packed": kept, "removed": export.content()}


def speed_part(threads: int) -> dict[str, Any]:
    steps, samplers = [], []
    for name in SPEED:
        print(f"export: speed of {name}", file=sys.stderr)
        files = variants(ticket_of(name))
        shape = Export(ticket_of(name)).whole.input_shape
        loads = {key: lambda c=c: in_onnxruntime(c, threads) for key, c in files.items()}
        row: dict[str, Any] = {"ticket": name, "load_ms": _ms(in_turns(loads, 5, 0.0))}
        runs = {key: in_onnxruntime(content, threads) for key, content in files.items()}
        for batch in (1, 16):
            feeds = {
                "x": normal(0, np.arange(batch), 0, shape),
                "t": np.full(batch, 500, np.float32),
            }
            for run in runs.values():
                run(feeds)
            calls = {key: lambda run=run, f=feeds: run(f) for key, run in runs.items()}
            row[f"step_ms_batch_{batch}"] = _ms(in_turns(calls, ROUNDS, BURST_S))
        steps.append(row)
    for name, batch in SAMPLERS:
        print(f"export: sampler of {name}, batch {batch}", file=sys.stderr)
        samplers.append(sampler_speed(name, batch, threads))
    return {"threads": threads, "steps": steps, "samplers": samplers}


def sampler_speed(name: str, batch: int, threads: int) -> dict[str, Any]:
    """The sampler file in one call, and our loop over the denoiser file: ms an image."""
    ticket = ticket_of(name)
    whole = in_onnxruntime(Export(ticket, "sampler", steps=STEPS).content(), threads)
    single = in_onnxruntime(Export(ticket).content(), threads)
    table = make_table(ticket.diffusion, steps=STEPS)
    shape, indices = Export(ticket).whole.input_shape, np.arange(batch)
    noise = normal(0, indices, 0, shape)
    rows = [np.full(batch, t, np.float32) for t in table.timesteps]

    def loop() -> object:
        def denoise(x: NDArray[np.float32], step: int) -> NDArray[np.float32]:
            return single({"x": x, "t": rows[step]})

        return sample_loop(denoise, table, seed=0, image_indices=indices, shape=shape)

    found = in_turns(
        {"file": lambda: whole({"noise": noise}), "loop": loop}, ROUNDS // 5, 5 * BURST_S
    )
    per_image = {f"{key}_ms": 1e3 * seconds / batch for key, seconds in found.items()}
    return {"ticket": name, "batch": batch, "steps": STEPS, **per_image}


def _ms(seconds: dict[str, float]) -> dict[str, float]:
    return {key: 1e3 * value for key, value in seconds.items()}


def claims(result: dict[str, Any], parts: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """What the parts say about the targets."""
    for row in result["files"] if "files" in parts else ():
        name, sizes_of = row["ticket"], row["bytes"]
        step = max(entry["step_error"] for entry in row["parity"])
        image = max(entry["image_error"] for entry in row["parity"])
        yield f"{name}: one step within {STEP_ERROR:g} ({step:.1e})", step <= STEP_ERROR
        if name != EPS:
            yield f"{name}: images within {IMAGE_ERROR:g} ({image:.1e})", image <= IMAGE_ERROR
        yield f"{name}: full_check of every form", all(row["full_check"].values())
        if name not in ODD and name != EPS:
            most, got = RATIOS.get(name, 1.0), row["packed_over_dense"]
            yield f"{name}: at most {most:.1%} of dense ({got:.2%})", got <= most
            packed, zipped = sizes_of["packed_float32"], sizes_of["gzip_dense"]
            text = f"{name}: smaller than gzip of dense ({packed} of {zipped} bytes)"
            yield text, packed < zipped
    if "cost" in parts:
        cost = result["cost"]
        text = f"export of {LARGE} in {EXPORT_S:g} s ({cost['seconds']:.1f})"
        yield text, cost["exit"] == 0 and cost["seconds"] <= EXPORT_S
        text = f"export of {LARGE} in {EXPORT_MIB:g} MiB ({cost['peak_mib']:.0f})"
        yield text, cost["peak_mib"] <= EXPORT_MIB
    for row in result["speed"]["steps"] if "speed" in parts else ():
        for what in ("load_ms", "step_ms_batch_1", "step_ms_batch_16"):
            dense, packed, removed = (row[what][key] for key in ("dense", "packed", "removed"))
            text = f"{row['ticket']}: {what} {removed:.2f}, packed alone {packed:.2f}"
            yield f"{text}, not above dense {dense:.2f}", removed <= SLACK * dense
    for row in result["speed"]["samplers"] if "speed" in parts else ():
        text = f"{row['ticket']}, batch {row['batch']}: sampler {row['file_ms']:.1f} ms an image"
        yield (
            f"{text}, not above the loop's {row['loop_ms']:.1f}",
            row["file_ms"] <= SLACK * row["loop_ms"],
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=positive, default=cores())
    parser.add_argument("--json", type=Path, default=RESULT, metavar="FILE")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"schema": 1}
    if options.json.exists():
        result = json.loads(options.json.read_text())
    versions = {module.__name__: module.__version__ for module in (onnx, onnxruntime, openvino)}
    for part in options.only:
        found = {"files": files_part, "cost": cost_part, "speed": speed_part}[part](options.threads)
        result |= {"machine": machine(), "versions": versions, part: found}
        text = json.dumps(result, indent=1) + "\n"
        write_atomically(options.json, lambda file, text=text: file.write(text.encode()))
    held = list(claims(result, options.only))
    for text, holds in held:
        print(f"{'holds' if holds else 'FAILS'}: {text}")
    return 0 if all(holds for _, holds in held) else 1


if __name__ == "__main__":
    sys.exit(main())
