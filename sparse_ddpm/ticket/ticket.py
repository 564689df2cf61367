"""The ticket: a pruned network, its masks and all that is needed to sample from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import TicketError, expected
from sparse_ddpm.ticket.architecture import Architecture, parameters_of
from sparse_ddpm.ticket.config import DiffusionConfig, Provenance
from sparse_ddpm.ticket.parameters import Parameter

MAX_PARAMETERS = 2**29
"""More than any U-Net we know, little enough that a damaged file cannot ask for terabytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A lottery ticket; checks itself when made, and its arrays are read-only.

    ``weights``: every parameter of ``parameters_of(architecture)`` by name, float32 in the
    shape given there, finite, 0.0 where pruned. ``masks``: bool of the same shape, True where a
    weight survives, for pruned parameters only; a parameter without a mask is dense. A surviving
    weight may be 0.0. A mask that is True everywhere is dropped on construction and a pruned -0.0
    becomes 0.0, so that equal tickets have equal arrays. Raises `TicketError`.
    """

    architecture: Architecture
    diffusion: DiffusionConfig
    provenance: Provenance
    weights: Mapping[str, NDArray[np.float32]]
    masks: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parameters = {parameter.name: parameter for parameter in self.parameters()}
        check_parameter_count(tuple(parameters.values()))
        check_names("tensors", self.weights, parameters)
        weights: dict[str, NDArray[np.float32]] = {}
        masks: dict[str, NDArray[np.bool_]] = {}
        for name in self.masks:
            if name not in parameters:
                raise TicketError(expected("masks", "names of parameters", repr(name)[:80]))
            if not parameters[name].prunable:
                raise TicketError(
                    expected(name, "no mask (this parameter is never pruned)", "a mask")
                )
        for name, parameter in parameters.items():
            weights[name], mask = _checked(parameter, self.weights[name], self.masks.get(name))
            if mask is not None:
                masks[name] = mask
        object.__setattr__(self, "weights", MappingProxyType(weights))
        object.__setattr__(self, "masks", MappingProxyType(masks))

    def parameters(self) -> tuple[Parameter, ...]:
        """Names, shapes and roles of all tensors, in the order of the forward pass."""
        return parameters_of(self.architecture)

    def mask(self, name: str) -> NDArray[np.bool_]:
        """The mask of ``name``, all True where that parameter is dense."""
        mask = self.masks.get(name)
        return np.ones(self.weights[name].shape, dtype=bool) if mask is None else mask

    def survivors(self, name: str) -> int:
        """How many weights of ``name`` survive."""
        mask = self.masks.get(name)
        return int(self.weights[name].size if mask is None else np.count_nonzero(mask))

    def density(self, name: str | None = None) -> float:
        """Fraction of the weights that survives: of ``name``, or of all prunable parameters."""
        names = [p.name for p in self.parameters() if p.prunable] if name is None else [name]
        total = sum(self.weights[each].size for each in names)
        return sum(self.survivors(each) for each in names) / total

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that is gone."""
        return 1.0 - self.density()

    def equals(self, other: Ticket) -> bool:
        """True when both hold the same configuration and the same bits."""
        return (
            self.architecture == other.architecture
            and self.diffusion == other.diffusion
            and self.provenance == other.provenance
            and self.masks.keys() == other.masks.keys()
            and all(np.array_equal(mask, other.masks[name]) for name, mask in self.masks.items())
            and all(
                np.array_equal(weight.view(np.uint32), other.weights[name].view(np.uint32))
                for name, weight in self.weights.items()
            )
        )

    def rounded_to_float16(self) -> Ticket:
        """The same ticket with every value rounded to the nearest float16, which halves its file.

        Survivors that round to 0.0 still survive. Raises `TicketError` where a value overflows.
        """
        rounded = {}
        for name, weight in self.weights.items():
            with np.errstate(over="ignore"):
                narrow = weight.astype(np.float16)
            if not np.isfinite(narrow).all():
                worst = float(np.abs(weight).max())
                raise TicketError(expected(name, "magnitudes below 65520 (float16)", worst))
            rounded[name] = narrow.astype(np.float32)
        return dataclasses.replace(self, weights=rounded)


def check_parameter_count(parameters: tuple[Parameter, ...]) -> None:
    """Refuse an architecture larger than any ticket may be, before anything is allocated."""
    total = sum(int(np.prod(p.shape, dtype=object)) for p in parameters)
    if total > MAX_PARAMETERS:
        raise TicketError(
            expected("architecture", f"at most {MAX_PARAMETERS} parameters", f"{total}")
        )


def check_names(what: str, got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a table whose names are not exactly those wanted, and name the first that differs."""
    missing = [name for name in wanted if name not in got]
    extra = [name for name in got if name not in wanted]
    if missing:
        more = f" and {len(missing) - 1} more that lack" if len(missing) > 1 else ""
        found = f"{extra[0]!r:.80} instead" if extra else "none"
        raise TicketError(expected(what, f"an entry {missing[0]!r}{more}", found))
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        found = f"also {extra[0]!r:.80}{more}"
        raise TicketError(expected(what, f"{len(wanted)} known entries", found))


def _checked(
    parameter: Parameter, weight: NDArray[Any], mask: NDArray[Any] | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    _check_array(parameter.name, weight, np.dtype(np.float32), parameter.shape)
    if not np.isfinite(weight).all():
        bad = int(np.count_nonzero(~np.isfinite(weight)))
        raise TicketError(expected(parameter.name, "finite values", f"{bad} NaN or infinite"))
    if mask is None:
        return _owned(weight), None
    _check_array(f"{parameter.name} mask", mask, np.dtype(np.bool_), parameter.shape)
    if mask.all():
        return _owned(weight), None
    pruned = weight[~mask]
    if pruned.any():
        bad = int(np.count_nonzero(pruned))
        raise TicketError(
            expected(parameter.name, "0.0 where the mask prunes", f"{bad} other values")
        )
    if np.signbit(pruned).any():
        weight = np.where(mask, weight, np.float32(0.0))
        weight.setflags(write=False)
    return _owned(weight), _owned(mask)


def _check_array(what: str, array: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    wanted = f"{dtype} {list(shape)}"
    if not isinstance(array, np.ndarray):
        raise TicketError(expected(what, wanted, type(array).__name__))
    if array.dtype != dtype or array.shape != shape:
        raise TicketError(expected(what, wanted, f"{array.dtype} {list(array.shape)}"))


def _owned(array: NDArray[Any]) -> NDArray[Any]:
    """``array`` itself when nobody can write to it, else a read-only copy."""
    if not array.flags.writeable and array.flags.c_contiguous and array.base is None:
        return array
    copy = np.array(array, order="C")
    copy.setflags(write=False)
    return copy
