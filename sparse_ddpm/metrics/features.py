"""A small convolutional classifier in numpy, whose features images are compared by.

The network is trained by `sparse_ddpm.metrics.training`, with torch; judging needs none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import DataError, expected

INPUT_SIZE = 32
KERNELS = (5, 3, 3, 3)
STRIDES = (2, 2, 1, 2)
POOLED = 2
"""The last convolution's 4x4 pixels are averaged to so many a side."""
_BATCH = 64  # images at a time: their columns then stay in a core's cache


@dataclass(frozen=True, slots=True, eq=False)
class FeatureNet:
    """Four convolutions with ReLU, pooled to 2x2, a linear layer to D features, one to K classes.

    ``weights``, all float32, by name: ``conv0.weight`` to ``conv3.weight`` ``[k, k, I, O]``,
    ``features.weight`` ``[4 O, D]``, ``classes.weight`` ``[D, K]``, and for each a ``.bias``. The
    classes are read from ``relu(features)``. Raises `DataError` for weights that do not fit.
    """

    weights: Mapping[str, NDArray[np.float32]]

    def __post_init__(self) -> None:
        names = [f"conv{i}" for i in range(len(KERNELS))] + ["features", "classes"]
        wanted = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
        if set(self.weights) != wanted:
            odd = sorted(wanted ^ set(self.weights))[0]
            raise DataError(
                expected(
                    "feature weights",
                    f"{len(wanted)} tensors",
                    f"also {odd}" if odd in self.weights else f"no {odd}",
                )
            )
        inputs = _inputs(self.weights["conv0.weight"])
        for index, name in enumerate(names):
            weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
            kernel = (KERNELS[index],) * 2 if index < len(KERNELS) else ()
            if index == len(KERNELS):
                inputs *= POOLED**2
            shape = (*kernel, inputs, weight.shape[-1] if weight.ndim else 0)
            for array, form in ((weight, shape), (bias, shape[-1:])):
                if array.shape != form or array.dtype != np.float32 or 0 in form:
                    what = f"{name}.{'weight' if array is weight else 'bias'}"
                    found = f"{array.dtype} {list(array.shape)}"
                    raise DataError(expected(what, f"float32 {list(form)}", found))
                if not np.isfinite(array).all():
                    raise DataError(expected(name, "finite values", "nan or infinity"))
            inputs = shape[-1]
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))

    @property
    def channels(self) -> int:
        """Channels of the images: 1 or 3."""
        return int(self.weights["conv0.weight"].shape[2])

    @property
    def dimension(self) -> int:
        """Number of features."""
        return int(self.weights["features.weight"].shape[1])

    @property
    def classes(self) -> int:
        return int(self.weights["classes.weight"].shape[1])

    @property
    def digest(self) -> str:
        """SHA-256 of the weights: distances of two networks cannot be compared."""
        found = hashlib.sha256()
        for name in sorted(self.weights):
            found.update(self.weights[name].astype("<f4").tobytes())
        return found.hexdigest()

    def __call__(
        self, images: NDArray[np.uint8], progress: Callable[[int], object] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features ``[N, D]`` and logits ``[N, K]`` of uint8 images ``[N, H, H, C]``.

        Images of any size are brought to 32x32 first, see `resize_matrix`. ``progress`` is called
        with the number of images after each part. Raises `DataError` for another shape or kind.
        """
        size = images.shape[1] if images.ndim == 4 else 0
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, self.channels) or not size:
            wanted = f"uint8 [N, H, H, {self.channels}]"
            found = f"{images.dtype} {list(images.shape)}"
            raise DataError(expected("images", wanted, found))
        features = np.empty((len(images), self.dimension), dtype=np.float32)
        resize = resize_matrix(size)
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
            features[start : start + _BATCH] = self._features(resized(part, resize))
            if progress is not None:
                progress(len(part))
        logits = np.maximum(features, 0) @ self.weights["classes.weight"]
        return features, logits + self.weights["classes.bias"]

    def _features(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        for index, stride in enumerate(STRIDES):
            weight = self.weights[f"conv{index}.weight"]
            x = _convolve(x, weight, stride)
            x += self.weights[f"conv{index}.bias"]
            np.maximum(x, 0, out=x)
        n, height, width, channels = x.shape
        blocks = x.reshape(n, POOLED, height // POOLED, POOLED, width // POOLED, channels)
        pooled = blocks.mean(axis=(2, 4)).reshape(n, -1)
        result: NDArray[np.float32] = pooled @ self.weights["features.weight"]
        result += self.weights["features.bias"]
        return result


def _inputs(weight: NDArray[Any]) -> int:
    if weight.ndim != 4 or weight.shape[2] not in (1, 3):
        raise DataError(expected("conv0.weight", "[5, 5, 1 or 3, O]", list(weight.shape)))
    return int(weight.shape[2])


def _convolve(
    x: NDArray[np.float32], weight: NDArray[np.float32], stride: int
) -> NDArray[np.float32]:
    """Zero-padded convolution of ``[N, H, W, I]`` with ``[k, k, I, O]``."""
    kernel, _, inputs, outputs = weight.shape
    n, height, width, _ = x.shape
    pad = kernel // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = height // stride, width // stride
    taps = np.empty((n, rows, columns, kernel, kernel, inputs), dtype=np.float32)
    for i in range(kernel):
        for j in range(kernel):
            part = x[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
            taps[:, :, :, i, j] = part
    flat = taps.reshape(n * rows * columns, -1) @ weight.reshape(-1, outputs)
    return flat.reshape(n, rows, columns, outputs)


def resize_matrix(size: int) -> NDArray[np.float32] | None:
    """``[32, size]``: one axis of the resampling to 32 pixels; None where there is nothing to do.

    28 pixels, MNIST's own size, get a border of zeros, as the loader gives them for 32x32; any
    other size is resampled bilinearly, over a support as wide as an output pixel when shrinking.
    """
    if size == INPUT_SIZE:
        return None
    if size == INPUT_SIZE - 4:
        return np.eye(INPUT_SIZE, size, k=-2, dtype=np.float32)
    scale = size / INPUT_SIZE
    centres = (np.arange(INPUT_SIZE) + 0.5) * scale - 0.5
    distances = np.abs(np.arange(size) - centres[:, None]) / max(1.0, scale)
    weights = np.maximum(0, 1 - distances)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


def resized(images: NDArray[np.uint8], matrix: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """uint8 ``[N, H, H, C]`` to float32 ``[N, 32, 32, C]`` from 0 to 1."""
    x = images.astype(np.float32)
    x /= 255
    if matrix is None:
        return x
    wide = np.einsum("ij,njkc->nikc", matrix, x, optimize=True)
    tall: NDArray[np.float32] = np.einsum("ij,nkjc->nkic", matrix, wide, optimize=True)
    return tall
