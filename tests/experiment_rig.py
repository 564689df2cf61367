"""Small rows for benchmarks/experiments.py, and what stands for the commands that take long."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sparse_ddpm.cli.main import main
from sparse_ddpm.ticket import UNetConfig, save_ticket, synthetic_ticket

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = UNetConfig(dim=8, dim_mults=(1, 2), channels=1, image_size=8, groups=2, heads=1, dim_head=4)
MODULES = (
    *("experiment_rows", "experiment_lanes", "experiments", "tickets_numbers", "tickets_pictures"),
    *("tickets_findings", "tickets_cost", "tickets_sections", "tickets_page"),
)

COMMON = """
seeds = [0]
budget = 30
[train]
rewind = "lr"
dense-steps = 10
rounds = 2
steps = 5
final-steps = 15
batch-size = 4

[evaluate]
sampler = "dpm++"
steps = 7
"""
ROWS = {
    "dense": 'title = "dense"\ntables = ["matching", "allocation", "pattern"]\nseeds = [0, 1]\n'
    "[train]\nrounds = 0\ndense-steps = 30\n",
    "element-90": 'title = "90 %"\ntables = ["matching", "allocation", "pattern"]\nseeds = [0, 1]\n'
    "[train]\nsparsity = 0.9\n",
    "element-99": 'title = "99 %"\ntables = ["matching", "pattern"]\n[train]\nsparsity = 0.99\n',
    "reinit-90": 'title = "90 %, reinit"\ntables = ["control"]\nof = "element-90"\n'
    'control = "reinit"\n',
    "similarity-90": 'title = "similarity"\ntables = ["allocation", "pattern"]\n'
    'remedy = ["element-90", "allocation"]\n[train]\nsparsity = 0.9\nallocation = "similarity"\n'
    'similar-to = ["ticket:element-90/0", "ticket:element-90/1"]\n',
    "order-90": 'title = "90 %, another order"\ntables = ["similarity"]\n[train]\nsparsity = 0.9\n'
    "data-seed = 7\n",
    "pair": 'title = "two seeds"\ntables = ["similarity"]\n'
    'pair = ["ticket:element-90/0", "ticket:element-90/1"]\n',
}


class Fake:
    """Stands for the commands that take long: trains nothing, and judges by the sparsity."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.commands: list[list[str]] = []
        self.failing = ""
        self.capsys, self.lock = capsys, threading.Lock()

    def __call__(self, _runner: Any, words: list[str]) -> dict[str, Any]:
        from sparse_ddpm.errors import SparseDDPMError

        self.commands.append(words)
        if words[0] == self.failing:
            raise SparseDDPMError(f"{words[0]} ended with status 1.")
        if words[0] in ("inspect", "compare"):
            with self.lock:
                self.capsys.readouterr()
                assert main(words) == 0
                found: dict[str, Any] = json.loads(self.capsys.readouterr().out)
            return found
        made: dict[str, Any] = getattr(self, words[0])(words)
        return {"schema": 1, **made}

    def train(self, words: list[str]) -> dict[str, Any]:
        options = dict(pairwise(words))
        sparsity, out = float(options.get("--sparsity", 0.0)), Path(options["--out"])
        control = options.get("--control")
        folder = out / f"control-{control.replace(':', '-')}" if control else out
        dense = out / "round-00"
        dense.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        (dense / "metrics.json").touch()
        (dense / "orders.json").touch()
        ticket = synthetic_ticket(TINY, sparsity, seed=int(options["--seed"]))
        save_ticket(ticket, folder / "ticket.pt")
        controls = [{"control": control, "held_out_loss": 0.2}] if control else []
        rounds = [{"control": None, "round": 0, "held_out_loss": 0.1}]
        return {"out": str(out), "rounds": rounds, "controls": controls}

    def evaluate(self, words: list[str]) -> dict[str, Any]:
        names = {"element-90": 0.9, "element-99": 0.99, "control-re": 1.0}
        gone = names.get(Path(words[1]).parent.name[:10], 0.0)
        about = {"judge": {"sha256": "ab"}, "real_distance": 0.25, "reference": words[3]}
        options = dict(pairwise(words))
        about |= {"sampler": options["--sampler"], "steps": int(options["--steps"])}
        return {**about, "samples": int(words[5]), "distance": 2.0 + gone**9, "precision": 0.5}

    def bench(self, words: list[str]) -> dict[str, Any]:
        assert {"--dense", "float32"} <= set(words)
        width = 0.25 if "control-narrow" in words[1] else 1.0
        results = [
            {"engine": engine, "batch": batch, "step_ms": width * ms * batch, "step_peak_mib": ms}
            for engine, ms in (("sparse-ddpm", 1.5), ("sparse-ddpm-dense", 3.0))
            for batch in (1, 16)
        ]
        about = {"threads": 2, "device": "auto", "machine": {"cpu": "a processor"}}
        return {**about, "ticket": words[1], "results": results}


def kept(where: list[str], name: str) -> dict[str, Any]:
    path = Path(where[where.index("--results") + 1]) / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def page(modules: dict[str, ModuleType], where: list[str], tmp_path: Path, *more: str) -> str:
    path = tmp_path / "docs" / "tickets.md"
    path.parent.mkdir(exist_ok=True)
    assert modules["tickets_page"].main([*where[2:6], "-o", str(path), *more]) == 0
    return path.read_text(encoding="utf-8")
