"""Fréchet Inception distance through torch-fidelity, an optional extra."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import DataError, MissingDependencyError, expected

FEATURES = 2048


def inception_distance(
    samples: NDArray[np.uint8],
    real: NDArray[np.uint8],
    weights: Path | None = None,
    *,
    batch_size: int = 64,
) -> float:
    """FID of uint8 ``[N, H, W, C]`` against ``[M, H, W, C]``; grey is repeated into three colours.

    ``weights``: torch-fidelity's Inception weights, which it downloads where none are given. Runs
    on a GPU where there is one. Raises `MissingDependencyError` without torch-fidelity, `DataError`
    for other shapes or no more images than Inception's 2048 features.
    """
    for what, images in (("samples", samples), ("real images", real)):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            kind = f"{images.dtype} {list(images.shape)}"
            raise DataError(expected(what, "uint8 [N, H, W, 1 or 3]", kind))
        if len(images) <= FEATURES:
            raise DataError(expected(what, f"more than {FEATURES} images", len(images)))
    fidelity, torch = require()
    if weights is not None and not weights.is_file():
        raise DataError(expected(f"{weights}", "a file of Inception weights", "no such file"))
    found: dict[str, float] = fidelity.calculate_metrics(
        input1=_pictures(samples, torch),
        input2=_pictures(real, torch),
        fid=True,
        batch_size=batch_size,
        cuda=torch.cuda.is_available(),
        cache=False,
        save_cpu_ram=True,
        verbose=False,
        feature_extractor_weights_path=None if weights is None else str(weights),
    )
    return float(found["frechet_inception_distance"])


def require() -> tuple[Any, Any]:
    """The modules torch_fidelity and torch, or `MissingDependencyError`."""
    try:
        return importlib.import_module("torch_fidelity"), importlib.import_module("torch")
    except ImportError as error:
        wanted = 'torch-fidelity (pip install "sparse-ddpm[inception]")'
        raise MissingDependencyError(expected("Inception distance", wanted, str(error))) from error


def _pictures(images: NDArray[np.uint8], torch: Any) -> Any:
    """A torch data set of uint8 ``[3, H, W]``."""

    class Pictures(torch.utils.data.Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> Any:
            picture = np.broadcast_to(images[index], (*images.shape[1:3], 3))
            return torch.from_numpy(picture.transpose(2, 0, 1).copy())

    return Pictures()
