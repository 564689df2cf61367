"""A run that is killed and started again ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lottery_tiny import CHOSEN, TINY, outputs, write_mnist

pytest.importorskip("torch", reason="the trainer needs torch")

from sparse_ddpm.errors import ConfigError, SparseDDPMError
from sparse_ddpm.lottery.files import locked
from sparse_ddpm.lottery.session import train
from sparse_ddpm.ticket.config import PRESETS


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_mnist(tmp_path_factory.mktemp("mnist"))


def run(out: Path, spec: str, *, resume: bool = True, **changes: Any) -> list[dict[str, Any]]:
    chosen = {**CHOSEN, "data": spec, **changes}
    return train(out, chosen, resume=resume, steps_per_checkpoint=3, quiet=True)


def differing(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    return [name for name in one.keys() | two.keys() if one.get(name) != two.get(name)]


@pytest.mark.slow
def test_sigkill_at_random_moments(tmp_path: Path, spec: str) -> None:
    script = Path(__file__).with_name("lottery_kill.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), spec, "10"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5, "too few children were killed before they were done"
    undisturbed = outputs(tmp_path / "undisturbed")
    assert {"ticket.pt", "ticket.safetensors", "metrics.jsonl"} <= undisturbed.keys()
    for index in range(10):
        assert differing(outputs(tmp_path / f"moment-{index}"), undisturbed) == []


def test_what_a_kill_leaves_before_any_rename_can_be_finished(
    tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is copied before each rename: what a kill at that moment would leave."""
    replace = os.replace
    whole, left = tmp_path / "whole", []

    def copying(source: Path, target: Path) -> None:
        left.append(tmp_path / f"left-{len(left)}")
        shutil.copytree(whole, left[-1])
        replace(source, target)

    changes = {"rounds": 2, "dense_steps": 5, "steps": 4, "rewind": "late:4"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", copying)
        run(whole, spec, **changes)
    wanted = outputs(whole)
    # The settings; a checkpoint per round and what is rewound to; five files per round; tickets.
    assert len(left) >= 1 + (3 + 1) + 3 * 5 + 2
    for index, folder in enumerate(left):
        run(folder, spec, **changes)
        assert differing(outputs(folder), wanted) == [], f"killed before rename {index}"


def test_done_is_done(tmp_path: Path, spec: str) -> None:
    first = run(tmp_path, spec)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.pt")}
    assert run(tmp_path, spec) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.pt")} == before
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_resume_needs_no_setting_and_refuses_another(tmp_path: Path, spec: str) -> None:
    run(tmp_path, spec)
    before = outputs(tmp_path)
    train(tmp_path, {}, resume=True, quiet=True)
    with pytest.raises(ConfigError, match=r"--resume: lr: expected 0\.003 as the run began, got 0"):
        run(tmp_path, spec, lr=0.5)
    with pytest.raises(ConfigError, match=r"--resume: threads: expected 1 as the run began, got 2"):
        run(tmp_path, spec, threads=2)
    with pytest.raises(ConfigError, match=r"--resume: flip: expected False as the run .* got True"):
        run(tmp_path, spec, flip=True)
    assert differing(outputs(tmp_path), before) == []


def test_a_run_is_not_begun_twice(tmp_path: Path, spec: str) -> None:
    run(tmp_path, spec, resume=False, rounds=0)
    with pytest.raises(ConfigError, match=r"expected no run there, or --resume, got a run"):
        run(tmp_path, spec, resume=False, rounds=0)


def test_a_new_run_needs_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data: expected SPEC for a new run, got none"):
        train(tmp_path, {}, resume=True, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_two_trainers_do_not_share_a_folder(tmp_path: Path, spec: str) -> None:
    with locked(tmp_path), pytest.raises(ConfigError, match="no other trainer at work"):
        run(tmp_path, spec)


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path) -> None:
    chosen = {**CHOSEN, "data": f"mnist:{tmp_path / 'nowhere'}"}
    with pytest.raises(SparseDDPMError, match="nowhere"):
        train(tmp_path / "run", chosen)
    assert list(tmp_path.iterdir()) == []
    kept = tmp_path / "kept"
    kept.mkdir()
    with pytest.raises(SparseDDPMError, match="nowhere"):
        train(kept, chosen)
    assert list(tmp_path.iterdir()) == [kept]


def test_damaged_state_is_named(tmp_path: Path, spec: str) -> None:
    run(tmp_path, spec, rounds=1)
    (tmp_path / "round-01" / "metrics.json").unlink()
    (tmp_path / "round-01" / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match=r"checkpoint\.pt: expected a file torch can read"):
        run(tmp_path, spec, rounds=1)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: expected a JSON object"):
        run(tmp_path, spec, rounds=1)
    (tmp_path / "config.json").write_text(json.dumps({"version": 99, "settings": {}}))
    with pytest.raises(ConfigError, match=r"config\.json: expected settings, version 1"):
        run(tmp_path, spec, rounds=1)
