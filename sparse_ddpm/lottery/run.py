"""Iterative magnitude pruning (Frankle & Carbin 2019): rounds of train, prune, rewind.

Every unit of work begins with "its output exists: return", and its output appears in one rename.
Whatever is random is a function of the seed. So a run that is killed anywhere and started again
ends with the files of one that was not.

    OUT/config.json               the settings, and numbers of layers that an allocation needs
    OUT/round-03/metrics.json     written last: with it the round is done
    OUT/round-03/ticket.pt        the masked average
    OUT/round-03/samples.png      drawn from it
    OUT/round-03/weights.pt       raw weights and masks, what the next round begins with
    OUT/round-03/checkpoint.pt    while the round trains
    OUT/start.pt                  with a ticket to begin with: that ticket
    OUT/round-00/rewind.pt        with late rewinding: the weights after K steps
    OUT/round-00/orders.json      with permutation: the order of channels from round 1 on
    OUT/control-reinit/           like a round, trained after the last one
    OUT/metrics.jsonl             the metrics of all units, one a line
    OUT/ticket.pt, ticket.safetensors

A run that begins with a ticket begins with its weights and its masks, and prunes on from there.
With permutation, what later rounds begin with is the weights of the first ones in the order that
was found after round 0: the same functions, other places.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.files import sweep
from sparse_ddpm.lottery import permutation, pruning, randomness
from sparse_ddpm.lottery.allocation import Layers, check_layers
from sparse_ddpm.lottery.controls import (
    MASKED,
    check_control,
    control_folder,
    control_steps,
    narrow_settings,
)
from sparse_ddpm.lottery.evaluation import draw, held_out_loss, split
from sparse_ddpm.lottery.files import read_json, write_json, write_text
from sparse_ddpm.lottery.gradual import mask_updates
from sparse_ddpm.lottery.progress import Bar
from sparse_ddpm.lottery.pruning import Masks
from sparse_ddpm.lottery.settings import FineTuning, Settings
from sparse_ddpm.lottery.training import (
    Gradual,
    Trained,
    Weights,
    effective_arrays,
    load_torch,
    masked_model,
    save_torch,
    train_round,
)
from sparse_ddpm.model.build import Denoiser, build_model
from sparse_ddpm.model.diffusion import Diffusion
from sparse_ddpm.pictures import save_grid
from sparse_ddpm.sampling.schedule import alphas_cumprod
from sparse_ddpm.ticket import Ticket, UNetConfig, load_ticket, parameters_of, save_ticket
from sparse_ddpm.ticket.config import Pattern, Provenance


def initial_weights(settings: Settings, purpose: str = "weights") -> Weights:
    """Random weights, a function of the seed and the purpose (``weights`` or ``reinit``)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.torch_seed(settings.seed, purpose))
        model = build_model(settings.architecture)
    return {name: p.detach() for name, p in model.named_parameters()}


def sha256_of(settings: Settings, weights: Weights) -> str:
    """Hash of all weights as little-endian float32, in the order of the forward pass."""
    digest = hashlib.sha256()
    for parameter in parameters_of(settings.architecture):
        digest.update(weights[parameter.name].numpy().astype("<f4").tobytes())
    return digest.hexdigest()


