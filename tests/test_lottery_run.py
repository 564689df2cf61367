"""Whole runs on a tiny network: what each round begins with, and what it leaves."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")

from PIL import Image

from sparse_ddpm.cli.main import main
from sparse_ddpm.errors import ConfigError
from sparse_ddpm.lottery import run as lottery_run
from sparse_ddpm.lottery.pruning import density_after, survivors
from sparse_ddpm.lottery.session import train
from sparse_ddpm.lottery.settings import Settings
from sparse_ddpm.ticket import Ticket, load_ticket, unet_parameters
from sparse_ddpm.ticket.config import PRESETS
from tests.lottery_tiny import CHOSEN, TINY, write_mnist


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_mnist(tmp_path_factory.mktemp("mnist"))


class Watch:
    """Records what every unit of a run was begun with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[dict[str, Any]] = []
        original = lottery_run.train_round

        def watching(settings: Any, diffusion: Any, images: Any, *rest: Any, **more: Any) -> Any:
            weights, masks, round_, steps = rest
            result = original(settings, diffusion, images, *rest, **more)
            self.calls.append(
                {
                    "start": {n: w.clone() for n, w in weights.items()},
                    "masks": masks,
                    "round": round_,
                    "steps": steps,
                    "trained": result,
                }
            )
            return result

        monkeypatch.setattr(lottery_run, "train_round", watching)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def run(out: Path, spec: str, controls: tuple[str, ...] = (), **changes: Any) -> list[Any]:
    return train(out, {**CHOSEN, "data": spec, **changes}, controls=controls, quiet=True)


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def test_one_beginning_and_two_orders_of_the_data(tmp_path: Path, spec: str, watch: Watch) -> None:
    for number, chosen in enumerate((None, CHOSEN.get("seed", 0), 5)):
        run(tmp_path / str(number), spec, rounds=0, data_seed=chosen)
    plain, named, other = watch.calls
    assert same(plain["start"], other["start"])
    assert same(plain["trained"].weights, named["trained"].weights)
    assert not same(plain["trained"].weights, other["trained"].weights)


def test_init_rewinds_to_the_initial_weights(tmp_path: Path, spec: str, watch: Watch) -> None:
    run(tmp_path, spec, rewind="init")
    zero, one, two = watch.calls
    assert same(zero["start"], one["start"])
    assert same(zero["start"], two["start"])
    assert not same(zero["start"], zero["trained"].weights)


def test_late_rewinds_to_the_weights_after_k_dense_steps(
    tmp_path: Path, spec: str, watch: Watch
) -> None:
    run(tmp_path / "late", spec, rewind="late:2")
    run(tmp_path / "short", spec, rewind="init", rounds=0, dense_steps=2)
    _, one, two, short = watch.calls
    assert same(one["start"], short["trained"].weights)
    assert same(two["start"], short["trained"].weights)


def test_lr_keeps_the_weights(tmp_path: Path, spec: str, watch: Watch) -> None:
    run(tmp_path, spec, rewind="lr")
    zero, one, two = watch.calls
    assert same(one["start"], zero["trained"].weights)
    assert same(two["start"], one["trained"].weights)


def test_controls(tmp_path: Path, spec: str, watch: Watch) -> None:
    metrics = run(tmp_path, spec, ("reinit", "random-mask"), rewind="init", allocation="global")
    zero, _, two, reinit, random = watch.calls
    assert [call["steps"] for call in watch.calls] == [6, 4, 4, 4, 4]
    assert reinit["round"] == random["round"] == 2
    assert all(np.array_equal(reinit["masks"][n], m) for n, m in two["masks"].items())
    # Norms begin at ones and zeros whatever the seed.
    for name, weight in zero["start"].items():
        assert torch.equal(reinit["start"][name], weight) == (".norm" in name or "_norm" in name)
    assert same(random["start"], zero["start"])
    for name, mask in two["masks"].items():
        assert random["masks"][name].sum() == mask.sum()
    assert any(not np.array_equal(random["masks"][n], m) for n, m in two["masks"].items())
    assert [m["control"] for m in metrics] == [None, None, None, "reinit", "random-mask"]
    densities = [m["density"] for m in metrics]
    assert densities[2] == densities[3] == densities[4]
    control = load_ticket(tmp_path / "control-reinit" / "ticket.pt")
    assert control.provenance.rewinding == "control reinit"


def test_random_mask_under_lr_begins_with_the_dense_weights(
    tmp_path: Path, spec: str, watch: Watch
) -> None:
    run(tmp_path, spec, ("random-mask",), rewind="lr")
    assert same(watch.calls[-1]["start"], watch.calls[0]["trained"].weights)


def test_controls_can_be_added_to_a_finished_run(tmp_path: Path, spec: str) -> None:
    before = run(tmp_path, spec)
    ticket = (tmp_path / "ticket.pt").read_bytes()
    after = train(tmp_path, {}, resume=True, controls=["reinit"], quiet=True)
    assert after[:-1] == before
    assert after[-1]["control"] == "reinit"
    assert (tmp_path / "ticket.pt").read_bytes() == ticket


