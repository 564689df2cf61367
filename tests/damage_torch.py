"""What torch itself writes when it is given something else than a ticket."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

from damage_base import (
    damage_bytes,
)

from sparse_ddpm.ticket.content import FORMAT


def _saved_by_torch(name: str, says: str, make: Callable[[Any], object], **options: bool) -> None:
    def make_bytes() -> bytes:
        import torch

        buffer = io.BytesIO()
        with warnings.catch_warnings():  # torch calls its sparse tensors a beta
            warnings.simplefilter("ignore")
            torch.save(make(torch), buffer, **options)
        return buffer.getvalue()

    damage_bytes(name, says, make_bytes)


def _with(key: str, make: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda torch: {"format": FORMAT, "version": 1, key: make(torch)}


_saved_by_torch(
    "torch sparse CSR",
    "_rebuild_sparse",
    _with("tensors", lambda torch: torch.eye(4).to_sparse_csr()),
)
_saved_by_torch(
    "torch sparse COO", "_rebuild_sparse", _with("tensors", lambda torch: torch.eye(4).to_sparse())
)
_saved_by_torch(
    "torch parameter",
    "_rebuild_parameter",
    _with("tensors", lambda torch: torch.nn.Parameter(torch.ones(3))),
)
_saved_by_torch(
    "torch bfloat16",
    "BFloat16Storage",
    _with("tensors", lambda torch: torch.ones(3, dtype=torch.bfloat16)),
)
_saved_by_torch("torch transposed", "strides", _with("tensors", lambda torch: torch.ones(3, 4).T))
_saved_by_torch(
    "torch gradient", "gradient", _with("tensors", lambda torch: torch.ones(3, requires_grad=True))
)
_saved_by_torch(
    "torch same tensor twice",
    "shared",
    lambda torch: dict.fromkeys(("format", "version"), torch.ones(3)),
)
_saved_by_torch(
    "ordinary state_dict", "pickle opcode BUILD", lambda torch: torch.nn.Linear(2, 2).state_dict()
)
_saved_by_torch(
    "plain state_dict", "format", lambda torch: dict(torch.nn.Linear(2, 2).state_dict())
)
_saved_by_torch(
    "whole module", "torch.nn.modules.linear.Linear", lambda torch: torch.nn.Linear(2, 2)
)
_saved_by_torch(
    "legacy torch file",
    "bare pickle",
    lambda torch: {"format": FORMAT},
    _use_new_zipfile_serialization=False,
)
