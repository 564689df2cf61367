"""Whole runs in patterns, with permutation, gradual masks, distillation and every control."""

from __future__ import annotations

import json
import os
import shutil
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")

from sparse_ddpm.cli import train as command
from sparse_ddpm.cli.main import main
from sparse_ddpm.errors import ConfigError
from sparse_ddpm.lottery import run as lottery_run
from sparse_ddpm.lottery.controls import control_steps, narrow_settings
from sparse_ddpm.lottery.gradual import mask_updates
from sparse_ddpm.lottery.patterns import pattern_of, whole_units
from sparse_ddpm.lottery.permutation import channel_spaces, permuted
from sparse_ddpm.lottery.pruning import (
    dense_masks,
    density_after,
    density_of,
    prune,
    survivors,
)
from sparse_ddpm.lottery.session import train
from sparse_ddpm.lottery.settings import Settings
from sparse_ddpm.lottery.training import (
    Gradual,
    Trained,
    effective_arrays,
    masked_model,
    train_round,
)
from sparse_ddpm.model.diffusion import Diffusion
from sparse_ddpm.sampling.schedule import alphas_cumprod
from sparse_ddpm.ticket import Ticket, load_ticket, save_ticket, unet_parameters
from sparse_ddpm.ticket.config import PRESETS, Pattern
from sparse_ddpm.ticket.synthetic import synthetic_ticket
from tests.lottery_tiny import CHOSEN, TINY, outputs, write_mnist

SHORT: dict[str, Any] = {"dense_steps": 3, "steps": 4, "rounds": 1, "sparsity": 0.8}
VECTOR = Pattern(4, 1)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_mnist(tmp_path_factory.mktemp("mnist"))


def run(out: Path, spec: str, *, chosen: dict[str, Any] | None = None, **more: Any) -> list[Any]:
    return train(out, {**CHOSEN, "data": spec, **(chosen or {})}, quiet=True, **more)


def check_units(ticket: Ticket, pattern: Pattern) -> None:
    for p in unet_parameters(TINY):
        if p.prunable:
            assert whole_units(ticket.mask(p.name), pattern_of(p, pattern)), p.name


def test_patterns_hold_in_every_round_and_control(tmp_path: Path, spec: str) -> None:
    chosen = {**SHORT, "rounds": 2, "pattern": "vector:4", "allocation": "lamp"}
    metrics = run(tmp_path, spec, chosen=chosen, controls=["random-mask", "reinit"])
    tickets = [
        load_ticket(tmp_path / unit / "ticket.pt")
        for unit in ("round-01", "round-02", "control-random-mask", "control-reinit")
    ]
    for ticket in tickets:
        check_units(ticket, VECTOR)
        assert ticket.provenance.pattern == "vector:4"
        assert ticket.provenance.allocation == "lamp"
    _, last, random, reinit = tickets
    assert 0.8 <= last.sparsity < 0.82
    assert metrics[2]["density"] == metrics[3]["density"] == metrics[4]["density"]
    for name, mask in last.masks.items():
        assert np.array_equal(reinit.mask(name), mask), name
        assert random.mask(name).sum() == mask.sum(), name
    assert any(not np.array_equal(random.mask(n), m) for n, m in last.masks.items())
    assert random.provenance.command.endswith("--control random-mask")


def test_inspect_shows_the_pattern(
    tmp_path: Path, spec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, spec, chosen={**SHORT, "pattern": "block:2x4", "store": "float16"})
    assert main(["inspect", str(tmp_path / "ticket.pt")]) == 0
    assert "pattern block:2x4" in capsys.readouterr().out


