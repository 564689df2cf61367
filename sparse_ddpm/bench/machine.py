"""What a benchmark ran on: the processor, its caches, memory and versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "torch", "onnx", "onnxruntime", "openvino")


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Of Python, this package and the installed peers."""
    found = {"python": platform.python_version()}
    for name in ("sparse-ddpm", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """For people who compare figures: ``cpu``, ``cores``, ``caches`` in bytes, ``memory_mib``."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "caches": caches(),
        "memory_mib": memory_mib(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def cpu_name() -> str:
    """As the processor calls itself."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def caches() -> dict[str, int]:
    """Bytes of the data caches that core 0 sees: ``L1``, ``L2``, ``L3`` where known."""
    found: dict[str, int] = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level = (folder / "level").read_text().strip()
            kind = (folder / "type").read_text().strip()
            size = (folder / "size").read_text().strip()
        except OSError:
            continue
        match = re.fullmatch(r"(\d+)([KM]?)", size)
        if kind != "Instruction" and match:
            found[f"L{level}"] = int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]]
    return found


def memory_mib() -> int:
    """Of the whole machine."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20)


def resident_mib() -> float:
    """Memory of this process in RAM; where the system does not tell, the most there ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource  # no such module on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
