"""torch as a user would write it for speed: eager or compiled, float32 or bfloat16.

Weights and activations are channels-last, FiLM is folded into the norms' factors beforehand (see
`source.folded_table`), and every operation of the Program is one call of torch's own kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sparse_ddpm.bench.engines import Job
from sparse_ddpm.bench.source import folded_table, program_of
from sparse_ddpm.engine.film import Films
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

Tensor = torch.Tensor


class Network(torch.nn.Module):
    """``forward(x [N, C, H, W], row of the folded table) -> [N, C, H, W]``."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.columns = Films.of(program).columns
        self.places: dict[str, str] = {}
        for index, op in enumerate(program.operations):
            match op:
                case Conv():
                    shape = (-1, program.shapes[op.x][0], op.size, op.size)
                    weight = torch.from_numpy(op.weight.to_dense().reshape(shape).copy())
                    self._keep(index, op.out, "weight", weight)
                    if op.bias is not None:
                        self._keep(index, op.out, "bias", torch.from_numpy(op.bias.copy()))
                case NormAct():
                    self._keep(index, op.out, "gamma", torch.from_numpy(op.gamma.copy()))
                    self._keep(index, op.out, "beta", torch.from_numpy(op.beta.copy()))
                case ChannelNorm():
                    self._keep(index, op.out, "gain", torch.from_numpy(op.gain.copy()))
                case _:
                    pass
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _keep(self, index: int, out: str, part: str, tensor: Tensor) -> None:
        # A module's attribute may not contain a dot, as the names of values do.
        self.places[f"{out}:{part}"] = name = f"{part}_{index}"
        self.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))

    def _kept(self, out: str, part: str) -> Tensor | None:
        name = self.places.get(f"{out}:{part}")
        return None if name is None else getattr(self, name)

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        values = {self.program.input: x}
        for op in self.program.operations:
            values[op.out] = self._evaluate(op, values, row)
        return values[self.program.output]

    def _evaluate(self, op: Operation, values: dict[str, Tensor], row: Tensor) -> Tensor:
        match op:
            case Conv():
                weight = self._kept(op.out, "weight")
                assert weight is not None
                column = self.columns.get(op.out)
                bias = (
                    self._kept(op.out, "bias")
                    if column is None
                    else row[column : column + len(weight)]
                )
                y = F.conv2d(values[op.x], weight, bias, padding=op.size // 2)
            case NormAct():
                y = self._norm_act(op, values[op.x], row)
            case ChannelNorm():
                pixels = values[op.x].permute(0, 2, 3, 1)
                gain = self._kept(op.out, "gain")
                y = F.layer_norm(pixels, pixels.shape[-1:], gain, None, op.eps).permute(0, 3, 1, 2)
            case Attention():
                return attention(op, values[op.qkv])
            case LinearAttention():
                return linear_attention(op, values[op.qkv])
            case SpaceToDepth():
                return F.pixel_unshuffle(values[op.x], 2)
            case Upsample2x():
                return F.interpolate(values[op.x], scale_factor=2.0, mode="nearest")
            case Concat():
                return torch.cat([values[op.a], values[op.b]], dim=1)
            case Add():
                return values[op.a] + values[op.b]
        return y if op.residual is None else y.add_(values[op.residual])

    def _norm_act(self, op: NormAct, x: Tensor, row: Tensor) -> Tensor:
        channels = x.shape[1]
        column = self.columns.get(op.out)
        if column is None:
            gamma, beta = self._kept(op.out, "gamma"), self._kept(op.out, "beta")
        else:
            gamma = row[column : column + channels]
            beta = row[column + channels : column + 2 * channels]
        y = F.group_norm(x, op.groups, gamma, beta, op.eps)
        return F.silu(y, inplace=True) if op.silu else y


def _heads(op: Attention | LinearAttention, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v: ``[N, heads, pixels, dim_head]`` each, views of channels-last memory.

    Keys and values of a memory come before those of the pixels.
    """
    n, _, height, width = qkv.shape
    pixels = qkv.permute(0, 2, 3, 1).reshape(n, height * width, 3, op.heads, op.dim_head)
    q, k, v = pixels.permute(2, 0, 3, 1, 4).unbind(0)
    if op.memory is not None:
        more = torch.from_numpy(op.memory.copy()).to(qkv).mT[:, None].expand(-1, n, -1, -1, -1)
        k, v = torch.cat([more[0], k], dim=2), torch.cat([more[1], v], dim=2)
    return q, k, v


def _merge(mixed: Tensor, qkv: Tensor) -> Tensor:
    """``[N, heads, pixels, dim_head]`` to a channels-last image."""
    n, _, height, width = qkv.shape
    return mixed.transpose(1, 2).reshape(n, height, width, -1).permute(0, 3, 1, 2)


def attention(op: Attention, qkv: Tensor) -> Tensor:
    """Softmax attention over pixels."""
    q, k, v = _heads(op, qkv)
    return _merge(F.scaled_dot_product_attention(q, k, v), qkv)


def linear_attention(op: LinearAttention, qkv: Tensor) -> Tensor:
    """Linear attention; both scales are applied to the small matrix."""
    q, k, v = _heads(op, qkv)
    scale = 1.0 / (math.sqrt(op.dim_head) * q.shape[2])
    context = k.softmax(dim=2).transpose(2, 3) @ v * scale
    return _merge(q.softmax(dim=3) @ context, qkv)


class TorchRunner:
    """Steps of a `Network`. ``table``: ``[S, columns]``."""

    def __init__(
        self, forward: Callable[..., Tensor], table: Tensor, precision: str, description: str
    ) -> None:
        self.device = table.device
        self.forward = forward
        # Tensors of their own: compiled code is specialised on where a view begins.
        self.rows = [row.clone() for row in table]
        self.precision = precision
        self.description = description
        self.details: dict[str, Any] = {}

    def load(self, x: NDArray[np.float32]) -> None:
        # A sampling loop would keep its images in this form.
        self.x = torch.from_numpy(x).to(
            self.device, self.rows[0].dtype, memory_format=torch.channels_last
        )

    def step(self, index: int) -> Tensor:
        with torch.inference_mode():
            if self.precision == "autocast":
                with torch.autocast(self.device.type, dtype=torch.bfloat16):
                    return self._forward(self.rows[index])
            return self._forward(self.rows[index])

    def _forward(self, row: Tensor) -> Tensor:
        output = self.forward(self.x, row)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return output

    def array(self, output: Tensor) -> NDArray[np.float32]:
        return output.float().cpu().contiguous().numpy()


class Graphed:
    """A network as one CUDA graph, made at the first call: eager torch without its launches."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self.forward = forward
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x: Tensor, row: Tensor) -> Tensor:
        if self.graph is None:
            self.x, self.row = x.clone(), row.clone()
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):  # cuDNN chooses, allocators grow
                    self.forward(self.x, self.row)
            torch.cuda.current_stream().wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = self.forward(self.x, self.row)
        self.x.copy_(x)
        self.row.copy_(row)
        self.graph.replay()
        return self.output


def build(job: Job, precision: str = "float32", compiled: bool = False) -> TorchRunner:
    """``precision``: ``float32``, ``autocast`` (bfloat16), or ``whole`` (the model is bfloat16).

    On a GPU eager networks run as CUDA graphs, and compiled ones are autotuned at most.
    """
    torch.set_num_threads(job.threads)
    gpu = job.device == "cuda" and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    torch.backends.cudnn.benchmark = gpu
    program = program_of(job)
    network = Network(program).eval()
    table = torch.from_numpy(folded_table(program, job.timesteps))
    if precision == "whole":
        network, table = network.to(torch.bfloat16), table.to(torch.bfloat16)
    network, table = network.to(device), table.to(device)
    forward: Callable[..., Tensor] = Graphed(network) if gpu and not compiled else network
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = not gpu
        mode = "max-autotune" if gpu else "default"
        forward = torch.compile(network, fullgraph=True, dynamic=False, mode=mode)
    words = ["compiled" if compiled else "eager", "channels last"]
    if precision != "float32":
        words.append(f"bfloat16 {precision}")
    words.append(torch.cuda.get_device_name() if gpu else f"{job.threads} threads")
    return TorchRunner(forward, table, precision, f"torch {torch.__version__} {', '.join(words)}")
