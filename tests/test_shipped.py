"""The ticket inside the package, and what the README says of it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sparse_ddpm import Sampler, load_ticket
from sparse_ddpm.cli.main import main
from sparse_ddpm.ticket import PRESETS, shipped_ticket_path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_it_is_small_and_sparse() -> None:
    path = shipped_ticket_path()
    ticket = load_ticket(path)
    assert path.stat().st_size < 400_000
    assert ticket.sparsity >= 0.97
    assert ticket.architecture.image_size == 32
    small = PRESETS["small"]
    assert (ticket.architecture.dim, ticket.architecture.dim_mults) == (small.dim, small.dim_mults)
    assert ticket.provenance.dataset == "mnist"
    assert abs(ticket.provenance.sparsity - ticket.sparsity) < 1e-6


def test_the_readme_tells_how_it_was_trained() -> None:
    # The options alone: the README wraps the line and names folders of its own.
    # A ticket that was trained on from another names both commands.
    origin = load_ticket(shipped_ticket_path()).provenance
    commands = origin.command.split("; ")
    told = README.read_text().replace("\\\n", " ")
    wanted = [_options(command) for command in commands]
    # A default that was left out of the command then.
    wanted[0].add(("--pattern", origin.pattern))
    found = [_options(line) for line in told.splitlines() if "sparse-ddpm train " in line]
    for command, options in zip(commands, wanted, strict=True):
        assert len(options) > 4
        assert any(options <= each for each in found), command


def _options(command: str) -> set[tuple[str, str]]:
    pairs = [pair for pair in pairwise([*command.split(), "--"]) if pair[0].startswith("--")]
    told = [(name, "" if value.startswith("--") else value) for name, value in pairs]
    return {pair for pair in told if pair[0] not in ("--data", "--out", "--from")}


def test_it_passes_verify(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main(["verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["oracle"] == "torch"
    assert found["worst_operation_error"] <= 1e-5
    assert found["image_error"] <= 1e-3


def test_batches_threads_and_instruction_sets_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sparse_ddpm_kernels import available_isas

    with Sampler.load(threads=1) as sampler:
        wanted = sampler.sample_float(7, seed=3, batch_size=7)
    for isa in available_isas():
        monkeypatch.setenv("SPARSE_DDPM_ISA", isa)
        for threads, batch in ((1, 1), (2, 16)):
            with Sampler.load(threads=threads) as sampler:
                got = sampler.sample_float(16 if batch == 16 else 7, seed=3, batch_size=batch)
            np.testing.assert_allclose(got[:7], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "least"), [("float16", 60.0), ("bfloat16", 45.0)])
def test_sixteen_bits_draw_the_same_images(dtype: str, least: float) -> None:
    """Measured over 16 images of 50 steps: float16 76 dB, bfloat16 61 dB."""
    from sparse_ddpm.engine.precision import available_dtypes
    from sparse_ddpm.verify import psnr

    if dtype not in available_dtypes():
        pytest.skip(f"this machine has no {dtype}")
    with Sampler.load(threads=1) as single, Sampler.load(threads=2, dtype=dtype) as half:
        wanted, got = (sampler.sample_float(16, steps=50, seed=2) for sampler in (single, half))
    assert not np.array_equal(got, wanted)
    assert psnr(got, wanted) > least
    assert min(psnr(*pair) for pair in zip(got, wanted, strict=True)) > 40.0


def test_it_draws_white_on_black() -> None:
    with Sampler.load() as sampler:
        images = sampler.sample(16)
    assert images.mean() < 80
    # averaging 2x2 pixels dims thin strokes: 1 in 100 real digits has no pixel above 200 either
    brightest = images.reshape(16, -1).max(axis=1)
    assert (brightest > 128).all()
    assert np.median(brightest) > 240
    # the border of a handwritten digit is empty
    assert np.median(images[:, 0]) < 20
