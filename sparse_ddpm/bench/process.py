"""The parent's side of a `worker`."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from typing import Any

from sparse_ddpm.bench.engines import EngineSpec, Job
from sparse_ddpm.errors import EngineError

TAIL = 800
"""Characters of a crashed worker's stderr that its error quotes."""


class WorkerError(EngineError):
    """A worker failed: what it said. Its engine's name is for the reader to add."""


class Worker:
    """Starts one engine's process; `call` asks it for something. A context manager."""

    def __init__(self, spec: EngineSpec, threads: int) -> None:
        self.spec = spec
        environment = dict(os.environ)
        # Before the libraries are loaded, for all thread pools that obey the environment.
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(threads)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sparse_ddpm.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
        )

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer to ``Server.method(*arguments)``. Raises `WorkerError`."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            pickle.dump((method, arguments), stdin)
            stdin.flush()
            kind, value = pickle.load(stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise WorkerError(self._crash()) from None
        if kind == "error":
            raise WorkerError(value)
        return value

    def build(self, job: Job) -> dict[str, Any]:
        found: dict[str, Any] = self.call("build", self.spec, job)
        return found

    def close(self) -> None:
        """End the process; more calls do nothing."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def _crash(self) -> str:
        status = self._process.wait()
        how = f"exit status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-status).name
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()
        tail = f"; it said: {said[-TAIL:]}" if said else ""
        return f"its process died ({how}){tail}"

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
