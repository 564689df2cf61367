"""Which kernels a round trains with, and that both find the same ticket."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")

from sparse_ddpm.errors import ConfigError
from sparse_ddpm.lottery import kernels, training
from sparse_ddpm.lottery.pruning import dense_masks
from sparse_ddpm.lottery.run import initial_weights
from sparse_ddpm.lottery.session import resolve
from sparse_ddpm.lottery.session import train as train_run
from sparse_ddpm.lottery.settings import Settings
from sparse_ddpm.lottery.training import Gradual, Trained, train_round
from sparse_ddpm.model.diffusion import Diffusion
from sparse_ddpm.model.sparse import missing
from sparse_ddpm.sampling.schedule import alphas_cumprod
from sparse_ddpm.ticket.config import PRESETS
from tests.lottery_tiny import CHOSEN, TINY, outputs, write_mnist

needs_library = pytest.mark.skipif(bool(missing()), reason=missing())
IMAGES = torch.from_numpy(
    np.random.default_rng(0).integers(256, size=(30, 1, 8, 8), dtype=np.uint8)
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)


def make(**changes: Any) -> Settings:
    return Settings(**{**CHOSEN, "data": "mnist:x", "timesteps": 100, **changes})


def masks_at(density: float) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {n: rng.random(m.shape) < density for n, m in dense_masks(TINY).items()}


def train(settings: Settings, steps: int, density: float = 0.2, **how: Any) -> Trained:
    diffusion = Diffusion(settings.diffusion, alphas_cumprod(settings.diffusion))
    start = initial_weights(settings)
    return train_round(settings, diffusion, IMAGES, start, masks_at(density), 1, steps, **how)


@needs_library
@pytest.mark.parametrize("changes", [{}, {"weight_standardization": "none", "distil": 0.5}])
def test_both_kernels_train_alike(changes: dict[str, Any]) -> None:
    """The same steps to rounding: what follows from a difference grows, so few of them."""
    teacher = training.masked_model(make(), initial_weights(make()), {}) if changes else None
    one, two = (
        train(make(kernels=name, **changes), 5, teacher=teacher) for name in ("torch", "sparse")
    )
    assert (one.kernels, two.kernels) == ("torch", "sparse")
    assert two.loss == pytest.approx(one.loss, rel=1e-4)
    for name in masks_at(0.2):
        # A bias before a norm has a gradient of rounding errors, which Adam makes large: not those.
        close = torch.isclose(two.weights[name], one.weights[name], rtol=1e-3, atol=1e-4)
        assert close.float().mean() > 0.95, name
    for name, mask in masks_at(0.2).items():
        assert not two.weights[name][~torch.from_numpy(mask)].any()


@needs_library
def test_the_loss_falls() -> None:
    losses: dict[str, list[float]] = {"torch": [], "sparse": []}

    class Kept:
        def __init__(self, name: str) -> None:
            self.name = name

        def resumed(self, step: int) -> None:
            raise AssertionError

        def __call__(self, step: int, loss: float) -> None:
            losses[self.name].append(loss)

    for name in losses:
        train(make(kernels=name, batch_size=17), 60, progress=Kept(name))
    for found in losses.values():
        assert np.mean(found[-3:]) < 0.8 * found[0]
    assert np.mean(losses["sparse"][-3:]) == pytest.approx(np.mean(losses["torch"][-3:]), rel=0.05)


@needs_library
def test_masks_that_grow_sparser_change_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BREAK_EVEN", {"float32": (0.4, 0.4)})
    steps: list[str] = []
    chosen = training.step_function

    def noted(*given: Any) -> Any:
        found = chosen(*given)
        steps.append(found[0])
        return found

    monkeypatch.setattr(training, "step_function", noted)
    gradual = Gradual(
        {2: Fraction(1, 2), 4: Fraction(1, 5)}, lambda _, masks, density: masks_at(float(density))
    )
    done = train(make(), 6, density=1.0, gradual=gradual)
    assert steps == ["torch", "torch", "sparse"]
    assert done.kernels == "sparse"


def test_auto_goes_by_density_pattern_and_precision() -> None:
    few, many = kernels.BREAK_EVEN["bf16"]
    assert 0.0 < few <= many < 1.0
    element = make(precision="bf16")
    vector = make(precision="bf16", pattern="vector:16")
    assert kernels.is_sparse(element, few)
    assert not kernels.is_sparse(element, few + 0.001)
    assert kernels.is_sparse(vector, many)
    assert not kernels.is_sparse(vector, 1.0)
    assert kernels.is_sparse(make(kernels="sparse"), 1.0)
    assert not kernels.is_sparse(make(kernels="torch"), 0.0)


def test_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSE_DDPM_TRAIN_LIBRARY", "/nowhere/library.so")
    assert resolve(make()).kernels == "torch"
    with pytest.raises(
        ConfigError, match=r"kernels: expected torch or auto here, got 'sparse' \(s"
    ):
        resolve(make(kernels="sparse"))
    monkeypatch.delenv("SPARSE_DDPM_TRAIN_LIBRARY")
    full = make(weight_standardization="full")
    assert resolve(full).kernels == "torch"
    with pytest.raises(ConfigError, match="over pruned weights"):
        resolve(dataclasses.replace(full, kernels="sparse"))


def test_runs_that_began_without_the_setting_go_on_with_torch() -> None:
    stored = resolve(make()).to_json()
    del stored["kernels"]
    assert Settings.from_json(stored).kernels == "torch"
    del stored["lr"]
    with pytest.raises(ConfigError, match="expected the setting 'lr'"):
        Settings.from_json(stored)


@needs_library
def test_a_run_that_is_stopped_ends_with_the_same_bytes(tmp_path: Path) -> None:
    chosen = {**CHOSEN, "data": write_mnist(tmp_path / "mnist"), "kernels": "sparse"}
    chosen |= {"rounds": 1, "steps": 9}

    class StopError(Exception):
        pass

    def run(out: Path) -> None:
        train_run(out, chosen, resume=True, steps_per_checkpoint=2, quiet=True)

    run(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        counted = iter(range(100))
        keep = training._keep

        def stop(*given: Any) -> None:
            keep(*given)
            if next(counted) == 5:
                raise StopError

        patch.setattr(training, "_keep", stop)
        with pytest.raises(StopError):
            run(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "round-01" / "checkpoint.pt").exists()
    run(tmp_path / "stopped")
    assert outputs(tmp_path / "stopped") == outputs(tmp_path / "whole")
    metrics = json.loads((tmp_path / "whole" / "round-01" / "metrics.json").read_text())
    assert metrics["kernels"] == "sparse"
