"""Damaged model files and damaged tickets by the hundred thousand: no crash, no hang, no report.

python benchmarks/fuzz_native.py --count 100000 [--what models|tickets|both] [--folder DIR] [--json]

Models go through the library without Python, built with AddressSanitizer and
UndefinedBehaviorSanitizer; those that still open sample a few steps. Tickets go through
`load_ticket`: either it returns a ticket or it raises `TicketError`. Most of what is damaged gets
its checksums set right. Input i is always the same; a run that was interrupted goes on where it
was.
Exit status 0: nothing found; 1: the number of an input and what it did are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sparse_ddpm.cli.common import positive
from sparse_ddpm.errors import TicketError
from sparse_ddpm.files import write_atomically
from sparse_ddpm.formats import CSR, Dense
from sparse_ddpm.lower import lower
from sparse_ddpm.native import write_native
from sparse_ddpm.program import (
    Add,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    Program,
    SpaceToDepth,
    TimeEmbedding,
    Upsample2x,
)
from sparse_ddpm.sampling import make_table
from sparse_ddpm.ticket import (
    Architecture,
    DiffusionConfig,
    Ticket,
    UNet2DConfig,
    UNetConfig,
    load_ticket,
    save_ticket,
    synthetic_ticket,
)
from sparse_ddpm.ticket.stored_zip import read_stored_zip, write_stored_zip

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 500
"""Inputs between two notes of how far the run is."""
HANG_S = 20
STATUSES = (
    *("ok", "invalid", "io", "not a model", "version", "damaged", "unsupported", "limit"),
    *("memory", "cancelled", "not finite", "internal"),
)

TINY = UNetConfig(dim=6, dim_mults=(1, 2), channels=1, image_size=8, groups=3, heads=2, dim_head=4)
TICKETS: dict[str, tuple[Architecture, float, str]] = {
    "element": (TINY, 0.9, "element"),
    "vector": (
        UNetConfig(dim=16, dim_mults=(1, 1), channels=3, image_size=4, heads=1, dim_head=8),
        0.8,
        "vector:8",
    ),
    "flat": (
        UNetConfig(dim=4, dim_mults=(1,), channels=2, image_size=5, groups=2, heads=1, dim_head=3),
        0.5,
        "element",
    ),
    "dense": (
        UNetConfig(dim=8, dim_mults=(1, 2, 2), channels=1, image_size=16, heads=2, dim_head=4),
        0.0,
        "element",
    ),
    "diffusers": (
        UNet2DConfig(
            channels=1,
            image_size=8,
            block_out_channels=(4, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            time_dim=8,
            head_dim=4,
            norm_num_groups=2,
            attn_norm_num_groups=2,
        ),
        0.7,
        "element",
    ),
}
"""What is damaged: architecture, sparsity and pattern."""

BATCHES = ((1,), (16,), (1, 16))
"""What each model is planned for."""


class FoundError(Exception):
    """An input that was not refused in order, and what it did."""


def tickets() -> Iterator[tuple[str, Ticket]]:
    for seed, (name, (config, sparsity, pattern)) in enumerate(TICKETS.items()):
        yield name, synthetic_ticket(config, sparsity, pattern, seed=seed)


def odd_program() -> Program:
    """The operations that no U-Net here has: a bias of time, sums, copies, attention on its own."""
    rng = np.random.default_rng(0)

    def dense(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32)

    def sparse(*shape: int) -> CSR:
        return CSR.from_dense(dense(*shape), rng.random(shape) < 0.5)

    time = TimeEmbedding(
        4, dense(8, 4), dense(8), dense(8, 8), dense(8), Dense(dense(12, 8)), dense(12)
    )
    operations = (
        Conv("a", "x", sparse(4, 2 * 9), 3, bias=dense(4), film=0),
        NormAct("b", "a", 2, dense(4), dense(4), film=4),
        Conv("qkv", "b", sparse(12, 4), 1, bias=dense(12)),
        LinearAttention("c", "qkv", 2, 2),
        Add("d", "c", "b"),
        Concat("e", "d", "d"),
        SpaceToDepth("f", "e"),
        Conv("g", "f", sparse(3, 32 * 25), 5, bias=dense(3)),
        Upsample2x("h", "g"),
        Concat("i", "h", "a"),
        NormAct("j", "h", 1, dense(3), dense(3), silu=False, residual="h"),
        Concat("k", "i", "j"),
        Conv("l", "k", sparse(2, 10), 1, residual="x"),
    )
    return Program(operations, "x", (2, 6, 6), "l", time)


def make_models(folder: Path) -> list[Path]:
    """A sound file of every program for each of `BATCHES`."""
    folder.mkdir(parents=True, exist_ok=True)
    programs = {name: lower(ticket) for name, ticket in tickets()} | {"odd": odd_program()}
    diffusion = DiffusionConfig()
    samplers = {
        "ddim-3": make_table(diffusion, steps=3),
        "ddpm-4": make_table(diffusion, sampler="ddpm", steps=4),
        "dpm++-5": make_table(diffusion, sampler="dpm++", steps=5),
    }
    paths = []
    for name, program in programs.items():
        for batches in BATCHES:
            path = folder / f"{name}-{'-'.join(map(str, batches))}.sddpm"
            text = {"dataset": "synthetic", "seed": "0"}
            write_native(path, program, samplers, batches=batches, text=text)
            paths.append(path)
    return paths


def build_driver(folder: Path, portable: bool) -> Path:
    """The program that opens damaged models, with sanitizers."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=places)
    if cmake is None:
        raise SystemExit("fuzz_native: needs cmake, or --driver")
    options = ["-DSPARSE_DDPM_LIBRARY=ON", "-DSPARSE_DDPM_SANITIZE=address,undefined"]
    options.append(f"-DSPARSE_DDPM_PORTABLE={'ON' if portable else 'OFF'}")
    for command in (
        [cmake, "-S", str(ROOT), "-B", str(folder), *options],
        [cmake, "--build", str(folder), "--target", "sparse_ddpm_fuzz"],
    ):
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder / "sparse_ddpm_fuzz"


