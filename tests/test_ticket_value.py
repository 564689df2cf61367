"""A Ticket checks itself, cannot be changed, and compares bit by bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from damage_base import BIAS, DENSE, GAPS, TINY, sound_ticket

from sparse_ddpm.errors import TicketError
from sparse_ddpm.ticket import Ticket, UNetConfig, synthetic_ticket
from sparse_ddpm.ticket.ticket import MAX_PARAMETERS


def _changed(name: str, weight: Any = None, mask: Any = None) -> Ticket:
    ticket = sound_ticket()
    weights, masks = dict(ticket.weights), dict(ticket.masks)
    if weight is not None:
        weights[name] = weight
    if mask is not None:
        masks[name] = mask
    return dataclasses.replace(ticket, weights=weights, masks=masks)


def _pruned_value() -> np.ndarray:
    weight = sound_ticket().weights[GAPS].copy()
    weight[~sound_ticket().masks[GAPS]] = 1e-30
    return weight


@pytest.mark.parametrize(
    ("name", "weight", "mask", "says"),
    [
        (DENSE, np.zeros((6, 1, 7, 7)), None, "float32 [6, 1, 7, 7], got float64"),
        (DENSE, np.zeros((6, 1, 7, 6), np.float32), None, "got float32 [6, 1, 7, 6]"),
        (DENSE, [1.0, 2.0], None, "got list"),
        (BIAS, np.full(6, np.nan, np.float32), None, "finite values, got 6 NaN"),
        (BIAS, np.array([np.inf, 0, 0, 0, 0, -np.inf], np.float32), None, "got 2 NaN or infinite"),
        (BIAS, None, np.ones(6, bool), "no mask (this parameter is never pruned)"),
        (
            GAPS,
            None,
            np.ones((6, 6, 3, 3), np.uint8),
            "mask: expected bool [6, 6, 3, 3], got uint8",
        ),
        (GAPS, None, np.ones((6, 54), bool), "got bool [6, 54]"),
        (GAPS, _pruned_value(), None, "0.0 where the mask prunes, got 308 other values"),
    ],
)
def test_what_is_wrong_is_named(name: str, weight: Any, mask: Any, says: str) -> None:
    with pytest.raises(TicketError) as caught:
        _changed(name, weight, mask)
    assert str(caught.value).startswith(name)
    assert says in str(caught.value)


def test_names_are_exact() -> None:
    ticket = sound_ticket()
    weights = dict(ticket.weights)
    del weights[DENSE]
    with pytest.raises(
        TicketError, match=r"tensors: expected an entry 'init_conv\.weight', got none"
    ):
        dataclasses.replace(ticket, weights=weights)
    with pytest.raises(TicketError, match="tensors: expected 160 known entries, got also 'more'"):
        dataclasses.replace(ticket, weights={**ticket.weights, "more": np.zeros(1)})
    with pytest.raises(TicketError, match="masks: expected names of parameters, got 'more'"):
        dataclasses.replace(ticket, masks={**ticket.masks, "more": np.ones(1, bool)})


def test_nothing_can_be_changed() -> None:
    ticket = sound_ticket()
    for array in (*ticket.weights.values(), *ticket.masks.values()):
        assert not array.flags.writeable
    with pytest.raises(TypeError):
        ticket.weights["x"] = 1  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        ticket.weights = {}  # type: ignore[misc]


def test_the_caller_keeps_their_own_arrays() -> None:
    mine = np.zeros(6, np.float32)
    frozen_view = mine.view()
    frozen_view.setflags(write=False)
    for given in (mine, frozen_view):
        ticket = _changed(BIAS, given)
        mine[:] = 5
        assert not ticket.weights[BIAS].any()
        mine[:] = 0
    assert mine.flags.writeable


def test_pruned_minus_zero_and_full_masks_are_normalised() -> None:
    ticket = sound_ticket()
    weight = np.where(ticket.masks[GAPS], ticket.weights[GAPS], np.float32(-0.0))
    assert np.signbit(weight).sum() > 300
    assert _changed(GAPS, weight).equals(ticket)
    full = _changed(GAPS, np.ones((6, 6, 3, 3), np.float32), np.ones((6, 6, 3, 3), bool))
    assert GAPS not in full.masks
    assert full.mask(GAPS).all()
    assert full.survivors(GAPS) == 324


def test_a_surviving_minus_zero_is_kept() -> None:
    ticket = sound_ticket()
    weight = ticket.weights[GAPS].copy()
    where = np.flatnonzero(ticket.masks[GAPS])[0]
    weight.flat[where] = -0.0
    zero = weight.copy()
    zero.flat[where] = 0.0
    assert np.signbit(_changed(GAPS, weight).weights[GAPS].flat[where])
    assert not _changed(GAPS, weight).equals(_changed(GAPS, zero))


def test_equals_sees_every_part() -> None:
    ticket = sound_ticket()
    other = ticket.weights[DENSE].copy()
    other.flat[3] = np.nextafter(other.flat[3], np.float32(9))
    assert ticket.equals(_changed(DENSE, ticket.weights[DENSE].copy()))
    assert not ticket.equals(_changed(DENSE, other))
    for field in ("diffusion", "provenance"):
        changes: dict[str, Any] = {"timesteps": 7} if field == "diffusion" else {"seed": 9}
        part = dataclasses.replace(getattr(ticket, field), **changes)
        assert not ticket.equals(dataclasses.replace(ticket, **{field: part}))
    more = ticket.masks[GAPS].copy()
    more.flat[np.flatnonzero(~more)[0]] = True  # one more survivor, of value 0.0
    assert not ticket.equals(_changed(GAPS, mask=more))


def test_density_counts_prunable_weights_only() -> None:
    ticket = sound_ticket()
    prunable = [p.name for p in ticket.parameters() if p.prunable]
    total = sum(ticket.weights[name].size for name in prunable)
    kept = sum(int(ticket.masks[name].sum()) for name in prunable)
    assert ticket.density() == kept / total
    assert ticket.sparsity == 1 - kept / total
    assert ticket.density(GAPS) == 16 / 324
    assert ticket.density(BIAS) == 1.0
    assert synthetic_ticket(TINY, 0.0).density() == 1.0


def test_rounding_to_float16() -> None:
    ticket = sound_ticket()
    rounded = ticket.rounded_to_float16()
    for name, weight in rounded.weights.items():
        np.testing.assert_array_equal(weight, ticket.weights[name].astype(np.float16))
        assert weight.dtype == np.float32
    assert rounded.masks.keys() == ticket.masks.keys()
    assert rounded.rounded_to_float16().equals(rounded)
    tiny = ticket.weights[GAPS] * np.float32(1e-20)
    assert _changed(GAPS, tiny).rounded_to_float16().survivors(GAPS) == 16
    with pytest.raises(TicketError, match=r"init_conv.bias: expected magnitudes below 65520"):
        _changed(BIAS, np.full(6, -65520, np.float32)).rounded_to_float16()


def test_too_large_an_architecture_is_refused_at_once() -> None:
    huge = UNetConfig(16_384, (1, 1), channels=1, image_size=8, groups=1)
    with pytest.raises(TicketError, match=f"architecture: expected at most {MAX_PARAMETERS}"):
        synthetic_ticket(huge, 0.9)
