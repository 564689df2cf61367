"""Every damaged file gets one clear error, and nothing in it is ever run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from damage import DAMAGES, SAYS
from damage_base import replaced, sound_file, sound_pickle, sound_safetensors, sound_ticket
from damage_pickle import PWNED

from sparse_ddpm.errors import TicketError
from sparse_ddpm.ticket import load_ticket


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_gets_one_clear_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "damaged.pt"
    DAMAGES[name](path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TicketError) as caught:
        load_ticket(path)
    message = str(caught.value)
    assert type(caught.value) is TicketError
    assert message.startswith(f"{path}: ")
    assert SAYS[name] in message.removeprefix(f"{path}: ")
    assert "expected" in message
    assert "got" in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 500
    assert sorted(tmp_path.iterdir()) == before
    assert not (tmp_path / PWNED).exists()


def test_there_are_enough_kinds_and_the_sound_file_is_sound(tmp_path: Path) -> None:
    assert len(DAMAGES) >= 40
    for name, data in (("a", sound_file()), ("b", sound_safetensors())):
        (tmp_path / name).write_bytes(data)
        assert load_ticket(tmp_path / name).equals(sound_ticket())


@pytest.mark.parametrize("make", [sound_file, sound_safetensors])
def test_random_flips_are_caught_or_give_a_valid_ticket(make, tmp_path: Path) -> None:
    """The zip has CRCs over all that counts, so there a flip is an error or harmless."""
    sound, path = make(), tmp_path / "flipped"
    rng = np.random.default_rng(0)
    for _ in range(100):
        data = bytearray(sound)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            ticket = load_ticket(path)
        except TicketError:
            continue
        assert make is sound_safetensors or ticket.equals(sound_ticket())


def test_a_pickle_of_random_bytes_is_caught_or_gives_a_valid_ticket(tmp_path: Path) -> None:
    """Behind correct CRCs, so that the interpreter itself meets the noise."""
    sound, path = sound_pickle(), tmp_path / "noise"
    rng = np.random.default_rng(2)
    opcodes = np.frombuffer(b"(}])N\x88KMJGXqhtueasccRQ\x85\x86.b0", np.uint8)
    for _ in range(200):
        data = bytearray(sound)
        for at in rng.integers(len(data), size=rng.integers(1, 4)):
            data[at] = rng.choice(opcodes) if rng.random() < 0.5 else rng.integers(256)
        path.write_bytes(replaced("archive/data.pkl", bytes(data)))
        try:
            load_ticket(path)
        except TicketError as error:
            assert len(str(error)) < len(str(path)) + 500  # noqa: PT017


@pytest.mark.parametrize("make", [sound_file, sound_safetensors])
def test_random_cuts_are_always_caught(make, tmp_path: Path) -> None:
    sound, path = make(), tmp_path / "cut"
    for size in np.random.default_rng(1).integers(0, len(sound), 40):
        path.write_bytes(sound[:size])
        with pytest.raises(TicketError, match="cut"):
            load_ticket(path)
