"""How a model is written down: the form of its weights, their type, the opset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ConfigError, expected

WEIGHTS = ("packed", "dense", "sparse")
DTYPES = ("float32", "float16")
OPSETS = range(17, 23)
"""17 came in 2022 (onnxruntime 1.12), 22 in 2024; runtimes load what is older than themselves."""

OPSET = 17


@dataclass(frozen=True, slots=True)
class Form:
    """Checks itself when made; raises `ConfigError`.

    ``weights``: ``packed``, gap bytes and values that the graph decodes at load; ``dense``;
    ``sparse``, the standard's own sparse constants, which few runtimes load. ``dtype``: what the
    trained values are rounded to, ``float32`` or ``float16``; whatever it is, inputs, outputs and
    all computation are float32. ``opset``: of `OPSETS`.
    """

    weights: str = "packed"
    dtype: str = "float32"
    opset: int = OPSET

    def __post_init__(self) -> None:
        for what, value, wanted in (
            ("weights", self.weights, WEIGHTS),
            ("dtype", self.dtype, DTYPES),
        ):
            if value not in wanted:
                raise ConfigError(expected(what, f"one of {', '.join(wanted)}", repr(value)))
        if type(self.opset) is not int or self.opset not in OPSETS:
            wanted_opset = f"an integer from {OPSETS[0]} to {OPSETS[-1]}"
            raise ConfigError(expected("opset", wanted_opset, repr(self.opset)))

    def stored(self, array: NDArray[np.float32]) -> NDArray[Any]:
        """``array`` as the file has it, float32 or float16.

        Values that float16 holds exactly, such as those of a ticket that was saved so, are stored
        so whatever ``dtype`` is, save in the dense form, which stands for the plain file.
        """
        if self.dtype == "float32" and self.weights == "dense":
            return array
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        return half if self.dtype == "float16" or np.array_equal(half, array) else array
