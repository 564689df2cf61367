"""The sections, each with its file, its sources and its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gpu.about import about, fingerprint
from gpu.budget import Budget
from gpu.devices import Device, Gpu, Interpreter
from gpu.peers import settle
from gpu.results import Results
from sparse_ddpm.errors import EngineError, expected


class Suite:
    """Runs sections by name. Raises `EngineError` where there is no GPU and no dry run."""

    def __init__(
        self,
        folder: Path,
        budget: Budget,
        command: Sequence[str],
        *,
        dry: bool,
        commit: str | None = None,
    ) -> None:
        self.folder, self.budget, self.dry = folder, budget, dry
        if not self.dry and not torch.cuda.is_available():
            wanted = "a GPU and a torch built for it (or --dry-run)"
            raise EngineError(expected("device", wanted, f"torch {torch.__version__}"))
        self.device: Device = Interpreter() if self.dry else Gpu()
        settle(self.device)
        self.about = about(self.dry, command, commit)

    def run(self, section: str) -> None:
        """Measure what is missing of ``section``."""
        file = "step" if section == "tuned" else section
        results = Results(self.folder, file, self.about, self.budget)
        match section:
            case "correctness":
                from gpu import correctness

                source = fingerprint("ours")
                correctness.run(results, self.device, source, self.budget, dry=self.dry)
            case "ceilings":
                from gpu import ceilings

                sizes = ceilings.DRY if self.dry else ceilings.Sizes()
                ceilings.run(results, self.device, fingerprint("limits"), sizes)
            case "step":
                from gpu import steps
                from gpu.tickets import settings

                steps.run(results, self.device, fingerprint("ours"), settings(self.dry))
            case "compiled":
                from gpu import steps
                from gpu.tickets import settings

                steps.run_compiled(results, self.device, fingerprint("peers"), settings(self.dry))
            case "tuned":
                from gpu import steps
                from gpu.tickets import settings

                steps.run_tuned(results, self.device, fingerprint("ours"), settings(self.dry))
            case "layers":
                from gpu import layers
                from gpu.problems import DRY, Grid

                grid = DRY if self.dry else Grid()
                layers.run(results, self.device, fingerprint("ours"), self.budget, grid)
