"""Engines for callers on any thread and in any process.

Engines take one caller at a time, and own threads that a fork does not inherit. A `Worker` is what
one caller needs at a time: engines of the program by batch size, planned when they are first used.
`Workers` lends them: so many at once, first come, first served; and a forked process begins with
none, whatever the other threads of its parent were doing.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.engine import DeviceSampler, Engine, make_engine
from sparse_ddpm.engine.arena import LINE, lanes_for
from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.program import Program

Images = NDArray[np.float32]

MAX_ENGINES = 8
"""Batch sizes that a worker keeps engines of; the one used longest ago goes first."""

MAX_ROWS = 8192
"""Timesteps that an engine keeps its time table for."""


class Settings:
    """What engines are made of. ``device``, ``threads``, ``dtype``: see `make_engine`."""

    def __init__(
        self, program: Program, device: str, threads: int | None, dtype: str | None
    ) -> None:
        self.program = program
        self.device = device
        self.threads = threads
        self.dtype = dtype

    def make(self, batch: int) -> Engine:
        """An engine for ``batch`` images. Raises `EngineError`."""
        return make_engine(
            self.program, self.device, batch=batch, threads=self.threads, dtype=self.dtype
        )

    def passes(self, images: int) -> list[int]:
        """Batch sizes of the engines that ``images`` go through, one after the other.

        The cpu engine makes passes of 1 or `LINE` images whatever its batch, and fills the last one
        up: two engines do for all batches.
        """
        if self.device not in ("auto", "cpu"):
            return [images]
        whole, rest = divmod(images, LINE)
        together = rest > 0 and lanes_for(rest) == LINE
        return [LINE] * whole + ([LINE] if together else [1] * rest)


class Planned:
    """An engine and the timesteps that it has a time table of."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._rows: dict[float, int] = {}

    def row(self, timesteps: NDArray[Any], step: int) -> int:
        """The engine's row of ``timesteps[step]``; all of them get one if that has none yet."""
        rows = self._rows
        t = float(timesteps[step])
        if t not in rows:
            new = dict.fromkeys(np.asarray(timesteps, np.float64).tolist())
            both = rows | new
            self.schedule(list(both if len(both) <= MAX_ROWS else new))
        return self._rows[t]

    def schedule(self, timesteps: list[float]) -> None:
        """Give the engine a table of exactly ``timesteps``, unless it has that."""
        if list(self._rows) != timesteps:
            self._rows = {}
            self.engine.set_schedule(np.array(timesteps))
            self._rows = {t: row for row, t in enumerate(timesteps)}


class Worker:
    """Engines for one caller at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._planned: OrderedDict[int, Planned] = OrderedDict()

    def planned(self, batch: int) -> Planned:
        """The engine for ``batch`` images. Raises `EngineError`."""
        found = self._planned.get(batch)
        if found is None:
            found = self._planned[batch] = Planned(self._settings.make(batch))
            while len(self._planned) > MAX_ENGINES:
                self._planned.popitem(last=False)[1].engine.close()
        self._planned.move_to_end(batch)
        return found

    def run(self, x: Images, timesteps: NDArray[Any], step: int) -> Images:
        """The network's output for ``x``, float32 ``[n, C, H, W]``, at ``timesteps[step]``."""
        outputs = []
        start = 0
        for batch in self._settings.passes(len(x)):
            planned = self.planned(batch)
            row = planned.row(timesteps, step)
            part = np.ascontiguousarray(x[start : start + batch])
            outputs.append(planned.engine.run(filled(part, batch), row)[: len(part)])
            start += batch
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def device_sampler(self, batch: int, timesteps: NDArray[Any]) -> DeviceSampler | None:
        """The engine for ``batch`` images with rows for ``timesteps``, if it can loop by itself."""
        if self._settings.device != "cuda":
            return None
        planned = self.planned(batch)
        if not isinstance(planned.engine, DeviceSampler):
            return None
        planned.schedule(np.asarray(timesteps, np.float64).tolist())
        return planned.engine

    @property
    def description(self) -> str:
        """Of any of its engines."""
        engine = next((planned.engine for planned in self._planned.values()), None)
        return (self.planned(1).engine if engine is None else engine).description

    def close(self) -> None:
        """End the engines."""
        for planned in self._planned.values():
            planned.engine.close()
        self._planned.clear()


def filled(x: Images, batch: int) -> Images:
    """``x`` with images of zeros behind it, ``batch`` in all."""
    if len(x) == batch:
        return x
    whole = np.zeros((batch, *x.shape[1:]), np.float32)
    whole[: len(x)] = x
    return whole


class _Desk:
    """Who waits, and what lies idle. Of one process: a fork gets a new one."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.turn = threading.Condition()
        self.waiting: deque[object] = deque()
        self.idle: list[Worker] = []
        self.served: set[object] = set()


class Workers:
    """Lends at most ``most`` workers at once; further callers wait for their turn."""

    def __init__(self, settings: Settings, most: int) -> None:
        if type(most) is not int or most < 1:
            raise ConfigError(expected("concurrency", "an integer of at least 1", repr(most)))
        self.settings = settings
        self.most = most
        self._desk = _Desk()
        self._inherited: list[_Desk] = []
        _ALL.add(self)

    @contextmanager
    def lend(self) -> Iterator[Worker]:
        """A worker, for this caller alone. Not to be held while other people's code runs."""
        desk, me = self._desk, object()
        worker: Worker | None = None
        try:
            worker = self._take(desk, me)
            yield worker
        finally:
            # Also where an interrupt came between the two: nobody must wait for ever.
            self._give_back(desk, me, worker)

    def _take(self, desk: _Desk, me: object) -> Worker:
        with desk.turn:
            desk.waiting.append(me)
            try:
                desk.turn.wait_for(lambda: len(desk.served) < self.most and desk.waiting[0] is me)
                desk.served.add(me)
            finally:
                desk.waiting.remove(me)
                desk.turn.notify_all()
            return desk.idle.pop() if desk.idle else Worker(self.settings)

    def _give_back(self, desk: _Desk, me: object, worker: Worker | None) -> None:
        if desk.process != os.getpid():
            return  # forked meanwhile: engine and lock are the parent's
        with desk.turn:
            desk.served.discard(me)
            closed = desk is not self._desk
            if worker is not None and not closed:
                desk.idle.append(worker)
            desk.turn.notify_all()
        if worker is not None and closed:
            worker.close()

    def close(self) -> None:
        """End idle workers now and lent ones when they come back; lending goes on."""
        desk, self._desk = self._desk, _Desk()
        with desk.turn:
            idle, desk.idle = desk.idle, []
        for worker in idle:
            worker.close()

    def _forked(self) -> None:
        """Begin anew, and never touch what was inherited: another thread may have held it."""
        self._inherited.append(self._desk)
        self._desk = _Desk()


_ALL: weakref.WeakSet[Workers] = weakref.WeakSet()


def _forked() -> None:
    for workers in list(_ALL):
        workers._forked()


if hasattr(os, "register_at_fork"):
    _register: Callable[..., None] = os.register_at_fork
    _register(after_in_child=_forked)
