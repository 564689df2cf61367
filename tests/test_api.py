"""The public sampler: same images whatever the batch, the threads and the instruction set."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparse_ddpm
from sparse_ddpm import Sampler
from sparse_ddpm.errors import ConfigError, EngineError, TicketError
from sparse_ddpm.ticket import (
    DiffusionConfig,
    Ticket,
    UNetConfig,
    save_ticket,
    synthetic_ticket,
)

TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=3, image_size=8, groups=4, heads=2, dim_head=4)


@pytest.fixture(scope="module")
def ticket() -> Ticket:
    return synthetic_ticket(TINY, 0.8, seed=5, diffusion=DiffusionConfig(objective="v"))


def test_images_are_uint8_in_nhwc(ticket: Ticket) -> None:
    with Sampler(ticket) as sampler:
        images = sampler.sample(3, steps=4)
    assert images.shape == (3, 8, 8, 3)
    assert images.dtype == np.uint8
    assert images.std() > 0


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++"])
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_and_threads_change_nothing(ticket: Ticket, name: str, threads: int) -> None:
    with Sampler(ticket, threads=1) as one, Sampler(ticket, threads=threads) as other:
        wanted = one.sample_float(16, steps=6, sampler=name, seed=4, batch_size=16)
        for batch in (1, 7):
            got = other.sample_float(16, steps=6, sampler=name, seed=4, batch_size=batch)
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
        fewer = other.sample_float(5, steps=6, sampler=name, seed=4)
        np.testing.assert_allclose(fewer, wanted[:5], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++"])
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_instruction_sets_change_nothing(
    ticket: Ticket, name: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparse_ddpm_kernels import available_isas

    if isa not in available_isas():
        pytest.skip(f"this machine has no {isa}")
    with Sampler(ticket, threads=1) as widest:
        wanted = widest.sample_float(7, steps=6, sampler=name, seed=4)
    monkeypatch.setenv("SPARSE_DDPM_ISA", isa)
    with Sampler(ticket, threads=2) as forced:
        got = forced.sample_float(7, steps=6, sampler=name, seed=4)
        assert forced.engine(7).description == f"cpu {isa}, 2 threads"
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_engines_agree(ticket: Ticket) -> None:
    with Sampler(ticket, device="cpu") as fast, Sampler(ticket, device="numpy") as slow:
        got = fast.sample_float(2, steps=10, seed=1)
        np.testing.assert_allclose(got, slow.sample_float(2, steps=10, seed=1), rtol=0, atol=1e-4)


def test_seeds_and_images_differ(ticket: Ticket) -> None:
    with Sampler(ticket) as sampler:
        first, second = sampler.sample_float(2, steps=4, seed=0)
        other = sampler.sample_float(1, steps=4, seed=1)[0]
        again = sampler.sample_float(2, steps=4, seed=0)[0]
    assert np.abs(first - second).max() > 0.01
    assert np.abs(first - other).max() > 0.01
    np.testing.assert_array_equal(first, again)


def test_load_takes_a_path(ticket: Ticket, tmp_path: Path) -> None:
    for name in ("t.pt", "t.safetensors"):
        save_ticket(ticket, tmp_path / name)
    a = Sampler.load(tmp_path / "t.pt").sample(2, steps=3)
    b = Sampler.load(str(tmp_path / "t.safetensors")).sample(2, steps=3)
    np.testing.assert_array_equal(a, b)


def test_no_path_is_the_shipped_ticket() -> None:
    with Sampler.load() as sampler:
        assert sampler.ticket.sparsity >= 0.95
        assert sampler.ticket.provenance.dataset
        images = sampler.sample(1, steps=2)
    assert images.shape == (1, *sampler.program.input_shape[1:], 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n: expected an integer of at least 1, got 0"),
        ({"n": 2.0}, r"n: expected an integer of at least 1, got 2\.0"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"steps": 0}, "steps: expected"),
        ({"steps": 1001}, "steps: expected"),
        ({"sampler": "euler"}, "sampler: expected"),
        ({"sampler": "dpm++", "eta": 1.0}, "eta: expected"),
    ],
)
def test_bad_settings_are_named(ticket: Ticket, settings: dict[str, Any], message: str) -> None:
    with Sampler(ticket) as sampler, pytest.raises(ConfigError, match=message):
        sampler.sample(**settings)


def test_bad_devices_and_files_are_named(ticket: Ticket, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="device: expected"):
        Sampler(ticket, device="abacus").sample(1)
    with pytest.raises(TicketError, match=r"nothing\.pt"):
        Sampler.load(tmp_path / "nothing.pt")


def test_sampling_needs_no_torch(ticket: Ticket, tmp_path: Path) -> None:
    save_ticket(ticket, tmp_path / "t.pt")
    code = (
        "import sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'onnx', 'scipy', 'diffusers'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Wall())\n"
        "from sparse_ddpm import Sampler\n"
        f"assert Sampler.load({str(tmp_path / 't.pt')!r}).sample(1, steps=2).shape[0] == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_public_names_exist() -> None:
    absent = {"UNet2D"} if importlib.util.find_spec("diffusers") is None else set()
    for name in set(sparse_ddpm.__all__) - absent:
        assert getattr(sparse_ddpm, name) is not None
    assert set(dir(sparse_ddpm)) == set(sparse_ddpm.__all__)
    with pytest.raises(AttributeError, match="nobody"):
        sparse_ddpm.nobody  # noqa: B018
