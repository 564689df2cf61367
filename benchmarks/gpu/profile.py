"""Which kernels a recording spends its time in, as torch's profiler tells it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu.devices import Device, Recording

REPLAYS = 3
MOST = 40


def kernels(recording: Recording, device: Device) -> list[dict[str, Any]] | dict[str, str]:
    """The kernels of one replay by time: ``name``, ``count``, ``us`` together.

    In a dry run torch's own operations stand in. ``failed`` where the profiler cannot.
    """
    wanted = DeviceType.CUDA if device.measured else DeviceType.CPU
    activity = ProfilerActivity.CUDA if device.measured else ProfilerActivity.CPU
    replays = REPLAYS if device.measured else 1
    try:
        with profile(activities=[activity]) as found:
            for _ in range(replays):
                recording.replay()
            device.synchronize()
        events = list(found.events() or ())
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.device_type == wanted:
            times[event.name].append(event.time_range.elapsed_us())
    rows = [
        {
            "name": name[:160],
            "count": round(len(spent) / replays, 2),
            "us": round(sum(spent) / replays, 3),
        }
        for name, spent in times.items()
    ]
    rows.sort(key=lambda row: -row["us"])
    return rows[:MOST]