class Run:
    """One run in one folder. ``images``: uint8 ``[N, H, W, C]``; ``settings``: resolved.

    ``layers``: what the allocations in `NEED_LAYERS` need. Raises `ConfigError`.
    """

    def __init__(
        self,
        settings: Settings,
        out: Path,
        images: NDArray[np.uint8],
        dataset: str,
        *,
        controls: Sequence[str] = (),
        layers: Layers | None = None,
        steps_per_checkpoint: int = 500,
    ) -> None:
        check_layers(settings.allocation, layers, pruning.prunable(settings.architecture))
        for control in controls:
            check_control(control)
            if control not in MASKED:
                narrow_settings(settings, control)
        if controls and settings.rounds == 0:
            raise ConfigError(expected("control", "a run with pruning rounds", "rounds=0"))
        self.settings, self.out, self.dataset = settings, out, dataset
        self.controls = tuple(dict.fromkeys(controls))
        self.layers = layers
        self.pattern = Pattern.parse(settings.pattern)
        self.steps_per_checkpoint = steps_per_checkpoint
        device = torch.device(settings.device)
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        self.train_images, self.held_out = (part.to(device) for part in split(pixels))
        abar = alphas_cumprod(settings.diffusion)
        self.diffusion = Diffusion(settings.diffusion, abar).to(device)
        self.begin = settings.ticket if isinstance(settings, FineTuning) else None
        if self.begin is None:
            self.initial = initial_weights(settings)
            self.initial_sha256 = sha256_of(settings, self.initial)
        else:
            self.initial = {n: torch.from_numpy(w.copy()) for n, w in self.begin.weights.items()}
            before = self.begin.provenance.initial_sha256
            self.initial_sha256 = before or sha256_of(settings, self.initial)

    def execute(self, *, quiet: bool = False) -> list[dict[str, Any]]:
        """Do what is not done yet; return the metrics of all rounds and controls."""
        settings = self.settings
        for folder in (self.out, *self._units()):
            sweep(folder)
        total = sum(settings.steps_of(r) for r in range(settings.rounds + 1))
        total += sum(control_steps(settings, control) for control in self.controls)
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
        masked = [self.out / control_folder(control) for control in MASKED]
        narrow = sorted(self.out.glob(control_folder("narrow:*")))
        return rounds + masked + narrow

    def _metrics(self) -> list[dict[str, Any]]:
        paths = [unit / "metrics.json" for unit in self._units()]
        return [read_json(path) for path in paths if path.exists()]

    def _round(self, round_: int, bar: Bar) -> None:
        folder = self._folder(round_)
        if not (folder / "metrics.json").exists():
            masks = self._masks(round_)
            gradual = self._gradual() if round_ == 1 and self.settings.gradual else None
            self._unit(folder, round_, self._start(round_), masks, bar, gradual=gradual)
        else:
            bar.skip(self.settings.steps_of(round_))
        (folder / "checkpoint.pt").unlink(missing_ok=True)
        if round_ >= 2:
            # Nothing reads it any more: only the dense and the last weights are needed again.
            (self._folder(round_ - 1) / "weights.pt").unlink(missing_ok=True)
        self._write_metrics()

    def _control(self, control: str, bar: Bar) -> None:
        folder = self.out / control_folder(control)
        settings, last = self.settings, self.settings.rounds
        if not (folder / "metrics.json").exists():
            if control in MASKED:
                masks = self._load(last)[1]
            else:
                settings = narrow_settings(settings, control)
                masks = pruning.dense_masks(settings.architecture)
            if control == "random-mask":
                # Rewinding the learning rate keeps weights that the real masks chose; the last
                # ones that no mask had a say in are the dense ones.
                masks = pruning.random_masks(masks, settings.seed, self.pattern)
                start = self._start(1)
            else:
                start = initial_weights(settings, "reinit")
            self._unit(folder, last, start, masks, bar, control=control, settings=settings)
        else:
            bar.skip(control_steps(settings, control))
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

    def _density(self, round_: int) -> Fraction:
        settings = self.settings
        return pruning.density_after(
            round_,
            fraction=settings.prune_fraction,
            sparsity=settings.sparsity,
            rounds=settings.rounds,
            begin=Fraction(pruning.density_of(self._first_masks())),
        )

    def _first_masks(self) -> Masks:
        """The masks that the run begins with."""
        masks = pruning.dense_masks(self.settings.architecture)
        return masks if self.begin is None else {n: self.begin.mask(n).copy() for n in masks}

    def _masks(self, round_: int) -> Masks:
        """The masks that a round begins with."""
        if round_ == 0 or self.settings.gradual:
            return self._first_masks()
        weights, masks = self._load(round_ - 1)
        if round_ == 1:
            weights = self._permuted(weights)
        effective = effective_arrays(masked_model(self.settings, weights, masks))
        return self._prune(effective, masks, self._density(round_))

    def _prune(
        self, effective: Mapping[str, NDArray[np.float32]], masks: Masks, density: Fraction
    ) -> Masks:
        return pruning.prune(
            effective,
            masks,
            density,
            architecture=self.settings.architecture,
            allocation=self.settings.allocation,
            pattern=self.pattern,
            layers=self.layers,
        )

    def _gradual(self) -> Gradual:
        steps, ramp = self.settings.steps_of(1), self.settings.ramp
        return Gradual(mask_updates(steps, self._density(1), ramp), self._prune)

    def _permuted(self, weights: Weights) -> Weights:
        """``weights`` of round 0 or before in the order of channels that later rounds have."""
        if not self.settings.permute:
            return weights
        config = self.settings.architecture
        assert isinstance(config, UNetConfig)
        spaces = permutation.channel_spaces(config)
        path = self._folder(0) / "orders.json"
        if not path.exists():
            dense = masked_model(self.settings, *self._load(0))
            found = permutation.find_permutations(
                effective_arrays(dense),
                config,
                self.pattern,
                self._density(self.settings.rounds),
            )
            write_json(path, {name: order.tolist() for name, order in found.items()})
        orders = permutation.check_orders(str(path), read_json(path), spaces)
        arrays = permutation.permuted({n: w.numpy() for n, w in weights.items()}, spaces, orders)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _start(self, round_: int) -> Weights:
        """The weights that a round begins with, before its masks are applied."""
        if round_ == 0:
            return self.initial
        rewind = self.settings.rewind
        if rewind == "init":
            return self._permuted(self.initial)
        if rewind == "lr":
            weights = self._load(round_ - 1)[0]
            return self._permuted(weights) if round_ == 1 else weights
        return self._permuted(load_torch(self._folder(0) / "rewind.pt"))

    def _teacher(self) -> Denoiser | None:
        """The average of round 0, if pruned networks learn from it."""
        if self.settings.distil == 0.0:
            return None
        average = load_ticket(self._folder(0) / "ticket.pt")
        weights = {name: torch.from_numpy(w.copy()) for name, w in average.weights.items()}
        masks = {name: mask.copy() for name, mask in average.masks.items()}
        return masked_model(self.settings, weights, masks).eval().requires_grad_(False)

    def _unit(
        self,
        folder: Path,
        round_: int,
        start: Weights,
        masks: Masks,
        bar: Bar,
        *,
        control: str | None = None,
        settings: Settings | None = None,
        gradual: Gradual | None = None,
    ) -> None:
        settings = settings or self.settings
        folder.mkdir(exist_ok=True)
        late = settings.late_steps if round_ == 0 and control is None else None
        if control is None:
            steps, title = settings.steps_of(round_), f"round {round_}/{settings.rounds}"
        else:
            steps, title = control_steps(self.settings, control), control
        final = pruning.density_of(masks) if gradual is None else float(self._density(round_))
        bar.begin(title, final)

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
            gradual=gradual,
            teacher=None if round_ == 0 else self._teacher(),
            progress=bar,
        )
        masks = trained.masks
        density = pruning.density_of(masks)
        model = masked_model(settings, trained.average, masks)
        held = held_out_loss(settings, self.diffusion, model, self.held_out)
        ticket = self._ticket(settings, trained, round_, held, control)
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
                "kernels": trained.kernels,
                "train_loss": trained.loss,
                "held_out_loss": held,
                "seconds": round(trained.seconds, 3),
            },
        )

    def _ticket(
        self, settings: Settings, trained: Trained, round_: int, held: float, control: str | None
    ) -> Ticket:
        command, first, rewinding = self.settings.command(), 0, settings.rewind
        if self.begin is not None:
            first = self.begin.provenance.round
            rewinding = rewinding if round_ > 0 else self.begin.provenance.rewinding
        return Ticket(
            architecture=settings.architecture,
            diffusion=settings.diffusion,
            provenance=Provenance(
                dataset=self.dataset,
                seed=settings.seed,
                round=first + round_,
                rewinding=rewinding if control is None else f"control {control}",
                allocation=settings.allocation,
                pattern=settings.pattern,
                sparsity=1.0 - pruning.density_of(trained.masks),
                initial_sha256=self.initial_sha256,
                command=command if control is None else f"{command} --control {control}",
                metrics={"train_loss": trained.loss, "held_out_loss": held},
            ),
            weights={name: weight.numpy() for name, weight in trained.average.items()},
            masks=trained.masks,
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