def test_controls_need_masks(tmp_path: Path, spec: str) -> None:
    with pytest.raises(ConfigError, match="control: expected a run with pruning rounds"):
        run(tmp_path, spec, ("reinit",), rounds=0)
    with pytest.raises(ConfigError, match=r"control: expected one of reinit, .* got x"):
        run(tmp_path, spec, ("x",))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_tickets_are_masked_exactly(tmp_path: Path, spec: str, allocation: str) -> None:
    metrics = run(tmp_path, spec, allocation=allocation)
    tickets = [load_ticket(tmp_path / f"round-{r:02d}" / "ticket.pt") for r in range(3)]
    prunable = [p for p in unet_parameters(TINY) if p.prunable]
    total = sum(int(np.prod(p.shape)) for p in prunable)
    for round_, ticket in enumerate(tickets):
        density = density_after(round_, fraction=0.5, sparsity=None, rounds=2)
        if allocation == "uniform":
            for p in prunable:
                assert ticket.survivors(p.name) == survivors(int(np.prod(p.shape)), density)
        kept = sum(ticket.survivors(p.name) for p in prunable)
        if allocation == "global":
            assert kept == survivors(total, density)
        assert metrics[round_]["density"] == kept / total
        assert metrics[round_]["sparsity"] == ticket.provenance.sparsity
        assert not set(ticket.masks) - {p.name for p in prunable}
        for name, weight in ticket.weights.items():
            assert ((weight == 0) == ~ticket.mask(name)).all() or name.endswith("bias"), name
    for earlier, later in pairwise(tickets):
        for name, mask in later.masks.items():
            assert not (mask & ~earlier.mask(name)).any()


def test_what_a_run_leaves(tmp_path: Path, spec: str) -> None:
    metrics = run(tmp_path, spec, sparsity=0.9)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "round-00",
        "round-01",
        "round-02",
        "ticket.pt",
        "ticket.safetensors",
    ]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == metrics
    assert [m["round"] for m in metrics] == [0, 1, 2]
    for round_ in range(3):
        with Image.open(tmp_path / f"round-{round_:02d}" / "samples.png") as picture:
            assert picture.size == (12 * (4 * 10 + 2), 12 * (4 * 10 + 2))
    ticket = load_ticket(tmp_path / "ticket.pt")
    assert ticket.equals(load_ticket(tmp_path / "ticket.safetensors"))
    assert ticket.equals(load_ticket(tmp_path / "round-02" / "ticket.pt"))
    assert 0.9 <= ticket.sparsity < 0.92
    provenance = ticket.provenance
    assert (provenance.dataset, provenance.round, provenance.rewinding) == ("mnist", 2, "init")
    assert provenance.metrics == {
        "train_loss": metrics[2]["train_loss"],
        "held_out_loss": metrics[2]["held_out_loss"],
    }
    settings = Settings(**{**CHOSEN, "data": spec, "sparsity": 0.9})
    weights = lottery_run.initial_weights(settings)
    assert provenance.initial_sha256 == lottery_run.sha256_of(settings, weights)
    assert str(tmp_path.parent) not in provenance.command


def test_two_runs_are_one(tmp_path: Path, spec: str) -> None:
    for name in ("one", "two"):
        run(tmp_path / name, spec, rounds=1, precision="bf16")
    run(tmp_path / "three", spec, rounds=1, precision="bf16", seed=1)
    one, two, three = (
        (tmp_path / name / "ticket.pt").read_bytes() for name in ("one", "two", "three")
    )
    assert one == two
    assert one != three


def test_float16_is_rounded_in_the_ticket_itself(tmp_path: Path, spec: str) -> None:
    run(tmp_path, spec, rounds=1, store="float16")
    exact = load_ticket(tmp_path / "round-01" / "ticket.pt")
    ticket: Ticket = load_ticket(tmp_path / "ticket.pt")
    assert ticket.equals(load_ticket(tmp_path / "ticket.safetensors"))
    for name, weight in ticket.weights.items():
        assert np.array_equal(weight, exact.weights[name].astype(np.float16).astype(np.float32))
    assert set(ticket.masks) == set(exact.masks)
    sizes = [(tmp_path / p / "ticket.pt").stat().st_size for p in ("", "round-01")]
    assert sizes[0] < sizes[1]


def test_command_line(tmp_path: Path, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", spec, "--out", str(tmp_path / "run"), "--preset", "small"]
    words += ["--image-size", "4", "--timesteps", "3", "--rounds", "1", "--sparsity", "0.9"]
    words += ["--dense-steps", "1", "--steps", "1", "--batch-size", "2", "--threads", "1"]
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["schema"] == 1
    assert [r["round"] for r in result["rounds"]] == [0, 1]
    assert result["controls"] == []
    assert Path(result["ticket"]) == tmp_path / "run" / "ticket.pt"
    # in whole vectors of eight, so not 10.00 %
    assert re.search(r"round 1/1, density (9\.9|10\.0)", captured.err)
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "expected no run there, or --resume, got a run" in captured.err
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert "held out" in capsys.readouterr().out
    assert main(["train", "--resume", "--out", str(tmp_path / "run"), "--seed", "7"]) == 1
    assert "--resume: seed: expected 0 as the run began, got 7" in capsys.readouterr().err
    assert main(["train", "--data", "mnist:nowhere", "--out", str(tmp_path / "other")]) == 1
    assert "nowhere" in capsys.readouterr().err
    for wrong in (["--rewind", "sometimes"], ["--pattern", "vector"]):
        assert main(["train", "--data", spec, "--out", str(tmp_path / "no"), *wrong]) == 1
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--prune-fraction", "0.5"])
    assert stopped.value.code == 2
