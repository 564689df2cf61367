"""One bar on stderr for the whole run: round, density, loss, time left."""

from __future__ import annotations

from types import TracebackType

from tqdm import tqdm


class Bar:
    """Counts the steps of all rounds and controls of a run, also those done before a restart."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self._bar = tqdm(total=total, unit="step", disable=quiet, mininterval=0.5)
        self._before = 0

    def begin(self, name: str, density: float) -> None:
        """A unit of work named ``name`` starts."""
        self._bar.set_description(f"{name}, density {density:.2%}")
        self._before = self._bar.n

    def __call__(self, step: int, loss: float) -> None:
        self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self._bar.update(self._before + step - self._bar.n)

    def resumed(self, step: int) -> None:
        self.skip(step)

    def skip(self, steps: int) -> None:
        """``steps`` steps were done before: they count as done and not as speed."""
        if not self._bar.disable:
            self._bar.initial += steps
        self._bar.update(steps)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
