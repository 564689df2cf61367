"""Figures in words: units, and what a ticket is."""

from __future__ import annotations

from sparse_ddpm.inspection.report import Inspection


def mega(flops: float | None) -> str:
    """FLOPs in MFLOP; nothing for none."""
    return f"{flops / 1e6:,.2f}" if flops else ""


def kibi(size: float | None) -> str:
    """Bytes in KiB; nothing for none."""
    return f"{size / 1024:,.1f}" if size else ""


def size_of(count: float | None) -> str:
    """Bytes with the unit that suits them, a dash for what is not known."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:,.0f} B" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"


def flops_of(count: float) -> str:
    """FLOPs with the unit that suits them."""
    for unit in ("", "K", "M", "G"):
        if count < 1000:
            return f"{count:,.0f} FLOP" if not unit else f"{count:,.2f} {unit}FLOP"
        count /= 1000
    return f"{count:,.2f} TFLOP"


def time_of(us: float | None) -> str:
    """Microseconds with the unit that suits them, a dash for what is not known."""
    if us is None:
        return "-"
    return f"{us:,.1f} us" if us < 1000 else f"{us / 1e3:,.3f} ms"


def title(found: Inspection) -> str:
    """The ticket in one line."""
    return f"{found['ticket']}: {found['sparsity']:.2%} pruned ({found['provenance']['pattern']})"


def where(found: Inspection) -> str:
    """What it was planned for."""
    threads = found["threads"]
    also = "" if threads is None else f", {threads} thread{'s' * (threads > 1)}"
    return f"{found['device']}{also}, {found['dtype']}, batch {found['batch']}"


def about(found: Inspection) -> list[str]:
    """The ticket in a few lines."""
    config, diffusion, origin = found["architecture"], found["diffusion"], found["provenance"]
    count, size = found["parameters"], found["architecture"]["image_size"]
    widths = (
        f"{config['dim']} x {tuple(config['dim_mults'])}"
        if "dim" in config
        else f"of {', '.join(map(str, config['block_out_channels']))} channels"
    )
    lines = [
        f"U-Net {widths}, images {config['channels']}x{size}x{size}; "
        f"{diffusion['objective']} objective, {diffusion['schedule']} schedule of "
        f"{diffusion['timesteps']} steps",
        f"{count['surviving']:,} of {count['prunable']:,} prunable weights survive: "
        f"sparsity {found['sparsity']:.2%}, pattern {origin['pattern']}",
    ]
    if origin["dataset"]:
        lines.append(
            f"from {origin['dataset']}, seed {origin['seed']}, round {origin['round']}, "
            f"rewinding {origin['rewinding']}, allocation {origin['allocation']}"
        )
    return lines
