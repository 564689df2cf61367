"""A sound container whose content is wrong: fields, shapes, encodings, values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from damage_base import (
    BIAS,
    BITS,
    DENSE,
    GAPS,
    Content,
    damage_edit,
    damage_field,
    damage_tensor,
)

damage_edit("wrong format name", "format", lambda c: c.update(format="other-ticket"))
damage_edit("no format", "format", lambda c: c.pop("format"))
damage_edit("format is a tensor", "format", lambda c: c.update(format=np.zeros(3, np.uint8)))
damage_edit("older version", "version", lambda c: c.update(version=0))
damage_edit("newer version", "please upgrade", lambda c: c.update(version=2))
damage_edit("version is a string", "version", lambda c: c.update(version="1"))
damage_edit("version is a bool", "version", lambda c: c.update(version=True))
damage_edit("no version", "version", lambda c: c.pop("version"))
damage_edit("missing section", "'provenance'", lambda c: c.pop("provenance"))
damage_edit("unknown section", "'licence'", lambda c: c.update(licence="none"))
damage_edit("section is a list", "diffusion", lambda c: c.update(diffusion=[1, 2]))
damage_field("unknown family", "architecture.family", "architecture", "family", "transformer")
damage_field("unknown field", "'depth'", "architecture", "depth", 4)
damage_edit("missing field", "'heads'", lambda c: c["architecture"].pop("heads"))
damage_field("dim is a bool", "architecture.dim", "architecture", "dim", True)
damage_field("dim is a float", "architecture.dim", "architecture", "dim", 6.0)
damage_field("dim is long text", "architecture.dim", "architecture", "dim", "6" * 100_000)
damage_field("dim is a table", "architecture.dim", "architecture", "dim", {"dim": 6})
damage_field("dim is zero", "architecture.dim", "architecture", "dim", 0)
damage_field("dim is huge", "architecture.dim", "architecture", "dim", 2**100)
damage_field("dim_mults empty", "dim_mults", "architecture", "dim_mults", [])
damage_field("dim_mults endless", "dim_mults", "architecture", "dim_mults", [1] * 10_000)
damage_field("dim_mults of strings", "dim_mults", "architecture", "dim_mults", ["1", "2"])
damage_field("groups do not divide", "groups=4", "architecture", "groups", 4)
damage_field("image size does not halve", "image_size", "architecture", "image_size", 7)
damage_field("image of another size", "image.size", "image", "size", 16)
damage_field("image of another depth", "image.channels", "image", "channels", 3)
damage_field("image range of integers", "image.range", "image", "range", [-1, 1])
damage_field("image range of 0 to 1", "image.range", "image", "range", [0.0, 1.0])
damage_field("bad schedule", "diffusion.schedule", "diffusion", "schedule", "quadratic")
damage_field("bad objective", "diffusion.objective", "diffusion", "objective", "score")
damage_field("timesteps 0", "diffusion.timesteps", "diffusion", "timesteps", 0)
damage_field("clip is an integer", "diffusion.clip", "diffusion", "clip", 1)
damage_field("sparsity is NaN", "provenance.sparsity", "provenance", "sparsity", float("nan"))
damage_field("metric is a string", "provenance.metrics", "provenance", "metrics", {"loss": "low"})
damage_field("pattern unknown", "pattern", "provenance", "pattern", "stripe:3")


def _enormous(content: Content) -> None:
    content["architecture"].update(dim=16_384, dim_mults=[1] * 8, groups=1, image_size=1024)
    content["image"]["size"] = 1024


damage_edit("architecture of terabytes", "parameters", _enormous)


def _rename(content: Content) -> None:
    content["tensors"]["renamed"] = content["tensors"].pop(GAPS)


damage_edit("missing tensor", f"'{GAPS}'", lambda c: c["tensors"].pop(GAPS))
damage_edit("extra tensor", "'more'", lambda c: c["tensors"].update(more=c["tensors"][GAPS]))
damage_edit("renamed tensor", "'renamed'", _rename)
damage_edit("tensor is a number", DENSE, lambda c: c["tensors"].update({DENSE: 3}))
damage_edit("tensor is bare", DENSE, lambda c: c["tensors"].update({DENSE: np.zeros((6, 1, 7, 7))}))
damage_edit("no tensors", "tensors", lambda c: c.update(tensors={}))
damage_tensor("wrong shape", GAPS, " shape", lambda t: t.update(shape=[6, 6, 3, 4]))
damage_tensor("transposed shape", DENSE, " shape", lambda t: t.update(shape=[1, 6, 7, 7]))
damage_tensor("huge shape", GAPS, " shape", lambda t: t.update(shape=[2**40, 2**40, 3, 3]))
damage_tensor("negative shape", GAPS, " shape", lambda t: t.update(shape=[-6, -6, 3, 3]))
damage_tensor("shape of floats", GAPS, " shape", lambda t: t.update(shape=[6.0, 6.0, 3.0, 3.0]))
damage_tensor("shape is a tensor", GAPS, " shape", lambda t: t.update(shape=np.array([6, 6, 3, 3])))
damage_tensor("wrong dtype", DENSE, " dtype", lambda t: t.update(dtype="float64"))
damage_tensor("unknown encoding", GAPS, " encoding", lambda t: t.update(encoding="huffman"))
damage_tensor("encoding without its array", GAPS, "", lambda t: t.pop("gaps"))
damage_tensor("encoding with another array", GAPS, "", lambda t: t.update(mask=t["gaps"]))
damage_tensor("stored unknown", GAPS, " stored", lambda t: t.update(stored="bfloat16"))
damage_tensor("stored differs", GAPS, " values", lambda t: t.update(stored="float16"))
damage_tensor("fp64 values", DENSE, " values", lambda t: t.update(values=t["values"].astype("f8")))
damage_tensor(
    "fp64 throughout",
    DENSE,
    " stored",
    lambda t: t.update(values=t["values"].astype("f8"), stored="float64"),
)
damage_tensor("values are a list", DENSE, " values", lambda t: t.update(values=[0.5, 0.5]))
damage_tensor("dense values flat", DENSE, " values", lambda t: t.update(values=t["values"].ravel()))


def _append(key: str, value: int) -> Callable[[Content], None]:
    def append(tensor: Content) -> None:
        tensor[key] = np.append(tensor[key], tensor[key].dtype.type(value))

    return append


def _flip_mask(at: int, bit: int) -> Callable[[Content], None]:
    def flip(tensor: Content) -> None:
        tensor["mask"][at] ^= bit

    return flip


def _land_past_the_end(tensor: Content) -> None:
    """Move the last of the 324 possible survivors to index 324; no gap here is as long as 255."""
    gaps = tensor["gaps"]
    last = int(gaps.sum(dtype=int)) + len(gaps) - 1
    gaps[-1] += 324 - last


damage_tensor("NaN", GAPS, "", lambda t: t["values"].__setitem__(0, np.nan))
damage_tensor("infinity", BITS, "", lambda t: t["values"].__setitem__(-1, np.inf))
damage_tensor("NaN in a bias", BIAS, "", lambda t: t["values"].__setitem__(0, np.nan))
damage_tensor(
    "fp16 infinity",
    DENSE,
    "",
    lambda t: t.update(values=np.full((6, 1, 7, 7), np.inf, np.float16), stored="float16"),
)
damage_tensor(
    "value too many",
    GAPS,
    " gaps",
    _append("values", 1),
)
damage_tensor("value too few", BITS, " mask", lambda t: t.update(values=t["values"][1:]))
damage_tensor("values in two axes", GAPS, " values", lambda t: t.update(values=t["values"][None]))
damage_tensor("gap byte too many", GAPS, " gaps", _append("gaps", 0))
damage_tensor("gap byte too few", GAPS, " gaps", lambda t: t.update(gaps=t["gaps"][:-1]))
damage_tensor("no gap bytes", GAPS, " gaps", lambda t: t.update(gaps=t["gaps"][:0]))
damage_tensor(
    "gaps end in a skip",
    GAPS,
    " gaps",
    _append("gaps", 255),
)
damage_tensor("index out of range", GAPS, " gaps", lambda t: t["gaps"].fill(200))
damage_tensor(
    "index out of range by one",
    GAPS,
    " gaps",
    _land_past_the_end,
)
damage_tensor("gaps in two axes", GAPS, " gaps", lambda t: t.update(gaps=t["gaps"][None]))
damage_tensor("gaps of int64", GAPS, " gaps", lambda t: t.update(gaps=t["gaps"].astype(np.int64)))
damage_tensor("padding bit set", BITS, " mask", _flip_mask(-1, 128))
damage_tensor("mask bit flipped", BITS, " mask", _flip_mask(0, 1))
damage_tensor("mask too long", BITS, " mask", _append("mask", 0))
damage_tensor("mask too short", BITS, " mask", lambda t: t.update(mask=t["mask"][:-1]))


def _mask_a_bias(content: Content) -> None:
    content["tensors"][BIAS] = {
        "shape": [6],
        "dtype": "float32",
        "encoding": "bitmask",
        "stored": "float32",
        "mask": np.array([1], np.uint8),
        "values": np.ones(1, np.float32),
    }


damage_edit("mask on a bias", BIAS, _mask_a_bias)
