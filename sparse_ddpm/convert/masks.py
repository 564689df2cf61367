"""Masks in the forms that pruning leaves them in, and the weights under them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_ddpm.convert.read import floats, tensors_of
from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.ticket import Parameter

Masks = dict[str, NDArray[np.bool_]]

STATE_NAMES = ("state_dict", "model_state_dict", "net", "weights")
MASK_NAMES = ("mask", "masks")

LEAST_ZEROS = 0.01
"""Part of a weight that has to be exactly zero for zeros to be a mask: a few are chance."""


def without_reparametrization(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Masks]:
    """Plain weights and the masks that were beside them.

    ``X_orig`` with ``X_mask`` (torch.nn.utils.prune) becomes X, their product, and a mask of X.
    Raises `TicketError` for one without the other and for masks of other numbers than 0 and 1.
    """
    plain: dict[str, Tensor] = {}
    masks: Masks = {}
    for name, tensor in tensors.items():
        if name.endswith("_mask"):
            if f"{name[:-5]}_orig" not in tensors:
                raise TicketError(expected(name, f"{name[:-5]}_orig beside it", "none"))
        elif name.endswith("_orig"):
            stem = name[:-5]
            if f"{stem}_mask" not in tensors:
                raise TicketError(expected(name, f"{stem}_mask beside it", "none"))
            mask = _mask(f"{stem}_mask", tensors[f"{stem}_mask"], tensor)
            plain[stem], masks[stem] = _masked(floats(name, tensor), mask), mask
        else:
            plain[name] = tensor
    return plain, masks


def split_masks(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], Masks] | None:
    """``{state_dict, mask}`` as weights and masks; None if ``content`` is not of that form.

    A mask has the name of its weight, or of its module, or that with ``_mask`` or ``.mask``.
    Raises `TicketError` for a mask that fits nothing.
    """
    state = next((name for name in STATE_NAMES if isinstance(content.get(name), Mapping)), None)
    if state is None:
        return None
    tensors, masks = without_reparametrization(tensors_of(state, content[state]))
    beside = next((name for name in MASK_NAMES if content.get(name) is not None), None)
    if beside is None:
        return tensors, masks
    table = content[beside]
    if not isinstance(table, Mapping):
        found = f"a {type(table).__name__}, which does not say which mask is whose"
        raise TicketError(expected(beside, "a table of masks by name", found))
    for name, tensor in tensors_of(beside, table).items():
        stem = name.removesuffix("_mask").removesuffix(".mask")
        owner = next((n for n in (stem, f"{stem}.weight") if n in tensors), None)
        if owner is None:
            raise TicketError(expected(f"{beside}: {name}", "the name of a weight", "no such"))
        mask = _mask(f"{beside}: {name}", tensor, tensors[owner])
        tensors[owner], masks[owner] = _masked(floats(owner, tensors[owner]), mask), mask
    return tensors, masks


def masks_of(
    weights: Mapping[str, NDArray[np.float32]], given: Masks, parameters: tuple[Parameter, ...]
) -> Masks:
    """The masks of a ticket: those ``given``, or else the zeros of a weight that has many.

    Of a parameter that tickets do not mask, zeros stay as values.
    """
    masks: Masks = {}
    for parameter in parameters:
        name = parameter.name
        if not parameter.prunable:
            continue
        if name in given:
            masks[name] = given[name]
        elif np.count_nonzero(weights[name]) <= (1.0 - LEAST_ZEROS) * weights[name].size:
            masks[name] = weights[name] != 0.0
    return masks


def _mask(name: str, mask: Tensor, weight: Tensor) -> NDArray[np.bool_]:
    if mask.shape != weight.shape:
        raise TicketError(expected(name, f"shape {list(weight.shape)}", list(mask.shape)))
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise TicketError(expected(name, "0 and 1", "other numbers"))
    return np.asarray((mask != 0).numpy())


def _masked(weight: Tensor, mask: NDArray[np.bool_]) -> Tensor:
    return torch.where(torch.from_numpy(mask), weight, torch.zeros(()))
