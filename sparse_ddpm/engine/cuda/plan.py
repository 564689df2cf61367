"""The plan of a Program for one GPU, batch size and dtype. A pure function: it runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sparse_ddpm_kernels.triton.layout import padded_images

from sparse_ddpm.engine.cuda.choose import ConvChoice, choose_kernel
from sparse_ddpm.engine.cuda.memory import Memory, plan_memory
from sparse_ddpm.errors import EngineError, expected
from sparse_ddpm.program import (
    Add,
    Attention,
    ChannelNorm,
    Concat,
    Conv,
    LinearAttention,
    NormAct,
    Operation,
    Program,
    SpaceToDepth,
    Upsample2x,
)

DTYPES: Mapping[str, int] = MappingProxyType({"float16": 2, "bfloat16": 2, "float32": 4})
"""Precisions of activations and weights, and their bytes; sums are float32 in all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class CudaStep:
    """One operation, its kernel and why. ``flops``: what a convolution executes for one image.

    ``moments``: the convolution also writes what the norm after it needs of its output; of that
    norm, that it is given them. ``copies``: of a concatenation, the inputs made elsewhere.
    """

    operation: Operation
    kernel: str
    reason: str
    flops: int = 0
    conv: ConvChoice | None = None
    moments: bool = False
    copies: tuple[bool, bool] = (False, False)

    @property
    def operations(self) -> tuple[Operation, ...]:
        return (self.operation,)


@dataclass(frozen=True, slots=True, eq=False)
class CudaPlan:
    """A Program at one batch size. ``images``: the batch padded to a multiple of 8."""

    program: Program
    batch: int
    dtype: str
    images: int
    memory: Memory
    steps: tuple[CudaStep, ...]

    @property
    def arena_bytes(self) -> int:
        """Bytes of all activations together."""
        return DTYPES[self.dtype] * self.memory.size


def make_cuda_plan(
    program: Program,
    batch: int = 1,
    dtype: str = "float16",
    *,
    keep_all: bool = False,
    kernel: str | None = None,
    measured: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> CudaPlan:
    """Lay out ``program`` for ``batch`` images of ``dtype``, one of `DTYPES`.

    ``kernel``: of every convolution, one of `sparse_ddpm.engine.cuda.choose.KINDS`; default the
    one of least time. ``measured``: by the convolution's output, microseconds by kind.
    ``keep_all``: every value keeps a buffer of its own. Raises `EngineError`.
    """
    if dtype not in DTYPES:
        raise EngineError(
            expected("dtype of the cuda engine", f"one of {', '.join(DTYPES)}", repr(dtype))
        )
    images = padded_images(batch)
    memory = plan_memory(program, batch, keep_all)
    convs = {
        op.out: choose_kernel(
            op,
            program.shapes[op.out],
            images,
            dtype,
            force=kernel,
            measured=measured.get(op.out),
        )
        for op in program.operations
        if isinstance(op, Conv)
    }
    normed = {
        op.x: op.out
        for op in program.operations
        if isinstance(op, NormAct) and op.x in convs and convs[op.x].group > 1
    }
    steps = tuple(_step(op, program, memory, convs, normed) for op in program.operations)
    return CudaPlan(program, batch, dtype, images, memory, steps)


def _step(
    operation: Operation,
    program: Program,
    memory: Memory,
    convs: Mapping[str, ConvChoice],
    normed: Mapping[str, str],
) -> CudaStep:
    match operation:
        case Conv(out=out):
            choice = convs[out]
            _, height, width = program.shapes[out]
            name = {0: "cuDNN, dense", 1: "single weights"}.get(
                choice.group, f"panels G={choice.group}"
            )
            moments = out in normed
            rows = max(choice.group, 1) if choice.group else operation.weight.shape[0]
            return CudaStep(
                operation,
                name + (", moments" if moments else ""),
                choice.reason,
                2 * choice.entries * rows * height * width,
                choice,
                moments,
            )
        case NormAct(film=film, silu=silu, x=x):
            parts = ["group norm", *["FiLM"] * (film is not None), *["SiLU"] * silu]
            given = normed.get(x) == operation.out
            why = (
                "moments come from the convolution: one pass"
                if given
                else "moments are taken first: two passes"
            )
            return CudaStep(operation, " + ".join(parts), why, moments=given)
        case ChannelNorm():
            return CudaStep(operation, "channel norm", "all channels of some pixels at once")
        case Attention():
            return CudaStep(operation, "attention", "all scores of an image at once")
        case LinearAttention():
            return CudaStep(operation, "linear attention", "a context matrix a head, then its use")
        case SpaceToDepth():
            return CudaStep(operation, "space to depth", "a copy")
        case Upsample2x():
            return CudaStep(operation, "upsample", "a copy")
        case Add():
            return CudaStep(operation, "add", "neither input's operation could take it")
        case Concat():
            copies = concat_copies(operation, memory)
            if not any(copies):
                return CudaStep(operation, "none", "both inputs are made in place")
            names = [name for name, c in zip((operation.a, operation.b), copies, strict=True) if c]
            why = f"{' and '.join(names)} already lies elsewhere"
            return CudaStep(operation, "copy", why, copies=copies)


def concat_copies(operation: Concat, memory: Memory) -> tuple[bool, bool]:
    """Whether ``a``, and whether ``b``, has to be copied into the concatenation."""
    out, a, b = (memory.places[name] for name in (operation.out, operation.a, operation.b))
    where = out.buffer, out.first
    return (a.buffer, a.first) != where, (b.buffer, b.first) != (where[0], where[1] + a.channels)
