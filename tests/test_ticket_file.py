"""Ticket files: both formats, with and without torch, the same bytes always, all or nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage_base import BITS, DENSE, GAPS, TINY, sound_ticket
from safetensors import safe_open

from sparse_ddpm.errors import TicketError
from sparse_ddpm.ticket import (
    PRESETS,
    DiffusionConfig,
    Provenance,
    Ticket,
    load_ticket,
    save_ticket,
    shipped_ticket_path,
    synthetic_ticket,
)
from sparse_ddpm.ticket.content import FORMAT, to_content

SUFFIXES = [".pt", ".safetensors"]


def _plain(value: Any) -> Any:
    """Tensors and arrays as (dtype, shape, bytes), so that contents compare with ==."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.shape, value.tobytes()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return type(value), value


@pytest.fixture(params=[0.0, 0.5, 0.95, 0.999])
def ticket(request: pytest.FixtureRequest) -> Ticket:
    return synthetic_ticket(TINY, request.param, seed=3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(ticket: Ticket, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"ticket{suffix}"
    for each in (ticket, ticket.rounded_to_float16()):
        save_ticket(each, path)
        assert load_ticket(path).equals(each)
        assert load_ticket(str(path)).equals(each)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("pattern", ["vector:3", "block:2x4"])
def test_round_trip_of_patterns_and_odd_provenance(
    suffix: str, pattern: str, tmp_path: Path
) -> None:
    ticket = synthetic_ticket(
        TINY, 0.8, pattern, diffusion=DiffusionConfig(7, "cosine", "v", False)
    )
    provenance = Provenance(
        dataset='MNIST "28" — ünïcode \n\0 \U0001f600',
        seed=2**64 - 1,
        round=70_000,
        pattern=pattern,
        sparsity=0.1 + 0.2,
        command="x" * 10_000,
        metrics={"loss": 1e-300, "": -0.0, "fréchet": 1e300, "one": 1.0},
    )
    ticket = dataclasses.replace(ticket, provenance=provenance)
    save_ticket(ticket, tmp_path / f"ticket{suffix}")
    again = load_ticket(tmp_path / f"ticket{suffix}")
    assert again.equals(ticket)
    assert again.diffusion == DiffusionConfig(7, "cosine", "v", False)
    assert again.provenance == provenance


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tensors_with_no_survivor_or_nothing_but_zeros(suffix: str, tmp_path: Path) -> None:
    base = sound_ticket()
    weights, masks = dict(base.weights), dict(base.masks)
    weights[GAPS], masks[GAPS] = np.zeros_like(weights[GAPS]), np.zeros_like(masks[GAPS])
    weights[BITS] = np.zeros_like(weights[BITS])
    ticket = dataclasses.replace(base, weights=weights, masks=masks)
    save_ticket(ticket, tmp_path / f"ticket{suffix}")
    again = load_ticket(tmp_path / f"ticket{suffix}")
    assert again.equals(ticket)
    assert again.survivors(GAPS) == 0
    assert again.survivors(BITS) == 162


def test_the_content_counts_and_not_the_name(tmp_path: Path) -> None:
    for suffix, other in (SUFFIXES, SUFFIXES[::-1]):
        save_ticket(sound_ticket(), tmp_path / f"a{suffix}")
        os.replace(tmp_path / f"a{suffix}", tmp_path / f"b{other}")
        assert load_ticket(tmp_path / f"b{other}").equals(sound_ticket())


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_the_same_content(ticket: Ticket, mmap: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for each in (ticket, ticket.rounded_to_float16()):
        path = tmp_path / f"{len(os.listdir(tmp_path))}.pt"
        save_ticket(each, path)
        content = torch.load(path, weights_only=True, mmap=mmap)
        assert type(content) is dict
        assert _plain(content) == _plain(to_content(each))


@pytest.mark.parametrize("apart", [False, True])
def test_what_torch_saves_is_read(ticket: Ticket, apart: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tensors(item) for key, item in value.items()}
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    if apart:  # one storage for each tensor, as anybody's own code would save it
        torch.save(tensors(to_content(ticket)), tmp_path / "other name.pt")
    else:
        save_ticket(ticket, tmp_path / "ours.pt")
        content = torch.load(tmp_path / "ours.pt", weights_only=True)
        torch.save(content, tmp_path / "other name.pt")
    assert load_ticket(tmp_path / "other name.pt").equals(ticket)


def test_the_layout_of_the_zip(tmp_path: Path) -> None:
    path = tmp_path / "ticket.pt"
    save_ticket(sound_ticket(), path)
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[0] == "archive/data.pkl"
        assert archive.read("archive/byteorder") == b"little"
        assert archive.read("archive/version") == b"3\n"
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            name_length, extra_length = data[info.header_offset + 26], data[info.header_offset + 28]
            assert (info.header_offset + 30 + name_length + extra_length) % 64 == 0
    assert set(names) == {
        f"archive/{name}" for name in ("data.pkl", "byteorder", "version", "data/0", "data/1")
    }


def test_the_safetensors_package_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "ticket.safetensors"
    save_ticket(sound_ticket(), path)
    with safe_open(path, "np") as file:
        assert list(file.metadata()) == [FORMAT]
        dense = file.get_tensor(f"{DENSE}/values")
        assert f"{GAPS}/gaps" in file.keys()  # noqa: SIM118  (not a dict)
    np.testing.assert_array_equal(dense, sound_ticket().weights[DENSE])


_WITHOUT_TORCH = """
import hashlib, sys
from pathlib import Path

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "diffusers"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
from sparse_ddpm.ticket import load_ticket, save_ticket
ticket = load_ticket(sys.argv[1])
for suffix in (".pt", ".safetensors"):
    path = Path(sys.argv[2] + suffix)
    save_ticket(ticket, path)
    assert load_ticket(path).equals(ticket)
    print(hashlib.sha256(path.read_bytes()).hexdigest())
assert "torch" not in sys.modules
"""


def test_the_same_bytes_in_another_process_without_torch(tmp_path: Path) -> None:
    digests = []
    for suffix in SUFFIXES:
        for name in ("one", "two"):
            save_ticket(sound_ticket(), tmp_path / f"{name}{suffix}")
        data = (tmp_path / f"one{suffix}").read_bytes()
        assert data == (tmp_path / f"two{suffix}").read_bytes()
        digests.append(hashlib.sha256(data).hexdigest())
    command = [sys.executable, "-c", _WITHOUT_TORCH]
    for suffix, seed in zip(SUFFIXES, "12", strict=True):
        arguments = [str(tmp_path / f"one{suffix}"), str(tmp_path / f"again{seed}")]
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        done = subprocess.run(
            command + arguments, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == digests


def test_sizes_of_the_small_preset() -> None:
    """Bitmask and gaps keep the promise of the design: 14 % and 9 % of dense at 90 %, and less."""
    from sparse_ddpm.ticket.torch_file import write_torch_file

    ticket = synthetic_ticket(PRESETS["small"], 0.9)
    dense = 4 * sum(weight.size for weight in ticket.weights.values())
    size = len(write_torch_file(to_content(ticket)))
    half = len(write_torch_file(to_content(ticket.rounded_to_float16())))
    assert size < 0.16 * dense
    assert half < 0.095 * dense


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_failed_save_changes_nothing(
    failing: str, before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ticket.pt"
    if before:
        path.write_bytes(before)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(TicketError, match=r"ticket\.pt: .* got No space left on device"):
        save_ticket(sound_ticket(), path)
    assert os.listdir(tmp_path) == (["ticket.pt"] if before else [])
    assert not before or path.read_bytes() == before


def test_an_interrupted_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_ticket(sound_ticket(), tmp_path / "ticket.pt")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ticket.pth", "a name that ends in .pt or .safetensors, got '.pth'"),
        ("ticket", "got ''"),
        ("no such folder/ticket.pt", "No such file or directory"),
        ("folder.pt", "a directory"),
        ("n" * 300 + ".pt", "File name too long"),
    ],
)
def test_targets_that_cannot_be_written(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(TicketError) as caught:
        save_ticket(sound_ticket(), tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert says in str(caught.value)
    assert os.listdir(tmp_path) == ["folder.pt"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"command": "\udcff"}, "provenance.command"),
        ({"metrics": {str(i): 1.0 for i in range(10_001)}}, "provenance.metrics"),
    ],
)
def test_what_could_not_be_read_is_not_written(
    suffix: str, change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    provenance = dataclasses.replace(sound_ticket().provenance, **change)
    ticket = dataclasses.replace(sound_ticket(), provenance=provenance)
    path = tmp_path / f"ticket{suffix}"
    with pytest.raises(TicketError, match=says):
        save_ticket(ticket, path)
    assert os.listdir(tmp_path) == []


def test_a_path_with_a_nul_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(TicketError, match="null"):
        load_ticket("a\0b")


def test_the_shipped_ticket_lies_inside_the_package() -> None:
    path = shipped_ticket_path()
    assert path.name == "mnist.pt"
    assert path.parent.name == "assets"
    assert path.parent.parent.name == "sparse_ddpm"
