"""The plan of a Program for one GPU, batch size and dtype. A pure function: it runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from sparse_ddpm_kernels.triton.layout import MOST_DIM, padded_images
from sparse_ddpm_kernels.triton.linear_block_pack import (
    MOST_EXPONENT,
    exponent_bound,
    linear_block_fits,
)
from sparse_ddpm_kernels.triton.panel_tiles import norm_fits

from sparse_ddpm.engine.cuda.choose import KINDS, NORM_US, ConvChoice, choose_kernel, group_of
from sparse_ddpm.engine.cuda.memory import Memory, Stage, plan_memory
from sparse_ddpm.engine.fuse import Five, linear_attentions
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
from sparse_ddpm.program.program import Shape

DTYPES: Mapping[str, int] = MappingProxyType({"float16": 2, "bfloat16": 2, "float32": 4})
"""Precisions of activations and weights, and their bytes; sums are float32 in all of them."""


Before = SpaceToDepth | Upsample2x
"""What a convolution can read without its being made."""


@dataclass(frozen=True, slots=True, eq=False)
class ConvStep:
    """A convolution and what runs in the same kernel.

    ``before``: a space to depth or an upsampling whose result is read without being made.
    ``norm``: a group norm of its output, done before that is stored. ``moments``: mean and squares
    of the output are stored too, for the norm that follows.
    """

    operation: Conv
    choice: ConvChoice
    before: Before | None = None
    norm: NormAct | None = None
    moments: NormAct | None = None

    @property
    def source(self) -> str:
        """The value that is read."""
        return self.operation.x if self.before is None else self.before.x

    @property
    def stride(self) -> int:
        """Pixels of the source, across, for one of what is read."""
        return 2 if isinstance(self.before, SpaceToDepth) else 1

    @property
    def scale(self) -> int:
        """Pixels of what is read, across, for one of the source."""
        return 2 if isinstance(self.before, Upsample2x) else 1

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All that is done, in the Program's order."""
        parts = (self.before, self.operation, self.norm)
        return tuple(part for part in parts if part is not None)

    @property
    def out(self) -> str:
        return self.operation.out if self.norm is None else self.norm.out

    @property
    def residual(self) -> str | None:
        return self.operation.residual if self.norm is None else self.norm.residual


@dataclass(frozen=True, slots=True, eq=False)
class CudaStep:
    """What one kernel, or a few launched together, make of one or more ``operations``.

    ``flops``: what convolutions execute for one image, the last trip of a kernel's loop whole.
    ``moments``: of a norm, that the convolution before gives them. ``copies``: of a concatenation,
    the inputs made elsewhere. ``block``: a linear attention with the norms and convolutions around
    it.
    """

    operations: tuple[Operation, ...]
    kernel: str
    reason: str
    flops: int = 0
    conv: ConvStep | None = None
    moments: bool = False
    copies: tuple[bool, bool] = (False, False)
    block: Five | None = None

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
    before = {} if keep_all else _before(program)
    uses = program.uses()
    norms = {op.x: op for op in program.operations if isinstance(op, NormAct)}
    blocks = {} if keep_all or kernel is not None else _blocks(program)
    within = {op.out for block in blocks.values() for op in block}
    convs: dict[str, ConvStep] = {}
    for operation in program.operations:
        if isinstance(operation, Conv) and operation.out not in within:
            norm = norms.get(operation.out)
            convs[operation.out] = _conv(
                operation,
                program.shapes[operation.out],
                images,
                dtype,
                before=before.get(operation.out),
                norm=norm,
                alone=not keep_all and uses[operation.out] == 1,
                kernel=kernel,
                measured=measured.get(operation.out),
            )
    inside = {op.out for conv in convs.values() for op in conv.operations[:-1]}
    inside |= within - blocks.keys()
    normed = {conv.norm.out: conv for conv in convs.values() if conv.norm is not None}
    given = {conv.moments.out for conv in convs.values() if conv.moments is not None}
    stages, steps = [], []
    for operation in program.operations:
        if operation.out in inside:
            continue
        conv = normed.get(operation.out, convs.get(operation.out))
        if conv is not None:
            step = _conv_step(conv, program)
            inputs = (conv.source, *((conv.residual,) if conv.residual else ()))
            size = conv.operation.size
            stages.append(Stage(inputs, conv.out, conv.residual, conv.source, size))
        elif operation.out in blocks:
            step = _block_step(blocks[operation.out], program)
            x = blocks[operation.out][0].x
            stages.append(Stage((x,), operation.out, x))
        else:
            step = _step(operation, operation.out in given)
            stages.append(Stage.of(operation))
        steps.append(step)
    memory = plan_memory(program, stages, batch, keep_all)
    placed = tuple(_placed(step, memory) for step in steps)
    return CudaPlan(program, batch, dtype, images, memory, placed)


