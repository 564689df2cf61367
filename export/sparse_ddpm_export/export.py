"""A ticket's exports: the model, its bytes in any form, and the check of those."""

from __future__ import annotations

import onnx

import sparse_ddpm
from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.lower import lower
from sparse_ddpm.sampling import make_table
from sparse_ddpm.ticket import Ticket
from sparse_ddpm.ticket.metadata import ticket_metadata
from sparse_ddpm_export.check import Check
from sparse_ddpm_export.denoiser import export_denoiser
from sparse_ddpm_export.form import Form
from sparse_ddpm_export.sampler import Baked, export_sampler, export_step

WHAT = ("denoiser", "sampler", "step")


class Export:
    """One thing to be exported of a ticket, in as many forms as are asked for.

    ``what``: ``denoiser``, ``sampler`` or ``step``. The last two take ``sampler``, ``steps`` and
    ``eta`` as `sparse_ddpm.sampling.make_table` does; ``seed``, of a sampler alone, puts the noise
    of its first ``images`` images into the file. Raises `ConfigError` that names the setting.
    """

    def __init__(
        self,
        ticket: Ticket,
        what: str = "denoiser",
        *,
        sampler: str = "ddim",
        steps: int = 50,
        eta: float | None = None,
        seed: int | None = None,
        images: int = 1,
    ) -> None:
        if what not in WHAT:
            raise ConfigError(expected("what", f"one of {', '.join(WHAT)}", repr(what)))
        if seed is not None and what != "sampler":
            raise ConfigError(expected("seed", f"none with {what}", repr(seed)))
        self.what = what
        self.program = lower(ticket)
        self.table = make_table(ticket.diffusion, sampler=sampler, steps=steps, eta=eta)
        self.baked = None if seed is None else Baked(seed, images)
        version = {"sparse_ddpm_version": sparse_ddpm.__version__}
        self.metadata = version | ticket_metadata(ticket)
        self._timesteps = ticket.diffusion.timesteps
        if what != "denoiser":
            self.metadata |= {"sampler": sampler, "eta": str(float(eta or 0.0))}

    def model(self, form: Form | None = None) -> onnx.ModelProto:
        """The model in ``form``. Raises `ProgramError` where the form cannot hold it."""
        match self.what:
            case "denoiser":
                return export_denoiser(self.program, form, self.metadata)
            case "sampler":
                return export_sampler(self.program, self.table, form, self.metadata, self.baked)
            case _:
                return export_step(self.program, self.table, form, self.metadata)

    def content(self, form: Form | None = None) -> bytes:
        """The bytes of `model`, what the file holds."""
        return bytes(self.model(form).SerializeToString())

    def check(self, content: bytes, form: Form | None = None, device: str = "auto") -> float:
        """Hold a file's ``content`` in ``form`` against our engine; see `Check`."""
        with Check(self.program, form, device) as check:
            match self.what:
                case "denoiser":
                    return check.denoiser(content, self._timesteps)
                case "sampler":
                    return check.sampler(content, self.table, self.baked)
                case _:
                    return check.step(content, self.table)
