"""A bar over the steps of a sampling."""

from __future__ import annotations

from typing import Any


class Progress:
    """A tqdm bar over steps on stderr, or nothing."""

    def __init__(self, wanted: bool, total: int) -> None:
        self._bar: Any = None
        if wanted:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="step", desc="sampling", leave=False, disable=None)

    def step(self, _index: int) -> None:
        """One more."""
        if self._bar is not None:
            self._bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
