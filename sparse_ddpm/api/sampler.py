"""The public sampler: images from a ticket, in one call, step by step, from any thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.api.engines import Images, Settings, Worker, Workers
from sparse_ddpm.api.output import as_output, check_output
from sparse_ddpm.api.progress import Progress
from sparse_ddpm.api.request import Request, make_request
from sparse_ddpm.api.step import Step, make_step
from sparse_ddpm.engine import Engine
from sparse_ddpm.errors import CancelledError
from sparse_ddpm.lower import lower
from sparse_ddpm.sampling import make_table, sample_steps
from sparse_ddpm.ticket import Ticket, find_ticket, load_ticket

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from sparse_ddpm.api.unet2d import UNet2D

DEFAULT_BATCHES = {"cuda": 256}
"""Images that go through the engine together unless the caller says otherwise, by device."""
DEFAULT_BATCH = 16
"""Of the devices that are not there."""

Integers = Sequence[int] | NDArray[np.integer]
Callback = Callable[[Step], object]


class Options(TypedDict, total=False):
    """Of `Sampler.sample`, which says what they mean."""

    steps: int
    sampler: str
    seed: int
    seeds: Integers | None
    indices: Integers | None
    eta: float | None
    batch_size: int | None
    progress: bool
    callback: Callback | None


class Sampler:
    """Draws images from a ticket. Engines are planned when first used, and kept.

    ``device``: ``auto`` (which is ``cpu``), ``cpu``, ``cuda`` or ``numpy``; ``threads``, of the cpu
    engine: default all cores at hand. ``dtype``: ``float32`` (default of cpu), ``float16`` (of
    cuda) or ``bfloat16``. On the CPU 16 bits are how activations are stored, and of bfloat16 also
    how large blocks of weights are multiplied; on a GPU weights and activations have them and sums
    are float32. Images are float32 or uint8 whatever it is.

    Any thread may call any method at any time. ``concurrency`` calls compute at once, each with
    engines of its own; others wait, first come, first served. Default: as many as there are cores
    for, ``cores // threads``, so 1 unless ``threads`` is set, and 1 on a GPU. In a forked process a
    sampler works as in its parent, on engines of its own (``cuda`` excepted: CUDA itself does not
    survive a fork).

    Close the sampler, or use it as a context manager, to end the engines' threads and free their
    memory early.

    >>> with Sampler.load("mnist") as sampler:
    ...     images = sampler.sample(4, steps=20, seed=7)
    >>> images.shape, images.dtype
    ((4, 32, 32, 1), dtype('uint8'))
    """

    def __init__(
        self,
        ticket: Ticket,
        *,
        device: str = "auto",
        threads: int | None = None,
        dtype: str | None = None,
        concurrency: int | None = None,
    ) -> None:
        self.ticket = ticket
        self.program = lower(ticket)
        self.device = device
        self._settings = Settings(self.program, device, threads, dtype)
        own = _concurrency(device, threads)
        self.workers = Workers(self._settings, own if concurrency is None else concurrency)
        self._engines: dict[int, Engine] = {}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        dtype: str | None = None,
        concurrency: int | None = None,
    ) -> Sampler:
        """A sampler for a ticket: a file, the name of one that ships, or None for the first.

        Names: `sparse_ddpm.ticket.ticket_names`. Raises `TicketError` for a name that is neither,
        and for a damaged file.
        """
        ticket = load_ticket(find_ticket(path))
        return cls(ticket, device=device, threads=threads, dtype=dtype, concurrency=concurrency)

    @overload
    def sample(
        self, n: int | None = ..., *, output: Literal["np"] = ..., **options: Unpack[Options]
    ) -> NDArray[np.uint8]: ...
    @overload
    def sample(
        self, n: int | None = ..., *, output: Literal["float"], **options: Unpack[Options]
    ) -> NDArray[np.float32]: ...
    @overload
    def sample(
        self, n: int | None = ..., *, output: Literal["pil"], **options: Unpack[Options]
    ) -> list[Image]: ...
    @overload
    def sample(
        self, n: int | None = ..., *, output: Literal["torch"], **options: Unpack[Options]
    ) -> Tensor: ...
    @overload
    def sample(self, n: int | None = ..., *, output: str, **options: Unpack[Options]) -> Any: ...
    def sample(
        self,
        n: int | None = None,
        *,
        steps: int = 50,
        sampler: str = "ddim",
        seed: int = 0,
        seeds: Integers | None = None,
        indices: Integers | None = None,
        eta: float | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        callback: Callback | None = None,
        output: str = "np",
    ) -> Any:
        """Draw ``n`` images (default 16): uint8 ``[n, H, W, C]``, or as ``output`` says.

        ``sampler``: ``ddpm``, ``ddim`` (``eta`` 0 by default) or ``dpm++``.

        Which images: those numbered 0 to n - 1 of ``seed``, or ``indices`` ``[n]`` of it. With
        ``seeds`` ``[n]`` each image has a seed of its own and is the first of it, so that
        ``sample(seeds=[3, 8])`` are ``sample(1, seed=3)`` and ``sample(1, seed=8)`` in one run;
        ``indices`` beside it picks others. An image is the same, to rounding, whatever it is drawn
        with, ``n`` and ``batch_size`` included: these many go through the engine together (default
        `batch_size`).

        ``output``: ``np``; ``pil``, a list of PIL images; ``float``, float32 ``[n, C, H, W]`` in
        [-1, 1]; or ``torch``, a tensor of those numbers in the same memory.

        ``progress``: a bar on stderr. ``callback(step)`` is given a `Step` after every step of
        every batch, on this thread, and may call this sampler itself. If it returns True, sampling
        ends with `CancelledError`; what it raises goes through. Either way the sampler stays
        usable. On a GPU a callback makes every step wait for the host.

        Raises `ConfigError` for settings out of range, `EngineError` for engines that cannot be
        made here or a network whose output is not finite, and `MissingDependencyError`.
        """
        check_output(output, self.program.input_shape[0])
        request = self._request(n, steps, sampler, seed, seeds, indices, eta, batch_size)
        with Progress(progress, request.steps) as bar:
            parts = []
            for images in request.batches():
                if callback is None:
                    parts.append(self._draw(request, images, bar))
                    continue
                for index, x, x0 in self._steps(request, images):
                    bar.step(index)
                    if _is_true(callback(make_step(request, images, index, x, x0))):
                        raise CancelledError(
                            f"sampling was cancelled in step {index + 1} of {request.table.steps}."
                        )
                parts.append(x)
        return as_output(parts[0] if len(parts) == 1 else np.concatenate(parts), output)

    def sample_float(self, n: int | None = None, **options: Unpack[Options]) -> NDArray[np.float32]:
        """``sample(n, output="float", ...)``: float32 ``[n, C, H, W]`` in [-1, 1]."""
        return self.sample(n, output="float", **options)

    def stream(
        self,
        n: int | None = None,
        *,
        steps: int = 50,
        sampler: str = "ddim",
        seed: int = 0,
        seeds: Integers | None = None,
        indices: Integers | None = None,
        eta: float | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Step]:
        """The images of `sample` as they come to be: a `Step` after every step of every batch.

        Batches come one after the other, each ``steps`` steps; ``step.x`` of a ``step.last`` are
        its images. Nothing is computed ahead, and nothing is held between two steps: take your
        time, use the sampler meanwhile, or stop early and forget the iterator.

        >>> with Sampler.load("mnist") as sampler:
        ...     for step in sampler.stream(1, steps=4):
        ...         print(step.index, step.timestep, step.images().shape)
        0 999 (1, 32, 32, 1)
        1 749 (1, 32, 32, 1)
        2 499 (1, 32, 32, 1)
        3 249 (1, 32, 32, 1)
        """
        request = self._request(n, steps, sampler, seed, seeds, indices, eta, batch_size)
        return (
            make_step(request, images, *step)
            for images in request.batches()
            for step in self._steps(request, images)
        )

    @property
    def batch_size(self) -> int:
        """Images that go through the engine together unless `sample` is told otherwise."""
        return DEFAULT_BATCHES.get(self.device, DEFAULT_BATCH)

    @property
    def concurrency(self) -> int:
        """Calls that compute at once; more of them wait for their turn."""
        return self.workers.most

    @property
    def description(self) -> str:
        """What computes, in a few words, for people: "cpu avx512, 2 threads"."""
        with self.workers.lend() as worker:
            return worker.description

    def engine(self, batch: int) -> Engine:
        """An engine for exactly ``batch`` images, for one caller at a time. Raises `EngineError`.

        Planned on first use, kept until `close`, and not used by `sample`.
        """
        found = self._engines.get(batch)
        if found is None:
            made = self._settings.make(batch)
            found = self._engines.setdefault(batch, made)
            if found is not made:
                made.close()
        return found

    def unet2d(self) -> UNet2D:
        """The network for diffusers' pipelines, on this sampler's engines.

        Raises `MissingDependencyError` without torch and diffusers.
        """
        from sparse_ddpm.api.unet2d import UNet2D

        return UNet2D(self)

    def close(self) -> None:
        """End the engines; calls that are under way finish, and the next one plans new engines."""
        self.workers.close()
        while self._engines:
            self._engines.popitem()[1].close()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(
        self,
        n: int | None,
        steps: int,
        sampler: str,
        seed: int,
        seeds: Integers | None,
        indices: Integers | None,
        eta: float | None,
        batch_size: int | None,
    ) -> Request:
        return make_request(
            make_table(self.ticket.diffusion, sampler=sampler, steps=steps, eta=eta),
            n=n,
            seed=seed,
            seeds=seeds,
            indices=indices,
            batch_size=self.batch_size if batch_size is None else batch_size,
        )

    def _draw(self, request: Request, images: slice, bar: Progress) -> Images:
        """A batch in one go, on one worker."""
        table, seeds, indices = request.table, request.seeds[images], request.indices[images]
        with self.workers.lend() as worker:
            engine = worker.device_sampler(len(seeds), table.timesteps)
            if engine is not None:
                one = bool((seeds == seeds[0]).all())
                return engine.sample(
                    table.coefficients,
                    clip=table.clip,
                    seed=int(seeds[0]) if one else seeds,
                    image_indices=indices,
                    progress=bar.step,
                )
            images_made = np.empty(0, np.float32)
            for index, images_made, _ in self._steps(request, images, worker):  # noqa: B007
                bar.step(index)
        return images_made

    def _steps(
        self, request: Request, images: slice, worker: Worker | None = None
    ) -> Iterator[tuple[int, Images, Images]]:
        """A batch step by step, on ``worker``, or on whichever is lent for each step."""
        timesteps = request.table.timesteps

        def denoise(x: Images, step: int) -> Images:
            with self.workers.lend() if worker is None else nullcontext(worker) as lent:
                return lent.run(x, timesteps, step)

        return sample_steps(
            denoise,
            request.table,
            seed=request.seeds[images],
            image_indices=request.indices[images],
            shape=self.program.input_shape,
        )


def _concurrency(device: str, threads: int | None) -> int:
    """Calls that compute at once unless the caller says otherwise."""
    if device not in ("auto", "cpu"):
        return 1
    # Imported now and not by the first call: a thread that forks while another one imports makes a
    # process in which that import never ends.
    from sparse_ddpm.engine.cpu import default_threads

    return 1 if threads is None else max(1, default_threads() // max(1, threads))


def _is_true(answer: object) -> bool:
    return isinstance(answer, bool | np.bool_) and bool(answer)
