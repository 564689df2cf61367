"""Iterative magnitude pruning (Frankle & Carbin 2019): rounds of train, prune, rewind.

Every unit of work begins with "its output exists: return", and its output appears in one rename.
Whatever is random is a function of the seed. So a run that is killed anywhere and started again
ends with the files of one that was not.

    OUT/config.json               the settings
    OUT/round-03/metrics.json     written last: with it the round is done
    OUT/round-03/ticket.pt        the masked average
    OUT/round-03/samples.png      drawn from it
    OUT/round-03/weights.pt       raw weights and masks, what the next round begins with
    OUT/round-03/checkpoint.pt    while the round trains
    OUT/round-00/rewind.pt        with late rewinding: the weights after K steps
    OUT/control-reinit/           like a round, trained after the last one
    OUT/metrics.jsonl             the metrics of all units, one a line
    OUT/ticket.pt, ticket.safetensors
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.files import sweep
from sparse_ddpm.lottery import pruning, randomness
from sparse_ddpm.lottery.evaluation import draw, held_out_loss, split
from sparse_ddpm.lottery.files import read_json, write_json, write_text
from sparse_ddpm.lottery.progress import Bar
from sparse_ddpm.lottery.pruning import Masks
from sparse_ddpm.lottery.settings import Settings
from sparse_ddpm.lottery.training import (
    Trained,
    Weights,
    load_torch,
    masked_model,
    save_torch,
    train_round,
)
from sparse_ddpm.model.diffusion import Diffusion
from sparse_ddpm.model.unet import UNet
from sparse_ddpm.pictures import save_grid
from sparse_ddpm.sampling.schedule import alphas_cumprod
from sparse_ddpm.ticket import Ticket, load_ticket, save_ticket
from sparse_ddpm.ticket.config import Pattern, Provenance
from sparse_ddpm.ticket.parameters import unet_parameters

CONTROLS = ("reinit", "random-mask")
"""Trained as the last round is, on the same batches. ``reinit``: its masks on fresh random weights.
``random-mask``: as many weights in each layer at random places, on the weights rewound to (with
``lr``: on the dense ones)."""


def initial_weights(settings: Settings, purpose: str = "weights") -> Weights:
    """Random weights, a function of the seed and the purpose (``weights`` or ``reinit``)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.torch_seed(settings.seed, purpose))
        model = UNet(settings.architecture)
    return {name: p.detach() for name, p in model.named_parameters()}


def sha256_of(settings: Settings, weights: Weights) -> str:
    """Hash of all weights as little-endian float32, in the order of the forward pass."""
    digest = hashlib.sha256()
    for parameter in unet_parameters(settings.architecture):
        digest.update(weights[parameter.name].numpy().astype("<f4").tobytes())
    return digest.hexdigest()


