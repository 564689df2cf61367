"""How long the suite may go on."""

from __future__ import annotations

import time
from dataclasses import dataclass


class OutOfTime(Exception):  # noqa: N818 - not an error: the suite ends here and goes on next time
    """The next measurement does not fit the time that is left."""


@dataclass(frozen=True, slots=True)
class Budget:
    """``end``: seconds since the epoch, so that another process can go on with the same budget."""

    end: float

    @classmethod
    def minutes(cls, minutes: float) -> Budget:
        return cls(time.time() + 60.0 * minutes)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.time()

    def require(self, seconds: float) -> None:
        """Raise `OutOfTime` unless so many are left."""
        if self.left < seconds:
            raise OutOfTime(f"{self.left:.0f} s left, {seconds:.0f} s needed")