def run_driver(driver: Path, models: list[Path], place: Path, first: int, count: int) -> Any:
    """Statuses by call. Raises `FoundError` with the number of the input that ended the driver."""
    command = [driver, "--first", first, "--count", count, "--place", place, *models]
    options = {
        "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **options},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        index = int.from_bytes(place.read_bytes()[:8], "little") if place.is_file() else first
        raise FoundError(f"model {index}: exit status {done.returncode}\n{done.stderr[-4000:]}")
    counts = json.loads(done.stdout)
    return {
        f"{call}: {status}": n
        for call, numbers in counts.items()
        for status, n in zip(STATUSES, numbers, strict=True)
        if n
    }


def damage(data: bytearray, rng: random.Random) -> None:
    """One change, of a bit up to a piece."""
    if not data:
        return
    at = rng.randrange(len(data))
    match rng.randrange(8):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at] = rng.randrange(256)
        case 2:
            number = rng.choice((0, 1, 2**7, 2**15, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
            width = rng.choice((1, 2, 4, 8))
            data[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
        case 3:
            start = rng.randrange(len(data))
            piece = data[start : start + rng.randrange(1, 64)]
            data[at : at + len(piece)] = piece
        case 4:
            start = rng.randrange(len(data))
            data[at:at] = data[start : start + rng.randrange(1, 64)]
        case 5:
            del data[at : at + rng.randrange(1, 64)]
        case 6:
            data[at] = rng.choice(b'(}])N\x88KMJGXqhtueasccRQ\x85\x86.b0{}[],:"-1e9')
        case _:
            if rng.random() < 0.2:
                del data[at:]
            else:
                data[at] = (data[at] + rng.choice((-1, 1))) % 256


def damaged_ticket(sound: bytes, rng: random.Random) -> bytes:
    """A zip is taken apart and put together again with its checksums right, two times of three."""
    times = rng.choice((1, 1, 1, 2, 4))
    if sound.startswith(b"PK") and rng.random() < 0.67:
        entries = {
            name: bytearray(data) for name, data in read_stored_zip(memoryview(sound)).items()
        }
        pickled = next(name for name in entries if name.endswith("data.pkl"))
        for _ in range(times):
            name = pickled if rng.random() < 0.6 else rng.choice(list(entries))
            damage(entries[name], rng)
        return write_stored_zip({name: bytes(data) for name, data in entries.items()})
    data = bytearray(sound)
    if not sound.startswith(b"PK") and rng.random() < 0.7:
        # The header of safetensors: a length, then JSON.
        end = 8 + int.from_bytes(data[:8], "little")
        header = data[8:end]
        for _ in range(times):
            damage(header, rng)
        length = len(header) if rng.random() < 0.8 else end - 8
        return length.to_bytes(8, "little") + bytes(header) + bytes(data[end:])
    for _ in range(times):
        damage(data, rng)
    return bytes(data)


def run_tickets(sound: list[bytes], path: Path, first: int, count: int) -> dict[str, int]:
    """How many were refused, and how many were whole after all. Raises `FoundError`."""
    counts = {"refused": 0, "valid": 0}

    def hang(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, hang)
    try:
        for index in range(first, first + count):
            rng = random.Random(index)
            data = damaged_ticket(rng.choice(sound), rng)
            path.write_bytes(data)
            signal.alarm(HANG_S)
            try:
                load_ticket(path)
                counts["valid"] += 1
            except TicketError as error:
                counts["refused"] += 1
                if not 0 < len(str(error)) < 2_000:
                    raise FoundError(
                        f"ticket {index}: a message of {len(str(error))} letters"
                    ) from error
            except BaseException as error:
                raise FoundError(f"ticket {index}: {type(error).__name__}: {error}") from error
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, previous)
        path.unlink(missing_ok=True)
    return counts


def run_all(
    name: str, state: Path, count: int, work: Callable[[int, int], dict[str, int]]
) -> dict[str, int]:
    """``work(first, count)`` until ``count`` are done, those that ``state`` tells of among them."""
    done: dict[str, Any] = {"done": 0, "counts": {}}
    if state.is_file():
        done = json.loads(state.read_text())
    with tqdm(total=count, initial=min(done["done"], count), desc=name, unit="file") as bar:
        while done["done"] < count:
            now = min(CHUNK, count - done["done"])
            for key, number in work(done["done"], now).items():
                done["counts"][key] = done["counts"].get(key, 0) + number
            done["done"] += now
            text = json.dumps(done).encode()
            write_atomically(state, lambda file, text=text: file.write(text))  # type: ignore[misc]
            bar.update(now)
    return dict(done["counts"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=positive, default=100_000, help="of each (default 100000)")
    parser.add_argument("--what", choices=("models", "tickets", "both"), default="both")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--driver", type=Path, help="a sparse_ddpm_fuzz that is built already")
    parser.add_argument("--portable", action="store_true", help="the baseline kernels alone")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    folder: Path = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    try:
        if args.what != "tickets":
            driver = args.driver or build_driver(folder / "library", args.portable)
            models = make_models(folder / "models")
            place = folder / "place"
            results["models"] = run_all(
                "models",
                folder / "models.json",
                args.count,
                lambda first, count: run_driver(driver, models, place, first, count),
            )
        if args.what != "models":
            sound = []
            for name, ticket in tickets():
                for suffix in (".pt", ".safetensors"):
                    path = folder / f"{name}{suffix}"
                    save_ticket(ticket, path)
                    sound.append(path.read_bytes())
            results["tickets"] = run_all(
                "tickets",
                folder / "tickets.json",
                args.count,
                lambda first, count: run_tickets(sound, folder / "damaged", first, count),
            )
    except FoundError as failure:
        print(failure)
        return 1
    if args.json:
        print(json.dumps({"schema": 1, "count": args.count, **results}))
    else:
        for name, counts in results.items():
            told = ", ".join(f"{n} {key}" for key, n in counts.items())
            print(f"{name}: {args.count} damaged, no crash, no hang, no report ({told})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