class Run:
    """One run in one folder. ``images``: uint8 ``[N, H, W, C]``; ``settings``: resolved."""

    def __init__(
        self,
        settings: Settings,
        out: Path,
        images: NDArray[np.uint8],
        dataset: str,
        *,
        controls: Sequence[str] = (),
        steps_per_checkpoint: int = 500,
    ) -> None:
        for control in controls:
            if control not in CONTROLS:
                raise ConfigError(expected("control", f"one of {', '.join(CONTROLS)}", control))
        if controls and settings.rounds == 0:
            raise ConfigError(expected("control", "a run with pruning rounds", "rounds=0"))
        self.settings, self.out, self.dataset = settings, out, dataset
        self.controls = tuple(dict.fromkeys(controls))
        self.steps_per_checkpoint = steps_per_checkpoint
        device = torch.device(settings.device)
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        self.train_images, self.held_out = (part.to(device) for part in split(pixels))
        abar = alphas_cumprod(settings.diffusion)
        self.diffusion = Diffusion(settings.diffusion, abar).to(device)
        self.initial = initial_weights(settings)
        self.initial_sha256 = sha256_of(settings, self.initial)

    def execute(self, *, quiet: bool = False) -> list[dict[str, Any]]:
        """Do what is not done yet; return the metrics of all rounds and controls."""
        settings = self.settings
        for folder in (self.out, *self._units()):
            sweep(folder)
        total = sum(settings.steps_of(r) for r in range(settings.rounds + 1))
        total += len(self.controls) * settings.steps_of(settings.rounds)
        with Bar(total, quiet=quiet) as bar:
            for round_ in range(settings.rounds + 1):
                self._round(round_, bar)
            for control in self.controls:
                self._control(control, bar)
        self._finish()
        return self._metrics()

    def _folder(self, round_: int) -> Path:
        return self.out / f"round-{round_:02d}"

    def _units(self) -> list[Path]:
        rounds = [self._folder(r) for r in range(self.settings.rounds + 1)]
        return rounds + [self.out / f"control-{control}" for control in CONTROLS]

    def _metrics(self) -> list[dict[str, Any]]:
        paths = [unit / "metrics.json" for unit in self._units()]
        return [read_json(path) for path in paths if path.exists()]

    def _round(self, round_: int, bar: Bar) -> None:
        folder = self._folder(round_)
        if not (folder / "metrics.json").exists():
            masks = self._masks(round_)
            self._unit(folder, round_, self._start(round_), masks, bar)
        else:
            bar.skip(self.settings.steps_of(round_))
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        if round_ >= 2:
            # Nothing reads it any more: only the dense and the last weights are needed again.
            (self._folder(round_ - 1) / "weights.pt").unlink(missing_ok=True)
        self._write_metrics()

    def _control(self, control: str, bar: Bar) -> None:
        folder = self.out / f"control-{control}"
        last = self.settings.rounds
        if not (folder / "metrics.json").exists():
            masks = self._load(last)[1]
            if control == "reinit":
                start = initial_weights(self.settings, "reinit")
            else:
                # Rewinding the learning rate keeps weights that the real masks chose; the last
                # ones that no mask had a say in are the dense ones.
                masks = pruning.random_masks(masks, self.settings.seed)
                start = self._start(min(last, 1))
            self._unit(folder, last, start, masks, bar, control=control)
        else:
            bar.skip(self.settings.steps_of(last))
        for name in ("checkpoint.pt", "weights.pt"):
            (folder / name).unlink(missing_ok=True)
        self._write_metrics()

    def _load(self, round_: int) -> tuple[Weights, Masks]:
        """Raw weights and masks at the end of a round."""
        path = self._folder(round_) / "weights.pt"
        content = load_torch(path)
        try:
            masks = {name: mask.numpy() for name, mask in content["masks"].items()}
            return content["weights"], masks
        except (AttributeError, KeyError) as error:
            raise ConfigError(expected(str(path), "weights and masks", repr(error))) from error

    def _masks(self, round_: int) -> Masks:
        settings = self.settings
        if round_ == 0:
            return pruning.dense_masks(settings.architecture)
        weights, masks = self._load(round_ - 1)
        model = masked_model(settings, weights, masks)
        effective = {n: w.cpu().numpy() for n, w in model.effective_weights().items()}
        density = pruning.density_after(
            round_,
            fraction=settings.prune_fraction,
            sparsity=settings.sparsity,
            rounds=settings.rounds,
        )
        return pruning.prune(
            effective,
            masks,
            density,
            architecture=settings.architecture,
            allocation=settings.allocation,
            pattern=Pattern.parse(settings.pattern),
        )

    def _start(self, round_: int) -> Weights:
        """The weights that a round begins with, before its masks are applied."""
        if round_ == 0 or self.settings.rewind == "init":
            return self.initial
        if self.settings.rewind == "lr":
            return self._load(round_ - 1)[0]
        weights: Weights = load_torch(self._folder(0) / "rewind.pt")
        return weights

    def _unit(
        self,
        folder: Path,
        round_: int,
        start: Weights,
        masks: Masks,
        bar: Bar,
        *,
        control: str | None = None,
    ) -> None:
        settings = self.settings
        folder.mkdir(exist_ok=True)
        late = settings.late_steps if round_ == 0 and control is None else None
        steps = settings.steps_of(round_)
        density = pruning.density_of(masks)
        bar.begin(f"round {round_}/{settings.rounds}" if control is None else control, density)

        def keep_for_rewinding(weights: Weights) -> None:
            save_torch(weights, folder / "rewind.pt")

        trained = train_round(
            settings,
            self.diffusion,
            self.train_images,
            start,
            masks,
            round_,
            steps,
            checkpoint=folder / "checkpoint.pt",
            steps_per_checkpoint=self.steps_per_checkpoint,
            at_step={} if late is None else {late: keep_for_rewinding},
            progress=bar,
        )
        model = masked_model(settings, trained.average, masks)
        held = held_out_loss(settings, self.diffusion, model, self.held_out)
        ticket = self._ticket(trained, masks, round_, held, control)
        save_ticket(ticket, folder / "ticket.pt")
        save_grid(draw(settings, model), folder / "samples.png")
        content = {
            "weights": trained.weights,
            "masks": {name: torch.from_numpy(mask) for name, mask in masks.items()},
        }
        save_torch(content, folder / "weights.pt")
        write_json(
            folder / "metrics.json",
            {
                "round": round_,
                "control": control,
                "density": density,
                "sparsity": 1.0 - density,
                "steps": steps,
                "train_loss": trained.loss,
                "held_out_loss": held,
                "seconds": round(trained.seconds, 3),
            },
        )

    def _ticket(
        self, trained: Trained, masks: Masks, round_: int, held: float, control: str | None
    ) -> Ticket:
        settings = self.settings
        return Ticket(
            architecture=settings.architecture,
            diffusion=settings.diffusion,
            provenance=Provenance(
                dataset=self.dataset,
                seed=settings.seed,
                round=round_,
                rewinding=settings.rewind if control is None else f"control {control}",
                allocation=settings.allocation,
                pattern=settings.pattern,
                sparsity=1.0 - pruning.density_of(masks),
                initial_sha256=self.initial_sha256,
                command=settings.command(),
                metrics={"train_loss": trained.loss, "held_out_loss": held},
            ),
            weights={name: weight.numpy() for name, weight in trained.average.items()},
            masks=masks,
        )

    def _write_metrics(self) -> None:
        lines = [json.dumps(metrics) + "\n" for metrics in self._metrics()]
        write_text(self.out / "metrics.jsonl", "".join(lines))

    def _finish(self) -> None:
        names = ("ticket.pt", "ticket.safetensors")
        if all((self.out / name).exists() for name in names):
            return
        ticket = load_ticket(self._folder(self.settings.rounds) / "ticket.pt")
        if self.settings.store == "float16":
            ticket = ticket.rounded_to_float16()
        for name in names:
            save_ticket(ticket, self.out / name)
