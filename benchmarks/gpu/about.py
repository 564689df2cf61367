"""What was measured: device, driver, versions, commit, and which sources a result depends on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparse_ddpm.bench.machine import machine, versions

ROOT = Path(__file__).resolve().parents[2]

_PROGRAM = (
    "sparse_ddpm/formats",
    "sparse_ddpm/lower",
    "sparse_ddpm/program",
    "sparse_ddpm/ticket",
    "benchmarks/gpu/devices.py",
)
SOURCES: dict[str, tuple[str, ...]] = {
    "ours": (*_PROGRAM, "sparse_ddpm/engine", "kernels/sparse_ddpm_kernels/triton"),
    "peers": (*_PROGRAM, "sparse_ddpm/bench/torch_peer.py", "benchmarks/gpu/peers.py"),
    "limits": ("benchmarks/gpu/devices.py", "benchmarks/gpu/ceilings.py"),
}
"""Files and folders whose Python decides a result: a changed kernel leaves peers' times valid."""


def fingerprint(kind: str, root: Path = ROOT) -> str:
    """Of the sources behind a result of ``kind`` (see `SOURCES`), committed or not: 12 digits."""
    found = hashlib.sha256()
    for name in SOURCES[kind]:
        path = root / name
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            found.update(str(file.relative_to(root)).encode())
            found.update(file.read_bytes())
    return found.hexdigest()[:12]


def commit(named: str | None = None) -> dict[str, Any]:
    """``commit`` and whether files differ from it: ``named`` and None where git cannot say."""
    head, changes = (_run("git", "rev-parse", "HEAD"), _run("git", "status", "--porcelain"))
    return {"commit": head or named, "modified": None if changes is None else bool(changes)}


def device(dry: bool) -> dict[str, Any]:
    """``name`` is what results of two runs must share to be kept side by side."""
    if dry:
        return {"name": "cpu, dry run: times are no measurement", "cpu": machine()["cpu"]}
    import torch

    found = torch.cuda.get_device_properties(0)
    rest = {
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "l2_bytes": found.L2_cache_size,
        "capability": f"{found.major}.{found.minor}",
    }
    return {"name": found.name, **rest, **_driver()}


def about(dry: bool, command: Sequence[str], commit_named: str | None = None) -> dict[str, Any]:
    """What every section's file begins with. ``command``: what was typed."""
    import torch

    known = versions()
    for name in ("triton", "matplotlib"):
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": device(dry),
        "versions": {**known, "cuda": torch.version.cuda, "cudnn": _cudnn()},
        **commit(commit_named),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "machine": machine(),
        "kernel": platform.release(),
    }


def _cudnn() -> int | None:
    import torch

    return torch.backends.cudnn.version() if torch.cuda.is_available() else None


def _driver() -> dict[str, Any]:
    """Driver and clocks, as nvidia-smi tells them; nothing is set."""
    names = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu")
    line = _run("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader")
    values = [None] * len(names) if line is None else line.splitlines()[0].split(", ")
    return dict(zip(("driver", *names[1:]), values, strict=True))


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
