"""The whole step as torch runs it: eager and compiled, 16 bits, channels last, in a CUDA graph.

The network is that of ``sparse-ddpm bench``: masked weights, weight standardisation and FiLM folded
into the factors beforehand, each operation one call of torch's own kernels. One network is built,
compiled and captured for a batch; tickets of the same architecture are loaded into its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu.devices import Device, Recording
from sparse_ddpm.bench.source import folded_table
from sparse_ddpm.bench.torch_peer import Network
from sparse_ddpm.program import Program

MODES = ("eager", "compile", "compile max-autotune")


class Peer:
    """``mode``: one of `MODES`. The graph is captured when it is made.

    Max-autotune without torch's own CUDA graphs: ours holds the step alone, while theirs also
    copies the input.
    """

    def __init__(
        self, program: Program, device: Device, batch: int, mode: str, timestep: float
    ) -> None:
        dtype = device.dtypes[0]
        before, _ = device.memory(reset=True)
        self.timestep, self.device = timestep, device
        self.details: dict[str, Any] = {}
        self.network = Network(program).eval().to(device.torch_device, dtype)
        shape = (batch, *program.input_shape)
        self.x = torch.zeros(shape, dtype=dtype, device=device.torch_device)
        self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.row = torch.zeros(self._row(program).shape, dtype=dtype, device=device.torch_device)
        self.row.copy_(self._row(program))
        forward = compiled(self.network, mode, device)

        def step() -> torch.Tensor:
            with torch.no_grad():
                self.out: torch.Tensor = forward(self.x, self.row)
            return self.out

        self.recording: Recording = device.record([step])
        now, most = device.memory()
        self.bytes = {"memory_mib": (now - before) / 2**20, "peak_mib": (most - before) / 2**20}

    def load(self, program: Program) -> None:
        """Take over the weights of another ticket of the same architecture."""
        with torch.no_grad():
            for mine, other in zip(
                self.network.parameters(), Network(program).parameters(), strict=True
            ):
                mine.copy_(other)
            self.row.copy_(self._row(program))

    def _row(self, program: Program) -> torch.Tensor:
        return torch.from_numpy(folded_table(program, (self.timestep,))[0])

    def output(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """One step: float32 ``[batch, C, H, W]`` to the same."""
        self.x.copy_(torch.from_numpy(x))
        self.recording.replay()
        self.device.synchronize()
        found: NDArray[np.float32] = self.out.float().contiguous().cpu().numpy()
        return found


def compiled(module: torch.nn.Module, mode: str, device: Device) -> Callable[..., torch.Tensor]:
    """``module`` in ``mode``. A dry run traces it too, but compiles nothing."""
    if mode == "eager":
        return module
    torch.compiler.reset()
    if not device.measured:
        return torch.compile(module, backend="eager", fullgraph=True, dynamic=False)
    quiet()
    name = "max-autotune-no-cudagraphs" if mode == "compile max-autotune" else "default"
    return torch.compile(module, mode=name, fullgraph=True, dynamic=False)


def quiet() -> None:
    """Keep the tables of max-autotune out of the log."""
    from torch._inductor import config, select_algorithm

    for place, name in (
        (select_algorithm, "PRINT_AUTOTUNE"),
        (config, "max_autotune_report_choices_stats"),
    ):
        if hasattr(place, name):
            setattr(place, name, False)


def settle(device: Device) -> None:
    """torch as fast as it gets: cuDNN tries its algorithms. References stay in full float32."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if not device.measured:
        torch.set_num_threads(1)
