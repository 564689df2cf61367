"""A judge: the feature network, and what it found on real images, in one small file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sparse_ddpm.errors import DataError, expected
from sparse_ddpm.files import write_atomically
from sparse_ddpm.metrics.features import INPUT_SIZE, FeatureNet
from sparse_ddpm.metrics.fidelity import class_histogram
from sparse_ddpm.metrics.frechet import Statistics, statistics

SPLITS = ("train", "test")
_FORMAT = "sparse-ddpm judge 1"
_STATISTICS = ("mean", "covariance", "classes")


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Real images as a judge sees them: statistics of features, and shares ``[K]`` of classes."""

    statistics: Statistics
    classes: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """``references`` are known by split, ``train`` or ``test``, and image size.

    ``dataset`` is the name of the data it learnt, ``accuracy`` its share of right answers there on
    test images, by image size. Raises `DataError` for references of another network.
    """

    network: FeatureNet
    dataset: str
    accuracy: Mapping[int, float]
    references: Mapping[tuple[str, int], Reference]

    def __post_init__(self) -> None:
        network = self.network
        for (split, size), found in self.references.items():
            what = f"reference {split} {size}"
            if split not in SPLITS or size < 1:
                raise DataError(expected(what, "train or test, and an image size", "another"))
            if found.statistics.dimension != network.dimension:
                wanted = f"{network.dimension} features"
                raise DataError(expected(what, wanted, found.statistics.dimension))
            shares = found.classes
            if shares.shape != (network.classes,) or not np.isclose(shares.sum(), 1, atol=1e-6):
                wanted = f"the shares of {network.classes} classes"
                raise DataError(expected(what, wanted, f"{list(shares.shape)}, others"))
        for name in ("accuracy", "references"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def reference(self, split: str, size: int) -> Reference:
        """What is known of real images of this size. Raises `DataError` where that is nothing."""
        # 28 pixels are 32 without a border of zeros: the network sees the same image.
        key = (split, INPUT_SIZE if size == INPUT_SIZE - 4 else size)
        if key not in self.references:
            known = [f"{split} {size}x{size}" for split, size in sorted(self.references)]
            wanted = f"{' or '.join(known)}, or the data itself as the reference"
            raise DataError(expected("reference statistics", wanted, f"{split} {size}x{size}"))
        return self.references[key]


def measure(
    network: FeatureNet,
    images: NDArray[np.uint8],
    progress: Callable[[int], object] | None = None,
) -> Reference:
    """The `Reference` that images uint8 ``[N, H, H, C]`` make. Raises `DataError`."""
    features, logits = network(images, progress)
    return Reference(statistics(features), class_histogram(logits))


def shipped_judge() -> Judge:
    """The judge of MNIST that comes with the package, for 16x16, 28x28 and 32x32 images."""
    return load_judge(Path(__file__).parents[1] / "assets" / "mnist-judge-16-32.safetensors")


def save_judge(judge: Judge, path: Path) -> None:
    """Write one safetensors file, whole or not at all: float16 weights, float32 statistics.

    Raises `DataError` for weights that float16 does not hold exactly.
    """
    tensors: dict[str, NDArray[Any]] = {}
    counts: dict[str, int] = {}
    for name, weight in judge.network.weights.items():
        tensors[name] = weight.astype(np.float16)
        if not np.array_equal(tensors[name].astype(np.float32), weight):
            raise DataError(expected(name, "weights rounded to float16", "others"))
    upper = np.triu_indices(judge.network.dimension)
    for (split, size), found in judge.references.items():
        key = f"{split}.{size}"
        counts[key] = found.statistics.count
        values = (found.statistics.mean, found.statistics.covariance[upper], found.classes)
        for kind, value in zip(_STATISTICS, values, strict=True):
            tensors[f"{key}.{kind}"] = value.astype(np.float32)
    accuracy = {str(size): value for size, value in judge.accuracy.items()}
    about = {"dataset": judge.dataset, "accuracy": accuracy, "counts": counts}
    # One key: safetensors writes several in an order that changes from call to call.
    metadata = {_FORMAT: json.dumps(about)}
    write_atomically(path, lambda file: file.write(save(tensors, metadata)), DataError)


def load_judge(path: Path) -> Judge:
    """Read what `save_judge` wrote; raise `DataError` for anything else."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(expected(str(path), "a judge's file", error)) from error
    if set(metadata) != {_FORMAT}:
        found = ", ".join(sorted(metadata)) or "nothing"
        raise DataError(expected(f"{path}: format", _FORMAT, found))
    try:
        about = json.loads(metadata[_FORMAT])
        counts = {str(key): int(count) for key, count in about["counts"].items()}
        keys = {key: _split_size(key) for key in counts}
        accuracy = {int(size): float(value) for size, value in about["accuracy"].items()}
        dataset = str(about["dataset"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(expected(f"{path}: metadata", "a judge's", repr(error))) from error
    references: dict[tuple[str, int], Reference] = {}
    for key, known_as in keys.items():
        parts = []
        for kind in _STATISTICS:
            part = tensors.pop(f"{key}.{kind}", None)
            if part is None or part.dtype != np.float32 or part.ndim != 1:
                raise DataError(expected(f"{path}: {key}.{kind}", "float32 [L]", "no such tensor"))
            parts.append(part.astype(np.float64))
        mean, packed, classes = parts
        covariance = _unpacked(packed, len(mean), f"{path}: {key}.covariance")
        references[known_as] = Reference(Statistics(counts[key], mean, covariance), classes)
    weights = {name: value.astype(np.float32) for name, value in tensors.items()}
    return Judge(FeatureNet(weights), dataset, accuracy, references)


def _split_size(key: str) -> tuple[str, int]:
    split, _, size = key.partition(".")
    return split, int(size)


def _unpacked(packed: NDArray[np.float64], size: int, what: str) -> NDArray[np.float64]:
    """A symmetric matrix from its upper triangle, row by row."""
    if len(packed) != size * (size + 1) // 2:
        raise DataError(expected(what, f"{size * (size + 1) // 2} values", len(packed)))
    matrix = np.zeros((size, size))
    rows, columns = np.triu_indices(size)
    matrix[rows, columns] = packed
    matrix[columns, rows] = packed
    return matrix
