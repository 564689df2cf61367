"""Files of tensors, read without running what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_ddpm.errors import TicketError, expected

MAX_NAMES = 100_000


def read_file(path: Path) -> Mapping[str, Any]:
    """The table that a ``.safetensors`` or a torch file holds, on the CPU.

    torch's own restricted reader is used: tensors, numbers, strings and containers. Raises
    `TicketError` for anything else, for a file that cannot be read and for one that is no table.
    """
    content: object
    try:
        with open(path, "rb") as file:
            head = file.read(9)
        if head[8:9] == b"{" and path.suffix != ".pt":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds
        raise TicketError(expected(str(path), "a file of tensors", _reason(error))) from error
    if not isinstance(content, Mapping):
        raise TicketError(expected(str(path), "a table of tensors", f"a {_kind(content)}"))
    return content


def tensors_of(what: str, table: Mapping[Any, Any]) -> dict[str, Tensor]:
    """``table`` as names and tensors; raises `TicketError` for anything else in it."""
    if len(table) > MAX_NAMES:
        raise TicketError(expected(what, f"at most {MAX_NAMES} tensors", len(table)))
    for name, value in table.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TicketError(expected(f"{what}: {name!r:.80}", "a tensor", f"a {_kind(value)}"))
    return dict(table)


def without_prefix(tensors: Mapping[str, Any], *prefixes: str) -> dict[str, Any]:
    """``tensors`` without the first of ``prefixes`` that all names begin with, again and again.

    Wrappers (`DataParallel`, `torch.compile`, a diffusion around its network) each add one.
    """
    table = dict(tensors)
    while table:
        found = next((p for p in prefixes if all(name.startswith(p) for name in table)), None)
        if found is None:
            break
        table = {name[len(found) :]: value for name, value in table.items()}
    return table


def floats(name: str, tensor: Tensor) -> Tensor:
    """``tensor`` as float32; raises `TicketError` where that would lose anything but zeros' signs.

    Half precision is widened; float64 is refused unless every value is a float32.
    """
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        found = f"{tensor.dtype} {tensor.layout}"
        raise TicketError(expected(name, "a dense tensor of floats", found))
    narrow = tensor.detach().to(torch.float32)
    if tensor.dtype == torch.float64 and not torch.equal(narrow.double(), tensor.detach()):
        raise TicketError(expected(name, "values that float32 holds", "float64 with more digits"))
    return narrow.contiguous()


def _reason(error: Exception) -> str:
    text = str(error)
    if "weights_only" in text or "Unsupported global" in text or "WeightsUnpickler" in text:
        names = ", ".join(_refused(text)) or "objects other than tensors"
        return (
            f"one that holds {names}, which is never unpickled here (open it where it was made and "
            "save only its state dict: torch.save(model.state_dict(), path))"
        )
    return text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__


def _refused(text: str) -> Iterator[str]:
    for word in text.split("GLOBAL ")[1:2]:
        yield word.split()[0][:100]


def _kind(value: object) -> str:
    return type(value).__name__
