"""Triton kernels compiled ahead of time, without a GPU, and what came out.

Compilation runs in a process of its own: in this one the kernels belong to the interpreter.

    from triton_aot import Kernel, compile_kernels
    compiled = compile_kernels(
        Kernel(
            module="sparse_ddpm_kernels.triton.panel_conv",
            name="_panel_conv",
            signature={"x": "*bf16", "pixels": "i32"},  # what is no constant
            constants={"G": 16, "BLOCK": 128},  # and None for absent pointers
            divisible=("x", "pixels"),  # multiples of 16, as at launch
            target="sm_90", warps=4, stages=3,
        ),
    )[0]
    compiled.registers, compiled.spills, compiled.shared, compiled.ptx.count("wgmma.mma_async")
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
CUOBJDUMP = "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Kernel:
    """A kernel and how it is launched."""

    module: str
    name: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()
    target: str = "sm_90"
    warps: int = 4
    stages: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """``ptx``, ``sass``: "" for AMD, whose ``amdgcn`` is the assembly. ``shared``: bytes.

    ``spills``: bytes of local memory and stack of a thread.
    """

    ptx: str
    sass: str
    amdgcn: str
    ttgir: str
    registers: int
    spills: int
    shared: int


def compile_kernels(*kernels: Kernel) -> list[Compiled]:
    """Compile all in one process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "compiled.json"
        done = subprocess.run(
            [sys.executable, __file__, str(out)],
            input=json.dumps([asdict(kernel) for kernel in kernels]),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-8_000:]
        return [Compiled(**item) for item in json.loads(out.read_text())]


def compile_kernel(kernel: Kernel) -> Compiled:
    """Compile one; several in one call start one process only."""
    return compile_kernels(kernel)[0]


def _compile(kernel: Kernel) -> Compiled:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn = getattr(importlib.import_module(kernel.module), kernel.name)
    names = list(fn.arg_names)
    unknown = (set(kernel.signature) | set(kernel.constants)) ^ set(names)
    assert not unknown, f"{kernel.name}: arguments {sorted(unknown)} are missing or too many"
    signature = {name: kernel.signature.get(name, "constexpr") for name in names}
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in kernel.divisible}
    source = ASTSource(fn, signature, dict(kernel.constants), attrs)
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages, **kernel.options}
    built = triton.compile(source, target=GPUTarget(*TARGETS[kernel.target]), options=options)
    registers = spills = 0
    sass = ""
    if "cubin" in built.asm:
        tool = Path(triton.__file__).parent / CUOBJDUMP
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(built.asm["cubin"])
            file.flush()
            usage = _run(tool, "--dump-resource-usage", file.name)
            sass = _run(tool, "-sass", file.name)
        registers = int(re.findall(r"REG:(\d+)", usage)[0])
        spills = sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))
    return Compiled(
        ptx=built.asm.get("ptx", ""),
        sass=sass,
        amdgcn=built.asm.get("amdgcn", ""),
        ttgir=built.asm.get("ttgir", ""),
        registers=registers,
        spills=spills,
        shared=built.metadata.shared,
    )


def _run(*command: object) -> str:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=True
    ).stdout


if __name__ == "__main__":
    wanted = [Kernel(**item) for item in json.load(sys.stdin)]
    Path(sys.argv[1]).write_text(json.dumps([asdict(_compile(kernel)) for kernel in wanted]))
