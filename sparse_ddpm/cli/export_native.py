"""``sparse-ddpm export --what native``: a model for the library without Python."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_ddpm.sampling import Table
    from sparse_ddpm.ticket import DiffusionConfig, Ticket

_FORM = {"weights": "packed", "dtype": "float32", "opset": None, "no_check": False}
"""What says how an ONNX file looks, and what it is where nobody asked."""


def export_native(
    args: argparse.Namespace, ticket: Ticket, sampling: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """Write ``args.output``; what ``--json`` prints of it, and a line for people."""
    from sparse_ddpm import __version__
    from sparse_ddpm.errors import ConfigError, expected
    from sparse_ddpm.lower import lower
    from sparse_ddpm.native import VERSION, write_native
    from sparse_ddpm.ticket.metadata import ticket_metadata

    for name, usual in _FORM.items():
        if getattr(args, name) != usual:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(expected(option, "none with --what native", getattr(args, name)))
    tables = _tables(args.samplers, ticket.diffusion, sampling)
    text = {"sparse_ddpm_version": __version__, **ticket_metadata(ticket)}
    batches = args.batch or (1, 16)
    size = write_native(args.output, lower(ticket), tables, batches=batches, text=text)
    report = {
        "version": VERSION,
        "sparsity": ticket.sparsity,
        "bytes": size,
        "samplers": list(tables),
        "batches": list(batches),
    }
    return report, f"version {VERSION}, {size / 1e6:.2f} MB, samplers {', '.join(tables)}"


def _tables(
    asked: list[str] | None, diffusion: DiffusionConfig, sampling: dict[str, Any]
) -> dict[str, Table]:
    """By name, such as ``ddim-50``."""
    from sparse_ddpm.errors import ConfigError, expected
    from sparse_ddpm.sampling import make_table

    if asked is None:
        table = make_table(diffusion, **sampling)
        return {f"{sampling.get('sampler', 'ddim')}-{table.steps}": table}
    if sampling:
        option = f"--{next(iter(sampling))}"
        raise ConfigError(expected(option, "none with --samplers", sampling[option[2:]]))
    tables = {}
    for text in asked:
        sampler, _, steps = text.rpartition(":")
        if not steps.isdecimal():
            raise ConfigError(expected("--samplers", "NAME:STEPS, such as ddim:50", repr(text)))
        tables[f"{sampler}-{int(steps)}"] = make_table(diffusion, sampler=sampler, steps=int(steps))
    return tables
