"""Opening a run: settings resolved or taken up again, data loaded, the folder locked."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from sparse_ddpm.data.load import load_images
from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.lottery.files import locked, read_json, write_json
from sparse_ddpm.lottery.kernels import resolve_kernels
from sparse_ddpm.lottery.pruning import density_after
from sparse_ddpm.lottery.run import Run
from sparse_ddpm.lottery.settings import FineTuning, Settings, fine_tuning
from sparse_ddpm.lottery.similarity import relative_densities
from sparse_ddpm.ticket import Ticket, load_ticket, save_ticket
from sparse_ddpm.ticket.config import Pattern, UNetConfig

CONFIG = "config.json"
START = "start.pt"
VERSION = 1

Costs = Callable[[UNetConfig, Pattern, Fraction], Mapping[str, float]]
"""Architecture, pattern and density of the last round to the time that one surviving weight of
each prunable parameter costs, in any unit; 0 for what costs none while images are drawn."""


def train(
    out: Path,
    chosen: Mapping[str, Any],
    *,
    resume: bool = False,
    download: bool = False,
    controls: Sequence[str] = (),
    begin: Path | None = None,
    similar_to: Sequence[Path] = (),
    costs: Costs | None = None,
    steps_per_checkpoint: int = 500,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Run, or go on with, the run in ``out``; return the metrics of its rounds and controls.

    ``chosen``: `Settings` by name. With ``resume`` those not chosen are as the run began; without
    a run in ``out`` one is begun. ``begin``: a ticket to begin with, see `fine_tuning`; it is kept
    in ``out``, and a run that goes on needs it no more. ``similar_to``: for allocation
    ``similarity`` two tickets, and ``costs``: for ``latency`` what a weight costs; what follows
    from them for each layer is kept with the settings, and a run that goes on needs neither. Raises
    `ConfigError` for a run in ``out`` without ``resume`` and for a setting that is not as the run
    began.
    """
    with _folder(out), locked(out):
        config = out / CONFIG
        if config.exists():
            if not resume:
                raise ConfigError(expected(f"out {out}", "no run there, or --resume", "a run"))
            settings, layers = _continued(config, chosen)
            if begin is not None and not _same(settings, load_ticket(begin)):
                raise ConfigError(expected("--resume: from", "the ticket it began with", begin))
            if similar_to and _layers(settings, similar_to, None) != layers:
                what = "--resume: similar-to"
                raise ConfigError(expected(what, "tickets as the run began", "others"))
        else:
            if "data" not in chosen:
                raise ConfigError(expected("data", "SPEC for a new run", "none"))
            if begin is None:
                settings = resolve(Settings(**chosen))
            else:
                settings = resolve(fine_tuning(load_ticket(begin), chosen))
            layers = _layers(settings, similar_to, costs)
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
                layers=layers,
                steps_per_checkpoint=steps_per_checkpoint,
            )
            if not config.exists():
                content = {"version": VERSION, "settings": settings.to_json(), "layers": layers}
                if begin is not None:
                    save_ticket(load_ticket(begin), out / START)
                    content["begin"] = START
                write_json(config, content)
            return run.execute(quiet=quiet)


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Make the folder; one that is still empty when a run cannot begin is not left behind."""
    there = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(expected(f"out {out}", "a folder", error.strerror)) from error
    try:
        yield
    except BaseException:
        if not there:
            with suppress(OSError):
                out.rmdir()
        raise


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads meanwhile; sums, and so bits, depend on how many."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _layers(
    settings: Settings, similar_to: Sequence[Path], costs: Costs | None
) -> dict[str, float] | None:
    """The numbers of layers that the allocation needs; raises `ConfigError` where it cannot be."""
    if similar_to and settings.allocation != "similarity":
        raise ConfigError(
            expected("allocation", "similarity with --similar-to", repr(settings.allocation))
        )
    if settings.allocation == "similarity":
        if len(similar_to) != 2:
            wanted = "two tickets with --allocation similarity"
            raise ConfigError(expected("similar-to", wanted, len(similar_to) or "none"))
        one, two = (load_ticket(path) for path in similar_to)
        return relative_densities(one, two)
    if settings.allocation == "latency" and costs is not None:
        density = density_after(
            settings.rounds,
            fraction=settings.prune_fraction,
            sparsity=settings.sparsity,
            rounds=settings.rounds,
        )
        config = settings.architecture
        if not isinstance(config, UNetConfig):
            what = "architecture with --allocation latency"
            raise ConfigError(expected(what, "the U-Net of the presets", type(config).__name__))
        return dict(costs(config, Pattern.parse(settings.pattern), density))
    return None


def _continued(config: Path, chosen: Mapping[str, Any]) -> tuple[Settings, dict[str, float] | None]:
    content = read_json(config)
    if content.get("version") != VERSION or not isinstance(content.get("settings"), dict):
        raise ConfigError(expected(str(config), f"settings, version {VERSION}", "others"))
    stored = Settings.from_json(content["settings"])
    if "begin" in content:
        ticket = load_ticket(config.parent / START)
        stored = FineTuning(**stored.to_json(), start=ticket)
    layers = content.get("layers")
    if layers is not None and not isinstance(layers, dict):
        raise ConfigError(expected(f"{config}: layers", "an object or null", repr(layers)[:80]))
    # "auto" asks for what this machine resolves it to; where nothing is asked the run decides.
    asked = resolve(dataclasses.replace(stored, **chosen))
    asked.check_same(stored)
    return stored, layers


def _same(settings: Settings, ticket: Ticket) -> bool:
    return isinstance(settings, FineTuning) and settings.ticket.equals(ticket)


def resolve(settings: Settings) -> Settings:
    """Replace ``auto`` by what this machine has, since the bits of a run depend on it.

    bf16 is chosen on a GPU that has it and on a CPU with bf16 multiply-add (AVX512_BF16 or AMX):
    measured on 2 cores of an AVX512_BF16 CPU, a step of ``small`` at 16x16 in batches of 64 takes
    0.24 s instead of 0.37 s.
    """
    values: dict[str, Any] = {}
    if settings.device == "auto":
        values["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    elif settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(expected("device", "a CUDA device", "none that torch can use"))
    if settings.precision == "auto":
        device = values.get("device", settings.device)
        fast = torch.cuda.is_bf16_supported() if device == "cuda" else _cpu_has_bf16()
        values["precision"] = "bf16" if fast else "float32"
    if settings.threads is None:
        values["threads"] = _cores()
    resolved = dataclasses.replace(settings, **values)
    return dataclasses.replace(resolved, kernels=resolve_kernels(resolved))


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
