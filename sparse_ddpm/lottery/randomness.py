"""Everything random is a function of (seed, purpose, round, step).

So a checkpoint holds no generator state, and a run that was stopped anywhere goes on with exactly
the batches, timesteps and noise that it would have seen.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

PURPOSES = ("weights", "reinit", "epoch", "step", "heldout", "random-mask")


def generator(seed: int, purpose: str, round_: int = 0, step: int = 0) -> np.random.Generator:
    """A generator of its own for every (seed, purpose, round, step)."""
    entropy = (seed, PURPOSES.index(purpose), round_, step)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def torch_seed(seed: int, purpose: str, round_: int = 0) -> int:
    """A seed for torch's own generators: 32 bits, all that its CPU generator takes in."""
    return int(generator(seed, purpose, round_).integers(2**32))


@lru_cache(maxsize=2)
def _permutation(seed: int, round_: int, epoch: int, count: int) -> NDArray[np.int64]:
    return generator(seed, "epoch", round_, epoch).permutation(count)


def batch_indices(seed: int, round_: int, step: int, batch: int, count: int) -> NDArray[np.int64]:
    """Which of ``count`` images step ``step`` sees: int64 ``[batch]``.

    The steps walk through one permutation after another, so every image is seen once an epoch,
    also where the batch does not divide the count or is larger.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs, places = np.divmod(positions, count)
    out = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = _permutation(seed, round_, int(epoch), count)[places[here]]
    return out
