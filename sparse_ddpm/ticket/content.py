"""A ticket as plain content (tables, lists, numbers, strings, arrays) and back, fully checked.

This is what both file formats carry, and the whole specification of the ticket file::

    format        "sparse-ddpm-ticket"
    version       1
    architecture  family, "unet" or "unet2d", and the fields of `UNetConfig` or `UNet2DConfig`
    diffusion     the fields of `DiffusionConfig`; see LATER
    image         size, channels, range [-1.0, 1.0]
    provenance    the fields of `Provenance`
    tensors       name -> shape, dtype "float32", encoding, stored "float16" or "float32",
                  and the arrays of the encoding (see `sparse_ddpm.ticket.encoding`)

Nothing else may be missing and nothing else may be there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.ticket.architecture import FAMILIES, Architecture, family_of, parameters_of
from sparse_ddpm.ticket.config import DiffusionConfig, Provenance
from sparse_ddpm.ticket.encoding import ARRAYS, decode, encode
from sparse_ddpm.ticket.parameters import Parameter
from sparse_ddpm.ticket.ticket import Ticket, check_names, check_parameter_count

FORMAT = "sparse-ddpm-ticket"
VERSION = 1
SECTIONS = ("format", "version", "architecture", "diffusion", "image", "provenance", "tensors")
LATER = frozenset(
    {
        "attention_norm",
        "attention_values",
        "beta_end",
        "beta_start",
        "block_norm",
        "full_attention",
        "memory",
    }
)
"""Fields that version 1 got later: they are written only where they are not the default."""
IMAGE_RANGE = [-1.0, 1.0]
MAX_TEXT = 10_000
MAX_SETTING = 100
MAX_METRICS = 10_000
MAX_LIST = 64

Content = dict[str, Any]
Table = dict[str, Any]


def to_content(ticket: Ticket) -> Content:
    """The plain content of ``ticket``, each tensor in its smallest encoding."""
    architecture = _written(ticket.architecture)
    tensors: Table = {}
    for parameter in ticket.parameters():
        weight = ticket.weights[parameter.name]
        encoding, arrays = encode(weight, ticket.masks.get(parameter.name))
        tensors[parameter.name] = {
            "shape": list(parameter.shape),
            "dtype": "float32",
            "encoding": encoding,
            "stored": arrays["values"].dtype.name,
            **arrays,
        }
    provenance = dataclasses.asdict(ticket.provenance)
    _provenance(provenance)  # so that whatever is written can be read
    return {
        "format": FORMAT,
        "version": VERSION,
        "architecture": {"family": family_of(ticket.architecture), **architecture},
        "diffusion": _written(ticket.diffusion),
        "image": {
            "size": ticket.architecture.image_size,
            "channels": ticket.architecture.channels,
            "range": list(IMAGE_RANGE),
        },
        "provenance": provenance,
        "tensors": tensors,
    }


def from_content(content: object) -> Ticket:
    """The ticket that ``content`` holds. Raises `TicketError` or `ConfigError` on any flaw."""
    if not isinstance(content, dict):
        raise TicketError(expected("content", "a table", shown(content)))
    if not _is_text(content.get("format"), FORMAT):
        found = shown(content["format"]) if "format" in content else "a file without it"
        raise TicketError(expected("format", repr(FORMAT), found))
    _check_version(content.get("version"))
    check_names("sections", content, dict.fromkeys(SECTIONS))
    for section in SECTIONS[2:]:
        if not isinstance(content[section], dict):
            raise TicketError(expected(section, "a table", shown(content[section])))
    architecture = _architecture(content["architecture"])
    _check_image(content["image"], architecture)
    diffusion = _diffusion(content["diffusion"])
    provenance = _provenance(content["provenance"])
    parameters = parameters_of(architecture)
    check_parameter_count(parameters)
    check_names("tensors", content["tensors"], {p.name: p for p in parameters})
    weights: dict[str, NDArray[np.float32]] = {}
    masks: dict[str, NDArray[np.bool_]] = {}
    for parameter in parameters:
        weight, mask = _tensor(parameter, content["tensors"][parameter.name])
        weights[parameter.name] = weight
        if mask is not None:
            masks[parameter.name] = mask
    return Ticket(architecture, diffusion, provenance, weights, masks)


def shown(value: object) -> str:
    """A short description of any value, however large or deep it is."""
    if isinstance(value, np.ndarray):
        return f"a tensor of {value.dtype} {list(value.shape)}"
    if isinstance(value, (list, dict)):
        return f"a {'list' if isinstance(value, list) else 'table'} of {len(value)}"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)[:60]
    if isinstance(value, str):
        return repr(value[:60]) + (f" and {len(value) - 60} more" if len(value) > 60 else "")
    return f"a {type(value).__name__}"


def _check_version(version: object) -> None:
    if type(version) is int and version > VERSION:
        found = f"{shown(version)}, which a newer sparse-ddpm wrote: please upgrade"
        raise TicketError(expected("version", VERSION, found))
    if type(version) is not int or version != VERSION:
        raise TicketError(expected("version", VERSION, shown(version)))


def _is_text(value: object, *choices: str) -> bool:
    return type(value) is str and value in choices


def _is_short_text(value: object, limit: int) -> bool:
    """Whether both file formats can hold ``value`` (not so half of a surrogate pair)."""
    return (
        isinstance(value, str)
        and len(value) <= limit
        and value == value.encode("utf-8", "replace").decode("utf-8")
    )


def _check_fields(
    section: str, table: Table, config: type, compound: Collection[str] = (), *also: str
) -> None:
    """Check the names, and that all values but ``compound`` are numbers or short texts.

    What the values may be is for ``config`` to say; this keeps its messages short.
    """
    fields = dataclasses.fields(config)
    limit = MAX_TEXT if config is Provenance else MAX_SETTING
    check_names(section, table, dict.fromkeys((*also, *(field.name for field in fields))))
    for name, value in table.items():
        scalar = isinstance(value, (bool, int, float)) or _is_short_text(value, limit)
        if name not in compound and not scalar:
            wanted = f"a number or at most {limit} characters"
            raise TicketError(expected(f"{section}.{name}", wanted, shown(value)))


def _architecture(table: Table) -> Architecture:
    family = table.get("family")
    if not _is_text(family, *FAMILIES):
        wanted = " or ".join(map(repr, FAMILIES))
        raise TicketError(expected("architecture.family", wanted, shown(family)))
    config = FAMILIES[str(family)]
    kinds = {field.name: str(field.type) for field in dataclasses.fields(config)}
    lists = {
        name: str if "str" in kind else int
        for name, kind in kinds.items()
        if kind.startswith("tuple")
    }
    table = _whole(table, config)
    _check_fields("architecture", table, config, lists, "family")
    fields = {name: value for name, value in table.items() if name != "family"}
    for name, kind in lists.items():
        items = fields[name]
        if (
            type(items) is not list
            or len(items) > MAX_LIST
            or any(type(item) is not kind or len(str(item)) > MAX_SETTING for item in items)
        ):
            wanted = f"a list of {'integers' if kind is int else 'short texts'}"
            raise TicketError(expected(f"architecture.{name}", wanted, shown(items)))
        fields[name] = tuple(items)
    return config(**fields)


def _written(config: Architecture | DiffusionConfig) -> Table:
    """The fields of ``config``; those of LATER only where they are not the default."""
    table: Table = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in LATER or value != field.default:
            table[field.name] = list(value) if isinstance(value, tuple) else value
    return table


def _whole(table: Table, config: type) -> Table:
    """``table`` with the defaults of those fields of LATER that it lacks."""
    later = {field.name: field.default for field in dataclasses.fields(config)}
    usual = {name: value for name, value in later.items() if name in LATER}
    listed = {n: list(value) if isinstance(value, tuple) else value for n, value in usual.items()}
    return {**listed, **table}


def _diffusion(table: Table) -> DiffusionConfig:
    whole = _whole(table, DiffusionConfig)
    _check_fields("diffusion", whole, DiffusionConfig)
    return DiffusionConfig(**whole)


def _check_image(table: Table, architecture: Architecture) -> None:
    check_names("image", table, dict.fromkeys(("size", "channels", "range")))
    sizes = {"size": architecture.image_size, "channels": architecture.channels}
    for name, wanted in sizes.items():
        if type(table[name]) is not int or table[name] != wanted:
            found = shown(table[name])
            raise TicketError(expected(f"image.{name}", f"{wanted}, as the architecture", found))
    limits = table["range"]
    pair = limits if type(limits) is list and len(limits) == 2 else []
    if any(type(limit) is not float for limit in pair) or pair != IMAGE_RANGE:
        found = " to ".join(map(shown, pair)) or shown(limits)
        raise TicketError(expected("image.range", "-1.0 to 1.0", found))


def _provenance(table: Table) -> Provenance:
    _check_fields("provenance", table, Provenance, ("metrics",))
    metrics = table["metrics"]
    if type(metrics) is not dict or len(metrics) > MAX_METRICS:
        wanted = f"a table of at most {MAX_METRICS} floats"
        raise TicketError(expected("provenance.metrics", wanted, shown(metrics)))
    for name, value in metrics.items():
        if type(value) is not float or not _is_short_text(name, MAX_TEXT):
            what = f"provenance.metrics {shown(name)}"
            raise TicketError(expected(what, "a float with a short name", shown(value)))
    return Provenance(**table)


def _tensor(
    parameter: Parameter, table: object
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    name = parameter.name
    if not isinstance(table, dict):
        raise TicketError(expected(name, "a table", shown(table)))
    encoding = table.get("encoding")
    if type(encoding) is not str or encoding not in ARRAYS:
        choices = f"one of {', '.join(ARRAYS)}"
        raise TicketError(expected(f"{name} encoding", choices, shown(encoding)))
    fields = ("shape", "dtype", "encoding", "stored", *ARRAYS[encoding])
    check_names(name, table, dict.fromkeys(fields))
    _check_shape(name, table["shape"], parameter.shape)
    if not _is_text(table["dtype"], "float32"):
        raise TicketError(expected(f"{name} dtype", "'float32'", shown(table["dtype"])))
    if not _is_text(table["stored"], "float16", "float32"):
        found = shown(table["stored"])
        raise TicketError(expected(f"{name} stored", "'float16' or 'float32'", found))
    if encoding != "dense" and not parameter.prunable:
        wanted = "dense (this parameter is never pruned)"
        raise TicketError(expected(f"{name} encoding", wanted, encoding))
    return decode(name, parameter.shape, encoding, _arrays(name, encoding, table))


def _check_shape(name: str, shape: object, wanted: tuple[int, ...]) -> None:
    good = type(shape) is list and len(shape) <= MAX_LIST and all(type(n) is int for n in shape)
    if not good:
        raise TicketError(expected(f"{name} shape", "a list of integers", shown(shape)))
    if shape != list(wanted):
        raise TicketError(expected(f"{name} shape", list(wanted), f"{shape!s:.200}"))


def _arrays(name: str, encoding: str, table: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    arrays = {}
    for key in ARRAYS[encoding]:
        dtype = table["stored"] if key == "values" else "uint8"
        array = table[key]
        if not isinstance(array, np.ndarray):
            raise TicketError(expected(f"{name} {key}", f"a {dtype} tensor", shown(array)))
        if array.dtype.name != dtype:
            raise TicketError(expected(f"{name} {key}", f"dtype {dtype}", array.dtype.name))
        arrays[key] = array
    return arrays