def _before(program: Program) -> dict[str, Before]:
    """By convolution: what could be read without being made, as nothing else reads it."""
    uses = program.uses()
    made = {op.out: op for op in program.operations if isinstance(op, SpaceToDepth | Upsample2x)}
    return {
        op.out: made[op.x]
        for op in program.operations
        if isinstance(op, Conv)
        and op.x in made
        and uses[op.x] == 1
        and (op.size == 1 or isinstance(made[op.x], Upsample2x))
    }


def _blocks(program: Program) -> dict[str, Five]:
    """Linear attentions that one kernel after another runs without storing what lies between."""
    found = {}
    for out, five in linear_attentions(program).items():
        norm, qkv, mix, _, last = five
        gain, weight = norm.gain, qkv.weight.to_dense()
        if (
            qkv.bias is None
            and last.residual in (None, norm.x)
            and linear_block_fits(program.shapes[norm.x][0], mix.heads, mix.dim_head)
            and exponent_bound(gain, weight) <= MOST_EXPONENT
        ):
            found[out] = five
    return found


def _block_step(five: Five, program: Program) -> CudaStep:
    norm, qkv, mix, project, _ = five
    channels, height, width = program.shapes[norm.x]
    hidden, dim = mix.heads * mix.dim_head, mix.dim_head
    flops = 2 * hidden * (4 * channels + 2 * dim) * height * width
    stored = (qkv.weight.nnz + project.weight.nnz) / (4 * hidden * channels)
    why = (
        f"{stored:.1%} stored, runs dense: its time is that of memory, which sees its input and "
        "its output alone"
    )
    return CudaStep(five, "fused linear attention", why, flops, block=five)


def _conv(
    operation: Conv,
    shape: Shape,
    images: int,
    dtype: str,
    *,
    before: Before | None,
    norm: NormAct | None,
    alone: bool,
    kernel: str | None,
    measured: Mapping[str, float] | None,
) -> ConvStep:
    """Choose the kernel, and what it does besides.

    ``norm``: one that reads the output; ``alone``: it may be made without storing that.
    """
    channels, height, width = shape

    def takes_norm(group: int) -> bool:
        if norm is None or not alone or operation.residual is not None or group <= 1:
            return False
        return norm_fits(height * width, group, channels // norm.groups)

    choice = choose_kernel(
        operation,
        shape,
        images,
        dtype,
        force=kernel,
        measured=measured,
        extra_us={
            kind: 0.0 if norm is None or takes_norm(group_of(kind)) else NORM_US for kind in KINDS
        },
    )
    # cuDNN reads what has been made; panels that upsample leave a norm to others.
    if isinstance(before, Upsample2x) and (choice.group == 0 or norm is not None):
        before = None
    if takes_norm(choice.group):
        return ConvStep(operation, choice, before, norm=norm)
    moments = norm if norm is not None and choice.group > 1 else None
    return ConvStep(operation, choice, before, moments=moments)


def _conv_step(conv: ConvStep, program: Program) -> CudaStep:
    choice, operation = conv.choice, conv.operation
    _, height, width = program.shapes[operation.out]
    name = {0: "cuDNN, dense", 1: "single weights"}.get(choice.group, f"panels G={choice.group}")
    if conv.before is not None:
        what = "space to depth" if conv.stride > 1 else "upsampled"
        name += f", {what} on the way"
    if conv.norm is not None:
        name += f", {_norm_name(conv.norm)}"
    elif conv.moments is not None:
        name += ", moments"
    rows = choice.group if choice.group else operation.weight.shape[0]
    flops = 2 * choice.executed * rows * height * width
    return CudaStep(conv.operations, name, choice.reason, flops, conv)


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
        case Attention(memory=memory) | LinearAttention(memory=memory) if memory is not None:
            what = f"{operation.out} on the cuda engine"
            raise EngineError(expected(what, "attention without memory", "memory"))
        case Attention(dim_head=dim) if dim > MOST_DIM:
            name, why = "attention, torch", f"{dim} channels of a head; our kernel has {MOST_DIM}"
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
