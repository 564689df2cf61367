"""Runs that begin with a ticket: under its mask, or pruning on from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")


from sparse_ddpm.cli.main import main
from sparse_ddpm.convert import prune_ticket
from sparse_ddpm.errors import ConfigError
from sparse_ddpm.lottery import training
from sparse_ddpm.lottery.patterns import whole_units
from sparse_ddpm.lottery.session import train
from sparse_ddpm.ticket import (
    DiffusionConfig,
    Pattern,
    Ticket,
    UNet2DConfig,
    load_ticket,
    save_ticket,
)
from sparse_ddpm.ticket.synthetic import synthetic_ticket
from sparse_ddpm.verify import verify
from tests.lottery_tiny import TINY, outputs, write_mnist

CHOSEN: dict[str, Any] = {
    "batch_size": 4,
    "lr": 3e-3,
    "threads": 1,
    "device": "cpu",
    "precision": "float32",
    "steps": 6,
}
NETWORKS = {
    "surviving": TINY,
    "full": dataclasses.replace(TINY, weight_standardization="full"),
    "as of version 2": dataclasses.replace(
        TINY,
        weight_standardization="none",
        block_norm="rms",
        attention_norm="rms",
        attention_values="sum",
        full_attention=(1,),
        memory=3,
    ),
    "of diffusers": UNet2DConfig(
        channels=1,
        image_size=8,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        time_dim=16,
        head_dim=4,
        norm_num_groups=2,
        attn_norm_num_groups=2,
    ),
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_mnist(tmp_path_factory.mktemp("mnist"))


def a_ticket(kind: str = "full", sparsity: float = 0.6, pattern: str = "vector:4") -> Ticket:
    diffusion = DiffusionConfig(timesteps=5, schedule="cosine", objective="v", clip=False)
    ticket = synthetic_ticket(NETWORKS[kind], sparsity, pattern, seed=2, diffusion=diffusion)
    origin = dataclasses.replace(
        ticket.provenance, command="sparse-ddpm train --out A", round=3, initial_sha256="ab" * 32
    )
    return dataclasses.replace(ticket, provenance=origin)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_ticket(a_ticket(), tmp_path / "begin.pt")
    return tmp_path / "begin.pt"


def run(out: Path, spec: str, path: Path | None, **changes: Any) -> list[dict[str, Any]]:
    resume = changes.pop("resume", False)
    chosen = {**CHOSEN, "data": spec, **changes}
    return train(out, chosen, begin=path, resume=resume, steps_per_checkpoint=2, quiet=True)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_mask_stays_and_the_weights_learn(kind: str, tmp_path: Path, spec: str) -> None:
    begun = a_ticket(kind)
    save_ticket(begun, tmp_path / "begin.pt")
    (metrics,) = run(tmp_path / "run", spec, tmp_path / "begin.pt")
    assert metrics["steps"] == 6
    ended = load_ticket(tmp_path / "run" / "ticket.pt")
    assert ended.architecture == begun.architecture
    assert ended.diffusion == begun.diffusion
    assert ended.masks.keys() == begun.masks.keys()
    for name, mask in begun.masks.items():
        assert np.array_equal(ended.masks[name], mask)
    moved = [n for n, w in begun.weights.items() if not np.array_equal(w, ended.weights[n])]
    assert len(moved) == len(begun.weights)
    assert verify(ended, device="cpu", threads=1, steps=5).passed


def test_provenance_is_kept(path: Path, tmp_path: Path, spec: str) -> None:
    run(tmp_path / "run", spec, path, rounds=1, sparsity=0.8)
    origin = load_ticket(tmp_path / "run" / "ticket.pt").provenance
    assert origin.round == 3 + 1
    assert origin.initial_sha256 == "ab" * 32
    assert origin.pattern == "vector:4"
    assert origin.command.startswith(
        "sparse-ddpm train --out A; sparse-ddpm train --from TICKET --data mnist:DIR --out DIR "
        "--rounds 1 --sparsity 0.8 --pattern vector:4 --rewind lr --dense-steps 6 --steps 6 "
        "--batch-size 4 --lr 0.003 --precision float32 --device cpu --threads 1"
    )


def test_rounds_prune_on_from_the_tickets_mask(path: Path, tmp_path: Path, spec: str) -> None:
    metrics = run(tmp_path / "run", spec, path, rounds=2, sparsity=0.9, dense_steps=3)
    begun = load_ticket(path)
    densities = [m["density"] for m in metrics]
    assert densities[0] == pytest.approx(begun.density())
    assert densities[2] <= 0.1
    assert densities[1] == pytest.approx((densities[0] * 0.1) ** 0.5, rel=0.02)
    assert [m["steps"] for m in metrics] == [3, 6, 6]
    masks = dict(begun.masks)
    for round_ in range(3):
        ticket = load_ticket(tmp_path / "run" / f"round-0{round_}" / "ticket.pt")
        for name, mask in ticket.masks.items():
            assert not (mask & ~masks[name]).any()
            if mask.ndim == 4:
                assert whole_units(mask, Pattern(4, 1))
        masks = dict(ticket.masks)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 1, "prune_fraction": 0.5, "rewind": "init", "distil": 0.5},
        {"rounds": 1, "sparsity": 0.9, "gradual": True, "rewind": "late:2"},
    ],
)
def test_other_modes_begin_there_too(
    path: Path, tmp_path: Path, spec: str, changes: dict[str, Any]
) -> None:
    metrics = run(tmp_path / "run", spec, path, **changes)
    begun = load_ticket(path)
    wanted = 0.1 if "sparsity" in changes else 0.5 * begun.density()
    assert metrics[-1]["density"] == pytest.approx(wanted, rel=0.05)
    ended = load_ticket(tmp_path / "run" / "ticket.pt")
    for name, mask in ended.masks.items():
        assert not (mask & ~begun.mask(name)).any()


class StopError(Exception):
    """Instead of a kill."""


def test_a_run_that_was_stopped_goes_on_without_the_ticket(
    path: Path, tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"rounds": 1, "sparsity": 0.8}
    run(tmp_path / "whole", spec, path, **changes)
    original, calls = training._keep, [0]

    def keep(*arguments: Any) -> None:
        original(*arguments)
        calls[0] += 1
        if calls[0] == 3:
            raise StopError

    monkeypatch.setattr(training, "_keep", keep)
    with pytest.raises(StopError):
        run(tmp_path / "parts", spec, path, **changes)
    path.rename(tmp_path / "elsewhere.pt")
    train(tmp_path / "parts", {}, resume=True, steps_per_checkpoint=2, quiet=True)
    assert outputs(tmp_path / "parts") == outputs(tmp_path / "whole")
    # Named again it has to be the same one.
    run(tmp_path / "parts", spec, tmp_path / "elsewhere.pt", resume=True, **changes)
    save_ticket(a_ticket(sparsity=0.7), path)
    with pytest.raises(ConfigError, match=r"from: expected the ticket it began with"):
        run(tmp_path / "parts", spec, path, resume=True, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dim": 16}, "--dim: expected none with --from, whose ticket says it, got 16"),
        ({"schedule": "linear"}, "--schedule: expected none with --from"),
        ({"timesteps": 7}, "--timesteps: expected none with --from"),
        ({"permute": True}, "--permute: expected none with --from"),
        ({"rounds": 1, "sparsity": 0.5}, r"sparsity: expected more than the 0.6\d+ of the ticket"),
    ],
)
def test_what_the_ticket_decides_cannot_be_chosen(
    path: Path, tmp_path: Path, spec: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        run(tmp_path / "run", spec, path, **changes)


def test_a_narrow_control_has_nothing_to_begin_with(path: Path, tmp_path: Path, spec: str) -> None:
    chosen = {**CHOSEN, "data": spec, "rounds": 1, "sparsity": 0.8}
    with pytest.raises(ConfigError, match=r"control narrow:0\.5: expected a run without --from"):
        train(tmp_path / "run", chosen, begin=path, controls=["narrow:0.5"], quiet=True)


def test_the_command(path: Path, tmp_path: Path, spec: str) -> None:
    words = ["train", "--from", str(path), "--data", spec, "--out", str(tmp_path / "run")]
    words += ["--steps", "2", "--batch-size", "4", "--threads", "1", "--precision", "float32"]
    assert main(words) == 0
    assert load_ticket(tmp_path / "run" / "ticket.pt").sparsity == load_ticket(path).sparsity


@pytest.mark.parametrize("allocation", ["uniform", "global", "erk", "lamp"])
@pytest.mark.parametrize("pattern", ["element", "vector:4", "block:4x2"])
def test_one_shot(allocation: str, pattern: str) -> None:
    begun = a_ticket(sparsity=0.0)
    pruned = prune_ticket(begun, 0.9, pattern=pattern, allocation=allocation)
    assert 0.9 <= pruned.sparsity < 0.93
    assert pruned.provenance.sparsity == pruned.sparsity
    assert (pruned.provenance.pattern, pruned.provenance.allocation) == (pattern, allocation)
    unit = Pattern.parse(pattern)
    for name, weight in pruned.weights.items():
        mask = pruned.mask(name)
        assert np.array_equal(weight[mask], begun.weights[name][mask])
        if mask.ndim == 4 and name in pruned.masks:
            assert whole_units(mask, unit)
    more = prune_ticket(pruned, 0.95, pattern=pattern, allocation=allocation)
    assert all(not (m & ~pruned.mask(n)).any() for n, m in more.masks.items())
    assert verify(pruned, device="cpu", threads=1, steps=3).passed


def test_one_shot_keeps_the_largest_of_each_layer() -> None:
    begun = a_ticket("as of version 2", sparsity=0.0)
    pruned = prune_ticket(begun, 0.75)
    for name, mask in pruned.masks.items():
        sizes = np.abs(begun.weights[name])
        assert sizes[mask].min() >= sizes[~mask].max()


@pytest.mark.parametrize(
    ("sparsity", "chosen", "says"),
    [
        (1.0, {}, "prune: expected a number between 0 and 1, got 1.0"),
        (0.5, {}, r"prune: expected more than the 60\.\d+% that are gone, got 50.00%"),
        (0.9, {"allocation": "latency"}, "allocation: expected one of uniform, global, erk, lamp"),
        (0.9, {"pattern": "row"}, "pattern: expected element, vector:G or block:RxC"),
    ],
)
def test_one_shot_refuses(sparsity: float, chosen: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        prune_ticket(a_ticket(), sparsity, **chosen)
