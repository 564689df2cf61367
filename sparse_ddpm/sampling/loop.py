"""The sampling loop: one body for every sampler, the rows of a `Table` as its coefficients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_ddpm.errors import ConfigError, EngineError, expected
from sparse_ddpm.sampling.noise import normal
from sparse_ddpm.sampling.table import Table

Images = NDArray[np.float32]
Denoise = Callable[[Images, int], Images]
Callback = Callable[[int, Images], object]


def sample_loop(
    denoise: Denoise,
    table: Table,
    *,
    seed: int | ArrayLike,
    image_indices: ArrayLike,
    shape: Sequence[int],
    callback: Callback | None = None,
) -> Images:
    """Make images ``image_indices`` ``[N]`` of ``seed``: float32 ``[N, *shape]``.

    They lie in [-1, 1] where the table clips. ``callback(step, x)`` sees the state after each step.
    Arguments and errors: see `sample_steps`.
    """
    x = np.empty((0, *shape), np.float32)
    for step, x, _ in sample_steps(
        denoise, table, seed=seed, image_indices=image_indices, shape=shape
    ):
        if callback is not None:
            callback(step, x)
    # The last row of a table is x0 itself, so x is clipped already.
    return x


def sample_steps(
    denoise: Denoise,
    table: Table,
    *,
    seed: int | ArrayLike,
    image_indices: ArrayLike,
    shape: Sequence[int],
) -> Iterator[tuple[int, Images, Images]]:
    """As `sample_loop`, step by step: its number, the state x after it, and the estimate of x0.

    ``seed``: one for all images, or one each ``[N]``. ``denoise(x, step)`` is given the state,
    float32 ``[N, *shape]``, and the row of the table, and returns the network's output, of the same
    shape; it may return the same buffer every time. x and x0 are new arrays in each step, to be
    read, not written. Image i of a seed does not depend on which others are made with it. No images
    make no steps. Raises `ConfigError` for settings and `EngineError` for an output of another
    shape or one that is not finite.
    """
    x = normal(seed, image_indices, 0, shape)
    if not len(x):
        return
    columns = (table.p, table.q, table.r, table.s, table.w, table.u, table.v)
    x0 = x  # of no row yet: v is 0 in the first
    for step, (p, q, r, s, w, u, v) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        n = np.asarray(denoise(x, step), dtype=np.float32)
        if n.shape != x.shape:
            raise EngineError(expected(f"network output in step {step}", x.shape, n.shape))
        if not np.isfinite(n).all():
            what = f"network output in step {step}"
            raise EngineError(expected(what, "finite values", "NaN or infinity"))
        previous = x0
        x0 = q * n
        if p != 0:
            x0 += p * x
        if table.clip:
            np.clip(x0, -1.0, 1.0, out=x0)
        following = r * x0
        if s != 0:
            following += s * x
        if w != 0:
            following += w * n
        if u != 0:
            following += u * normal(seed, image_indices, step + 1, shape)
        if v != 0:
            following += v * previous
        x = following
        yield step, x, x0


def to_uint8(x: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Images ``[N, C, H, W]`` in [-1, 1] to uint8 ``[N, H, W, C]``, rounded to the nearest level.

    What lies outside the range becomes 0 or 255. Raises `ConfigError` for another number of axes.
    """
    if x.ndim != 4:
        raise ConfigError(expected("images", "shape [N, C, H, W]", x.shape))
    levels = np.rint(np.clip((x + 1.0) * 127.5, 0.0, 255.0)).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))
