"""The stages put together: ticket, program, engine, sampler, images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.engine import DeviceSampler, Engine, make_engine
from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.lower import lower
from sparse_ddpm.sampling import make_table, sample_loop, to_uint8
from sparse_ddpm.ticket import Ticket, load_ticket, shipped_ticket_path

DEFAULT_BATCHES = {"cuda": 256}
"""Images that go through the engine together unless the caller says otherwise, by device."""
DEFAULT_BATCH = 16
"""Of the devices that are not there."""


class Sampler:
    """Draws images from a ticket. Engines are planned once per batch size and kept.

    ``device``: ``auto`` (which is ``cpu``), ``cpu``, ``cuda`` or ``numpy``; ``threads``, of the cpu
    engine: default all cores at hand. ``dtype``: ``float32`` (default of cpu), ``float16`` (of
    cuda) or ``bfloat16``. On the CPU 16 bits are how activations are stored, and of bfloat16 also
    how large blocks of weights are multiplied; on a GPU weights and activations have them and sums
    are float32. Images are float32 or uint8 whatever it is. Close the sampler, or use it as a
    context manager, to end the engine's threads early.
    """

    def __init__(
        self,
        ticket: Ticket,
        *,
        device: str = "auto",
        threads: int | None = None,
        dtype: str | None = None,
    ) -> None:
        self.ticket = ticket
        self.program = lower(ticket)
        self._device = device
        self._threads = threads
        self._dtype = dtype
        self._engines: dict[int, Engine] = {}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        dtype: str | None = None,
    ) -> Sampler:
        """A sampler for the ticket at ``path``; without one, for the ticket that ships.

        Raises `TicketError` for a damaged file.
        """
        ticket = load_ticket(shipped_ticket_path() if path is None else path)
        return cls(ticket, device=device, threads=threads, dtype=dtype)

    def sample(
        self,
        n: int = 16,
        *,
        steps: int = 50,
        sampler: str = "ddim",
        seed: int = 0,
        eta: float | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> NDArray[np.uint8]:
        """Draw ``n`` images: uint8 ``[n, H, W, C]``.

        ``sampler``: ``ddpm``, ``ddim`` (``eta`` 0 by default) or ``dpm++``. Image i of a seed is
        the same, to rounding, whatever ``n`` and ``batch_size``. ``progress``: a bar on stderr.
        Raises `ConfigError` for settings out of range.
        """
        return to_uint8(
            self.sample_float(
                n,
                steps=steps,
                sampler=sampler,
                seed=seed,
                eta=eta,
                batch_size=batch_size,
                progress=progress,
            )
        )

    def sample_float(
        self,
        n: int = 16,
        *,
        steps: int = 50,
        sampler: str = "ddim",
        seed: int = 0,
        eta: float | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """As `sample`, but the unrounded images: float32 ``[n, C, H, W]`` in [-1, 1]."""
        for what, value, low in (("n", n, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value is not None and (type(value) is not int or value < low):
                raise ConfigError(expected(what, f"an integer of at least {low}", repr(value)))
        table = make_table(self.ticket.diffusion, sampler=sampler, steps=steps, eta=eta)
        batch = min(n, self.batch_size if batch_size is None else batch_size)
        shape = self.program.input_shape
        images = np.empty((n, *shape), dtype=np.float32)
        scheduled: set[int] = set()
        with _Progress(progress, -(-n // batch) * len(table.timesteps)) as bar:
            for start, stop in _chunks(n, batch):
                engine = self.engine(stop - start)
                if engine.batch not in scheduled:
                    engine.set_schedule(table.timesteps)
                    scheduled.add(engine.batch)
                indices = np.arange(start, stop)
                if isinstance(engine, DeviceSampler):
                    images[start:stop] = engine.sample(
                        table.coefficients,
                        clip=table.clip,
                        seed=seed,
                        image_indices=indices,
                        progress=bar.step,
                    )
                else:
                    images[start:stop] = sample_loop(
                        engine.run,
                        table,
                        seed=seed,
                        image_indices=indices,
                        shape=shape,
                        callback=bar.step,
                    )
        return images

    @property
    def batch_size(self) -> int:
        """Images that go through the engine together unless `sample` is told otherwise."""
        return DEFAULT_BATCHES.get(self._device, DEFAULT_BATCH)

    def engine(self, batch: int) -> Engine:
        """The engine for ``batch`` images at once, planned on first use. Raises `EngineError`."""
        if batch not in self._engines:
            self._engines[batch] = make_engine(
                self.program,
                self._device,
                batch=batch,
                threads=self._threads,
                dtype=self._dtype,
            )
        return self._engines[batch]

    def close(self) -> None:
        """End the engines; the next `sample` plans new ones."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _chunks(n: int, batch: int) -> Iterator[tuple[int, int]]:
    for start in range(0, n, batch):
        yield start, min(start + batch, n)


class _Progress:
    """A tqdm bar over steps, or nothing."""

    def __init__(self, wanted: bool, total: int) -> None:
        self._bar: Any = None
        if wanted:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="step", desc="sampling", leave=False, disable=None)

    def step(self, _index: int, _x: object = None) -> None:
        if self._bar is not None:
            self._bar.update()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
