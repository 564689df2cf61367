"""The plan of a Program for one GPU, batch size and dtype. A pure function: it runs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from sparse_ddpm_kernels.triton.layout import padded_images
from sparse_ddpm_kernels.triton.panel_tiles import norm_fits

from sparse_ddpm.engine.cuda.choose import KINDS, NORM_US, ConvChoice, choose_kernel, group_of
from sparse_ddpm.engine.cuda.memory import Memory, Stage, plan_memory
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
from sparse_ddpm.program.operations import inputs_of

DTYPES: Mapping[str, int] = MappingProxyType({"float16": 2, "bfloat16": 2, "float32": 4})
"""Precisions of activations and weights, and their bytes; sums are float32 in all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class ConvStep:
    """A convolution and what runs in the same kernel.

    ``source``: the value it reads; with ``stride`` 2 the input of a space to depth, which is read
    without being made. ``norm``: a group norm of its output, done before that is stored.
    ``moments``: mean and squares of the output are stored too, for the norm that follows.
    """

    operation: Conv
    choice: ConvChoice
    source: str
    stride: int = 1
    norm: NormAct | None = None
    moments: NormAct | None = None

    @property
    def out(self) -> str:
        return self.operation.out if self.norm is None else self.norm.out

    @property
    def residual(self) -> str | None:
        return self.operation.residual if self.norm is None else self.norm.residual


@dataclass(frozen=True, slots=True, eq=False)
class CudaStep:
    """What one kernel, or a few launched together, make of one or more ``operations``.

    ``flops``: what a convolution executes for one image. ``moments``: of a norm, that the
    convolution before gives them. ``copies``: of a concatenation, the inputs made elsewhere.
    """

    operations: tuple[Operation, ...]
    kernel: str
    reason: str
    flops: int = 0
    conv: ConvStep | None = None
    moments: bool = False
    copies: tuple[bool, bool] = (False, False)

    @property
    def operation(self) -> Operation:
        """The last one, which makes the step's value."""
        return self.operations[-1]

    @property
    def out(self) -> str:
        return self.operation.out


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
    strided = {} if keep_all else _strided(program)
    convs: dict[str, ConvStep] = {}
    for operation in program.operations:
        if isinstance(operation, Conv):
            convs[operation.out] = _conv(
                operation,
                program,
                images,
                dtype,
                strided.get(operation.out),
                keep_all,
                kernel,
                measured.get(operation.out),
            )
    inside = {before.out for before in strided.values()}
    inside |= {conv.operation.out for conv in convs.values() if conv.norm is not None}
    normed = {conv.norm.out: conv for conv in convs.values() if conv.norm is not None}
    given = {conv.moments.out for conv in convs.values() if conv.moments is not None}
    stages, steps = [], []
    for operation in program.operations:
        if operation.out in inside:
            continue
        conv = normed.get(operation.out, convs.get(operation.out))
        if conv is not None:
            step = _conv_step(conv, program, strided.get(conv.operation.out))
            inputs = (conv.source, *((conv.residual,) if conv.residual else ()))
            size = conv.operation.size
            stages.append(Stage(inputs, conv.out, conv.residual, conv.source, size))
        else:
            step = _step(operation, operation.out in given)
            stages.append(Stage.of(operation))
        steps.append(step)
    memory = plan_memory(program, stages, batch, keep_all)
    placed = tuple(_placed(step, memory) for step in steps)
    return CudaPlan(program, batch, dtype, images, memory, placed)


def _uses(program: Program) -> Counter[str]:
    uses = Counter(name for operation in program.operations for name in inputs_of(operation))
    uses[program.output] += 1
    return uses


def _strided(program: Program) -> dict[str, SpaceToDepth]:
    """By 1x1 convolution: the space to depth before it, where nothing else reads that."""
    uses = _uses(program)
    made = {op.out: op for op in program.operations if isinstance(op, SpaceToDepth)}
    return {
        op.out: made[op.x]
        for op in program.operations
        if isinstance(op, Conv) and op.size == 1 and op.x in made and uses[op.x] == 1
    }