@pytest.mark.parametrize("rewind", ["init", "lr", "late:2"])
def test_permuted_runs_begin_with_the_same_function(
    tmp_path: Path, spec: str, rewind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    ends: list[Trained] = []
    original = lottery_run.train_round

    def watching(*given: Any, **more: Any) -> Trained:
        starts.append({n: w.numpy().copy() for n, w in given[3].items()})
        masks.append(given[4])
        ends.append(original(*given, **more))
        return ends[-1]

    monkeypatch.setattr(lottery_run, "train_round", watching)
    chosen = {**SHORT, "rounds": 2, "pattern": "vector:4", "permute": True, "rewind": rewind}
    run(tmp_path, spec, chosen=chosen, controls=["random-mask"])
    orders = json.loads((tmp_path / "round-00" / "orders.json").read_text())
    assert orders
    spaces = channel_spaces(TINY)
    found = {name: np.array(order) for name, order in orders.items()}
    before = {
        "init": lambda: starts[0],
        "lr": lambda: _arrays(tmp_path / "round-00" / "weights.pt", "weights"),
        "late:2": lambda: _arrays(tmp_path / "round-00" / "rewind.pt"),
    }[rewind]()
    moved = permuted(before, spaces, found)
    assert any(not np.array_equal(before[n], w) for n, w in moved.items())
    assert all(np.array_equal(starts[1][n], w) for n, w in moved.items())
    then = {n: w.numpy() for n, w in ends[1].weights.items()} if rewind == "lr" else moved
    assert all(np.array_equal(starts[2][n], w) for n, w in then.items())
    assert all(np.array_equal(starts[-1][n], w) for n, w in starts[1].items())
    check_units(load_ticket(tmp_path / "ticket.pt"), VECTOR)
    dense = masked_model(Settings(**{**CHOSEN, "data": spec}), ends[0].weights, {})
    effective = permuted(effective_arrays(dense), spaces, found)
    density = density_after(1, fraction=0.5, sparsity=0.8, rounds=2)
    wanted = prune(effective, dense_masks(TINY), density, architecture=TINY, pattern=VECTOR)
    different = sum(int((masks[1][n] ^ m).sum()) for n, m in wanted.items())
    # Standardised before or after the permutation, weights differ in the last bit.
    assert different <= 0.001 * sum(m.size for m in wanted.values())


def _arrays(path: Path, key: str | None = None) -> dict[str, Any]:
    content = torch.load(path, weights_only=True)
    return {n: w.numpy() for n, w in (content if key is None else content[key]).items()}


def test_the_cubic_schedule() -> None:
    updates = mask_updates(2000, Fraction(1, 20), 0.75)
    assert len(updates) == 50
    assert list(updates) == sorted(updates)
    assert max(updates) == 1500
    assert updates[1500] == Fraction(1, 20)
    assert float(updates[750]) == pytest.approx(1 - 0.95 * (1 - 0.5**3))
    densities = list(updates.values())
    assert all(a > b for a, b in pairwise(densities))
    assert mask_updates(1, Fraction(1, 9), 0.75) == {0: Fraction(1, 9)}
    assert mask_updates(2, Fraction(1, 9), 0.75) == {1: Fraction(1, 9)}
    assert list(mask_updates(7, Fraction(1, 9), 0.75)) == [1, 2, 3, 4, 5]
    assert mask_updates(7, Fraction(1, 9), 0.0) == {0: Fraction(1, 9)}
    assert list(mask_updates(10, Fraction(1, 9), 0.3)) == [1, 2, 3]
    assert list(mask_updates(3, Fraction(1, 9), 0.999)) == [1, 2]


def test_gradual_masks_stay_exact_on_the_way() -> None:
    settings = Settings(**{**CHOSEN, "data": "mnist:x", "weight_decay": 0.1, "optimizer": "adamw"})
    images = torch.randint(256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    seen: list[float] = []

    def pruning(effective: Any, masks: Any, density: Fraction) -> Any:
        seen.append(density_of(masks))
        if len(seen) > 1:
            for name, mask in masks.items():
                assert (effective[name][~mask] == 0).all(), name
        return prune(effective, masks, density, architecture=TINY)

    gradual = Gradual(mask_updates(12, Fraction(1, 10), 0.75), pruning)
    trained = train_round(
        settings,
        Diffusion(settings.diffusion, alphas_cumprod(settings.diffusion)),
        images.to(torch.uint8),
        lottery_run.initial_weights(settings),
        dense_masks(TINY),
        1,
        12,
        gradual=gradual,
    )
    assert seen[0] == 1.0
    assert len(seen) == 9
    assert all(a > b for a, b in pairwise(seen))
    for name, mask in trained.masks.items():
        assert mask.sum() == survivors(mask.size, Fraction(1, 10))
        for weights in (trained.weights, trained.average):
            pruned = weights[name].numpy()[~mask]
            assert (pruned == 0).all(), name
            assert not np.signbit(pruned).any(), name


def test_gradual_is_one_round_from_a_dense_start(tmp_path: Path, spec: str) -> None:
    chosen = {**SHORT, "gradual": True, "steps": 9, "rewind": "lr", "pattern": "vector:4"}
    chosen["ramp"] = 0.5
    metrics = run(tmp_path, spec, chosen=chosen, controls=["reinit", "random-mask"])
    assert [m["density"] for m in metrics][1:] == [metrics[1]["density"]] * 3
    ticket = load_ticket(tmp_path / "ticket.pt")
    assert 0.8 <= ticket.sparsity < 0.82
    check_units(ticket, VECTOR)
    assert "--rounds 1" in ticket.provenance.command
    assert "--gradual --ramp 0.5" in ticket.provenance.command
    assert not narrow_settings(Settings(data="mnist:x", **chosen), "narrow:0.5").gradual


def test_similarity_takes_two_tickets_and_keeps_what_they_say(tmp_path: Path, spec: str) -> None:
    one, two = (synthetic_ticket(TINY, 0.8, seed=seed) for seed in (0, 1))
    masks = {n: one.mask(n) if n.startswith("down.0") else m for n, m in two.masks.items()}
    weights = {n: np.where(masks.get(n, True), w, np.float32(0)) for n, w in two.weights.items()}
    paths = [tmp_path / "one.pt", tmp_path / "two.pt"]
    save_ticket(one, paths[0])
    save_ticket(Ticket(TINY, two.diffusion, two.provenance, weights, masks), paths[1])
    chosen = {**SHORT, "allocation": "similarity"}
    out = tmp_path / "run"
    run(out, spec, chosen=chosen, similar_to=paths)
    ticket = load_ticket(out / "ticket.pt")
    near = ticket.density("down.0.block1.conv1.weight")
    assert near > 2 * ticket.density("mid.block1.conv1.weight")
    assert 0.8 <= ticket.sparsity < 0.82
    before = outputs(out)
    train(out, {}, resume=True, similar_to=paths, quiet=True)
    with pytest.raises(ConfigError, match="--resume: similar-to: expected tickets as the run"):
        train(out, {}, resume=True, similar_to=[paths[0], paths[0]], quiet=True)
    for path in paths:
        path.unlink()
    shutil.rmtree(out / "round-01")
    train(out, {}, resume=True, quiet=True)
    assert outputs(out) == before


def test_latency_keeps_its_costs(tmp_path: Path, spec: str) -> None:
    chosen = {**SHORT, "allocation": "latency", "pattern": "vector:4"}
    run(tmp_path, spec, chosen=chosen, costs=command.weight_costs)
    layers = json.loads((tmp_path / "config.json").read_text())["layers"]
    assert layers == command.weight_costs(TINY, VECTOR, Fraction(1, 5))
    before = outputs(tmp_path)
    (tmp_path / "round-01" / "metrics.json").unlink()
    train(tmp_path, {}, resume=True, costs=lambda *_: {}, quiet=True)
    assert outputs(tmp_path) == before


@pytest.mark.parametrize(
    ("chosen", "more", "message"),
    [
        ({"allocation": "similarity"}, {}, "similar-to: expected two tickets .* got none"),
        ({"allocation": "latency"}, {}, "allocation latency: number of .* got None"),
        ({}, {"similar_to": [Path("a"), Path("b")]}, "expected similarity with --similar-to"),
        ({}, {"controls": ["narrow:2"]}, "control: expected one of .*narrow:FRACTION, got narrow:"),
        ({}, {"controls": ["narrow:0.9"]}, "width in multiples of 8: expected fewer than 8 chan"),
    ],
)
def test_wishes_that_cannot_be(
    tmp_path: Path, spec: str, chosen: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, spec, chosen={**SHORT, **chosen}, **more)
    assert not (tmp_path / "config.json").exists()


def test_narrow_control_is_dense_and_as_long_as_the_ticket(tmp_path: Path, spec: str) -> None:
    chosen = {**SHORT, "dim": 24, "rewind": "lr", "pattern": "vector:4", "permute": True}
    metrics = run(tmp_path, spec, chosen=chosen, controls=["narrow:0.5"])
    assert metrics[-1]["control"] == "narrow:0.5"
    assert metrics[-1]["density"] == 1.0
    assert metrics[-1]["steps"] == 3 + 4
    narrow = load_ticket(tmp_path / "control-narrow-0.5" / "ticket.pt")
    assert narrow.architecture.dim == 16
    assert not narrow.masks
    assert narrow.provenance.rewinding == "control narrow:0.5"
    assert load_ticket(tmp_path / "ticket.pt").architecture.dim == 24
    assert not (tmp_path / "control-narrow-0.5" / "weights.pt").exists()


def test_steps_of_controls() -> None:
    for rewind, narrow in (("init", 9), ("late:2", 11), ("lr", 5 + 6 + 9)):
        settings = Settings(
            "mnist:x", rounds=2, dense_steps=5, steps=6, final_steps=9, rewind=rewind
        )
        assert control_steps(settings, "reinit") == 9
        assert control_steps(settings, "narrow:0.5") == narrow


def test_distillation_learns_what_the_dense_average_says(tmp_path: Path, spec: str) -> None:
    base = {**SHORT, "loss": "l2"}
    for weight in (0.0, 0.5, 1.0):
        run(tmp_path / str(weight), spec, chosen={**base, "distil": weight})
    tickets = [load_ticket(tmp_path / str(weight) / "ticket.pt") for weight in (0.0, 0.5, 1.0)]
    dense = [load_ticket(tmp_path / str(w) / "round-00" / "ticket.pt") for w in (0.0, 1.0)]
    assert dense[0].weights.keys() == dense[1].weights.keys()
    assert all(np.array_equal(dense[0].weights[n], w) for n, w in dense[1].weights.items())
    name = "mid.block1.conv1.weight"
    assert len({ticket.weights[name].tobytes() for ticket in tickets}) == 3


def test_a_network_that_is_its_own_teacher_has_nothing_to_learn() -> None:
    settings = Settings(**{**CHOSEN, "data": "mnist:x", "distil": 1.0, "loss": "l2"})
    weights = lottery_run.initial_weights(settings)
    teacher = masked_model(settings, weights, {}).eval().requires_grad_(False)
    trained = train_round(
        settings,
        Diffusion(settings.diffusion, alphas_cumprod(settings.diffusion)),
        torch.zeros(8, 1, 8, 8, dtype=torch.uint8),
        weights,
        dense_masks(TINY),
        1,
        3,
        teacher=teacher,
    )
    assert trained.loss == 0.0
    assert all(torch.equal(trained.weights[n], w) for n, w in weights.items())


def test_gradual_means_one_round_on_the_command_line(tmp_path: Path, spec: str) -> None:
    words = ["train", "--data", spec, "--out", str(tmp_path), "--preset", "small", "--gradual"]
    words += ["--image-size", "4", "--timesteps", "3", "--sparsity", "0.9", "--dense-steps", "1"]
    words += ["--steps", "2", "--batch-size", "2", "--threads", "1", "--dim", "8", "--permute"]
    words += ["--pattern", "vector:4", "--allocation", "latency", "--distil", "0.5"]
    assert main([*words, "--control", "random-mask"]) == 0
    settings = json.loads((tmp_path / "config.json").read_text())["settings"]
    assert settings["rounds"] == 1
    assert main([*words, "--resume"]) == 0
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--control", "narrow"])
    assert stopped.value.code == 2


MODES: dict[str, dict[str, Any]] = {
    "gradual": {"gradual": True, "steps": 7, "rewind": "lr", "pattern": "vector:4"},
    "everything": {
        "gradual": True,
        "steps": 5,
        "rewind": "late:2",
        "pattern": "block:2x2",
        "permute": True,
        "distil": 0.5,
        "allocation": "lamp",
    },
    "rounds": {"rounds": 2, "steps": 3, "rewind": "lr", "pattern": "vector:4", "permute": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_what_a_kill_leaves_in_each_mode_can_be_finished(
    tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """As in test_lottery_resume.py: the folder is copied before renames, then finished."""
    replace = os.replace
    whole, left = tmp_path / "whole", []

    def copying(source: Path, target: Path) -> None:
        # Where these modes differ from plain rounds.
        if Path(target).name in ("checkpoint.pt", "orders.json"):
            left.append(tmp_path / f"left-{len(left)}")
            shutil.copytree(whole, left[-1])
        replace(source, target)

    more = {
        "chosen": {**SHORT, **MODES[mode]},
        "controls": ["random-mask"] if mode == "rounds" else [],
        "resume": True,
        "steps_per_checkpoint": 2,
    }
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", copying)
        run(whole, spec, **more)
    wanted = outputs(whole)
    assert len(left) >= 4
    for index, folder in enumerate(left):
        run(folder, spec, **more)
        found = outputs(folder)
        assert found.keys() == wanted.keys()
        different = [name for name in wanted if found[name] != wanted[name]]
        assert different == [], f"killed before rename {index}"
