"""Opening a run: settings resolved or taken up again, data loaded, the folder locked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sparse_ddpm.data.load import load_images
from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.lottery.files import locked, read_json, write_json
from sparse_ddpm.lottery.run import Run
from sparse_ddpm.lottery.settings import Settings

CONFIG = "config.json"
VERSION = 1


def train(
    out: Path,
    chosen: Mapping[str, Any],
    *,
    resume: bool = False,
    download: bool = False,
    controls: Sequence[str] = (),
    steps_per_checkpoint: int = 500,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Run, or go on with, the run in ``out``; return the metrics of its rounds and controls.

    ``chosen``: `Settings` by name. With ``resume`` those not chosen are as the run began; without
    a run in ``out`` one is begun. Raises `ConfigError` for a run in ``out`` without ``resume`` and
    for a setting that is not as the run began.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(expected(f"out {out}", "a folder", error.strerror)) from error
    with locked(out):
        config = out / CONFIG
        if config.exists():
            if not resume:
                raise ConfigError(expected(f"out {out}", "no run there, or --resume", "a run"))
            settings = _continued(config, chosen)
        else:
            if "data" not in chosen:
                raise ConfigError(expected("data", "SPEC for a new run", "none"))
            settings = resolve(Settings(**chosen))
        architecture = settings.architecture
        images = load_images(
            settings.data,
            image_size=architecture.image_size,
            channels=architecture.channels,
            download=download,
        )
        with _threads(settings.threads):
            run = Run(
                settings,
                out,
                images.images,
                images.name,
                controls=controls,
                steps_per_checkpoint=steps_per_checkpoint,
            )
            if not config.exists():
                write_json(config, {"version": VERSION, "settings": settings.to_json()})
            return run.execute(quiet=quiet)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads meanwhile; sums, and so bits, depend on how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _continued(config: Path, chosen: Mapping[str, Any]) -> Settings:
    content = read_json(config)
    if content.get("version") != VERSION or not isinstance(content.get("settings"), dict):
        raise ConfigError(expected(str(config), f"settings, version {VERSION}", "others"))
    stored = Settings.from_json(content["settings"])
    # "auto" asks for what this machine resolves it to; where nothing is asked the run decides.
    asked = resolve(Settings(**{**stored.to_json(), **chosen}))
    asked.check_same(stored)
    return stored


def resolve(settings: Settings) -> Settings:
    """Replace ``auto`` by what this machine has, since the bits of a run depend on it.

    bf16 is chosen on a GPU that has it and on a CPU with bf16 multiply-add (AVX512_BF16 or AMX):
    measured on 2 cores of an AVX512_BF16 CPU, a step of ``small`` at 16x16 in batches of 64 takes
    0.24 s instead of 0.37 s.
    """
    values = settings.to_json()
    if settings.device == "auto":
        values["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    elif settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(expected("device", "a CUDA device", "none that torch can use"))
    if settings.precision == "auto":
        fast = torch.cuda.is_bf16_supported() if values["device"] == "cuda" else _cpu_has_bf16()
        values["precision"] = "bf16" if fast else "float32"
    if settings.threads is None:
        values["threads"] = _cores()
    return Settings(**values)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_has_bf16() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