def _conv(
    operation: Conv,
    program: Program,
    images: int,
    dtype: str,
    before: SpaceToDepth | None,
    keep_all: bool,
    kernel: str | None,
    measured: Mapping[str, float] | None,
) -> ConvStep:
    """Choose the kernel, and what it does besides."""
    out = operation.out
    channels, height, width = program.shapes[out]
    norm = next((op for op in program.operations if isinstance(op, NormAct) and op.x == out), None)
    alone = norm is not None and _uses(program)[out] == 1 and operation.residual is None

    def takes_norm(group: int) -> bool:
        if norm is None or not alone or keep_all or group <= 1:
            return False
        return norm_fits(height * width, group, channels // norm.groups)

    choice = choose_kernel(
        operation,
        program.shapes[out],
        images,
        dtype,
        force=kernel,
        measured=measured,
        extra_us={
            kind: 0.0 if norm is None or takes_norm(group_of(kind)) else NORM_US for kind in KINDS
        },
    )
    # cuDNN reads what has been made; our kernels read any layout.
    source, stride = operation.x, 1
    if before is not None:
        source, stride = before.x, 2
    if takes_norm(choice.group):
        return ConvStep(operation, choice, source, stride, norm=norm)
    moments = norm if norm is not None and choice.group > 1 else None
    return ConvStep(operation, choice, source, stride, moments=moments)


def _conv_step(conv: ConvStep, program: Program, before: SpaceToDepth | None) -> CudaStep:
    choice, operation = conv.choice, conv.operation
    _, height, width = program.shapes[operation.out]
    name = {0: "cuDNN, dense", 1: "single weights"}.get(choice.group, f"panels G={choice.group}")
    if before is not None:
        name += ", space to depth on the way"
    if conv.norm is not None:
        name += f", {_norm_name(conv.norm)}"
    elif conv.moments is not None:
        name += ", moments"
    rows = choice.group if choice.group else operation.weight.shape[0]
    operations: tuple[Operation, ...] = (operation,)
    if before is not None:
        operations = (before, *operations)
    if conv.norm is not None:
        operations = (*operations, conv.norm)
    flops = 2 * choice.entries * rows * height * width
    return CudaStep(operations, name, choice.reason, flops, conv)


def _norm_name(operation: NormAct) -> str:
    film, silu = operation.film is not None, operation.silu
    return " + ".join(["group norm", *["FiLM"] * film, *["SiLU"] * silu])


def _step(operation: Operation, moments: bool) -> CudaStep:
    match operation:
        case NormAct():
            why = (
                "moments come from the convolution: one pass"
                if moments
                else "moments are taken first"
            )
            return CudaStep((operation,), _norm_name(operation), why, moments=moments)
        case ChannelNorm():
            name, why = "channel norm", "all channels of some pixels at once"
        case Attention():
            name, why = "attention", "all scores of an image at once"
        case LinearAttention():
            name, why = "linear attention", "a context matrix a head, then its use"
        case SpaceToDepth():
            name, why = "space to depth", "a copy"
        case Upsample2x():
            name, why = "upsample", "a copy"
        case Add():
            name, why = "add", "neither input's operation could take it"
        case _:
            name, why = "none", "both inputs are made in place"
    return CudaStep((operation,), name, why)


def _placed(step: CudaStep, memory: Memory) -> CudaStep:
    """Concatenations, now that it is known where their inputs lie."""
    operation = step.operation
    if not isinstance(operation, Concat):
        return step
    out, a, b = (memory.places[name] for name in (operation.out, operation.a, operation.b))
    where = out.buffer, out.first
    copies = (a.buffer, a.first) != where, (b.buffer, b.first) != (where[0], where[1] + a.channels)
    if not any(copies):
        return step
    names = [name for name, c in zip((operation.a, operation.b), copies, strict=True) if c]
    why = f"{' and '.join(names)} already lies elsewhere"
    return replace(step, kernel="copy", reason=why, copies=copies)
