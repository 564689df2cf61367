"""A ticket's exports: the model, its bytes in any form, and the check of those."""

from __future__ import annotations

import onnx

import sparse_ddpm
from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.lower import lower
from sparse_ddpm.lower.dead_channels import remove_dead
from sparse_ddpm.lower.select import select_channels
from sparse_ddpm.program import Program
from sparse_ddpm.sampling import Table, make_table
from sparse_ddpm.ticket import Ticket
from sparse_ddpm.ticket.metadata import ticket_metadata
from sparse_ddpm_export.check import Check
from sparse_ddpm_export.denoiser import export_denoiser
from sparse_ddpm_export.form import OPSET, Form
from sparse_ddpm_export.model import count_weights
from sparse_ddpm_export.sampler import Baked, export_sampler, export_step

WHAT = ("denoiser", "sampler", "step")


class Export:
    """One thing to be exported of a ticket, in as many forms as are asked for.

    ``what``: ``denoiser``, ``sampler`` or ``step``. The last two take ``sampler``, ``steps`` and
    ``eta`` as `sparse_ddpm.sampling.make_table` does; ``seed``, of a sampler alone, puts the noise
    of its first ``images`` images into the file. ``remove``: leave out what the images do not
    depend on, and hand convolutions only what they read. Raises `ConfigError` that names the
    setting.

    ``whole`` is the ticket's Program, ``program`` the one that is exported.
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
        remove: bool = True,
    ) -> None:
        if what not in WHAT:
            raise ConfigError(expected("what", f"one of {', '.join(WHAT)}", repr(what)))
        if seed is not None and what != "sampler":
            raise ConfigError(expected("seed", f"none with {what}", repr(seed)))
        self.what = what
        self.whole = lower(ticket)
        self.program = select_channels(remove_dead(self.whole)) if remove else self.whole
        self._table: Table | None = None
        self.baked = None if seed is None else Baked(seed, images)
        version = {"sparse_ddpm_version": sparse_ddpm.__version__}
        # Of the ticket: what is taken out, or put in to copy channels, does not count.
        self.metadata = version | ticket_metadata(ticket) | count_weights(self.whole)
        self._timesteps = ticket.diffusion.timesteps
        if what != "denoiser":
            self._table = make_table(ticket.diffusion, sampler=sampler, steps=steps, eta=eta)
            self.metadata |= {"sampler": sampler, "eta": str(float(eta or 0.0))}

    @property
    def table(self) -> Table:
        """Of a sampler or a step, which alone have one."""
        assert self._table is not None
        return self._table

    def model(self, form: Form | None = None) -> onnx.ModelProto:
        """The model in ``form``. Raises `ProgramError` where the form cannot hold it."""
        return self._model(self.program, form or Form())

    def _model(self, program: Program, form: Form) -> onnx.ModelProto:
        match self.what:
            case "denoiser":
                return export_denoiser(program, form, self.metadata)
            case "sampler":
                return export_sampler(program, self.table, form, self.metadata, self.baked)
            case _:
                return export_step(program, self.table, form, self.metadata)

    def content(self, form: Form | None = None) -> bytes:
        """The bytes of `model`, what the file holds."""
        return bytes(self.model(form).SerializeToString())

    def plain(self, opset: int = OPSET) -> bytes:
        """What the file would be without us: the whole Program, dense in float32."""
        return bytes(self._model(self.whole, Form("dense", opset=opset)).SerializeToString())

    def check(self, content: bytes, form: Form | None = None, device: str = "auto") -> float:
        """Hold a file's ``content`` in ``form`` against our engine; see `Check`.

        In float32 the engine runs the whole Program. In float16 it runs the exported one, of which
        the file holds the values exactly: what is rounded first and folded then is another number.
        """
        exact = form is None or form.dtype == "float32"
        with Check(self.whole if exact else self.program, form, device) as check:
            match self.what:
                case "denoiser":
                    return check.denoiser(content, self._timesteps)
                case "sampler":
                    return check.sampler(content, self.table, self.baked)
                case _:
                    return check.step(content, self.table)
