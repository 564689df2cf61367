"""Our operations as torch knows them, and what its FLOP counter makes of them.

A kernel of Triton is no operation of torch: no counter or profiler of dispatched operations sees
it. While one listens (any ``TorchDispatchMode``, such as ``FlopCounterMode``), the engine therefore
makes its steps launch by launch, and each launch that multiplies goes through an operation of
``torch.ops.sparse_ddpm`` with a formula in torch's registry. Else nothing of this runs.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from sparse_ddpm.engine.cuda.plan import CudaPlan, CudaStep
from sparse_ddpm.program import Attention, LinearAttention

Launch = Callable[[], None]

KINDS = (
    "panel_conv",
    "element_conv",
    "dense_conv",
    "attention",
    "linear_attention",
    "linear_block",
)
"""The operations: convolutions by kernel, attentions, and linear attention with its norms and
convolutions. Each has the schema ``(Tensor x, Tensor(a!) out, int flops, int launch) -> ()``."""


def listening() -> bool:
    """Whether anything in this thread watches torch's operations."""
    return bool(is_in_torch_dispatch_mode())


class Counted:
    """Launches of one step of a plan, as an operation of torch. Lives as long as its engine.

    ``flops``: what they execute for the whole batch, padding and filled-in zeros included.
    """

    def __init__(
        self, kind: str, x: torch.Tensor, out: torch.Tensor, flops: int, launches: Sequence[Launch]
    ) -> None:
        self._operation = getattr(torch.ops.sparse_ddpm, kind).default
        self._arguments = x, out, flops
        self._launches = tuple(launches)
        self._number = next(_numbers)
        _known[self._number] = self

    def __call__(self) -> None:
        self._operation(*self._arguments, self._number)

    def launch(self) -> None:
        for launch in self._launches:
            launch()


_numbers = itertools.count()
_known: weakref.WeakValueDictionary[int, Counted] = weakref.WeakValueDictionary()


def counted_kind(step: CudaStep) -> str | None:
    """Which of `KINDS` a step is; None where it multiplies nothing that counts."""
    if step.block is not None:
        return "linear_block"
    if step.conv is not None:
        group = step.conv.choice.group
        return {0: "dense_conv", 1: "element_conv"}.get(group, "panel_conv")
    match step.operation:
        case Attention():
            return "attention"
        case LinearAttention():
            return "linear_attention"
        case _:
            return None


def step_flops(plan: CudaPlan, step: CudaStep) -> int:
    """What ``step`` executes for all images, those that fill the last vector included."""
    flops = step.flops
    match step.operation:
        case Attention(qkv=qkv, heads=heads, dim_head=dim):
            _, height, width = plan.program.shapes[qkv]
            flops = 4 * heads * dim * (height * width) ** 2
        case LinearAttention(qkv=qkv, heads=heads, dim_head=dim):
            _, height, width = plan.program.shapes[qkv]
            flops = 4 * heads * dim * dim * height * width
        case _:
            pass
    return plan.images * flops


def _register(kind: str) -> None:
    def run(x: torch.Tensor, out: torch.Tensor, flops: int, launch: int) -> None:
        _known[launch].launch()

    def fake(x: torch.Tensor, out: torch.Tensor, flops: int, launch: int) -> None:
        return None

    def count(x: object, out: object, flops: int, launch: int, **_: object) -> int:
        return flops

    schema = "(Tensor x, Tensor(a!) out, int flops, int launch) -> ()"
    operation = torch.library.custom_op(
        f"sparse_ddpm::{kind}", run, mutates_args=("out",), schema=schema
    )
    operation.register_fake(fake)
    register_flop_formula(getattr(torch.ops.sparse_ddpm, kind))(count)


for _kind in KINDS:
    _register(_kind)
