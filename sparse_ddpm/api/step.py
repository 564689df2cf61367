"""What a caller sees of images that are being drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.api.output import as_output
from sparse_ddpm.api.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A batch of images after one step of the sampler.

    ``index``: 0 to ``steps`` - 1. ``timestep``: the network's, falling. ``start``: where among all
    images of the call the first one here is; there are ``len(step.x)``. ``x``: the state, float32
    ``[k, C, H, W]``, noise at first and the images at last. ``x0``: what the network takes the
    images to be, the same shape, in [-1, 1] where the ticket clips. Both are read-only and stay as
    they are: keep them without copying.
    """

    index: int
    steps: int
    timestep: int
    start: int
    x: NDArray[np.float32]
    x0: NDArray[np.float32]

    @property
    def last(self) -> bool:
        """Whether ``x`` is now what `Sampler.sample` returns."""
        return self.index == self.steps - 1

    @overload
    def images(self, output: Literal["np"] = ...) -> NDArray[np.uint8]: ...
    @overload
    def images(self, output: Literal["float"]) -> NDArray[np.float32]: ...
    @overload
    def images(self, output: Literal["pil"]) -> list[Image]: ...
    @overload
    def images(self, output: Literal["torch"]) -> Tensor: ...
    @overload
    def images(self, output: str) -> Any: ...
    def images(self, output: str = "np") -> Any:
        """``x0`` as images, as `Sampler.sample` hands them out. A copy, yours to change."""
        return as_output(self.x0.copy(), output)


def make_step(
    request: Request, images: slice, index: int, x: NDArray[np.float32], x0: NDArray[np.float32]
) -> Step:
    """What the sampling loop yields for ``images`` of ``request``, to be shown."""
    table = request.table
    timestep = int(table.timesteps[index])
    return Step(index, table.steps, timestep, images.start, _frozen(x), _frozen(x0))


def _frozen(array: NDArray[np.float32]) -> NDArray[np.float32]:
    view = array.view()
    view.flags.writeable = False
    return view
