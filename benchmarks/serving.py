"""Images over HTTP on this machine: 64 clients at once beside one, and beside drawing singly.

python benchmarks/serving.py [--clients 64] [--images 256] [--json FILE]

Needs fastapi and uvicorn. Serves examples/fastapi/app.py, which draws the requests that wait
together, on a port of the loopback interface, and asks it for ``--images`` images three times: by
one client, request after request (one-by-one); by all clients at once; and, at once again, of a
server that draws each request in a call of its own. Every image is compared with the one that a
`Sampler` draws alone. Progress goes to stderr; stdout gets a table and a line for each claim. Exit
status 0: all claims hold; 1: one does not; 2: nothing was measured.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import queue
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sparse_ddpm import Sampler
from sparse_ddpm.bench.machine import machine
from sparse_ddpm.cli.common import positive
from sparse_ddpm.errors import SparseDDPMError
from sparse_ddpm.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
TOGETHER = ROOT / "examples" / "fastapi"
START_S = 60.0
REQUEST_S = 120.0
"""No request may take longer."""
WARM_UP = 32
RATIO = 3.0
"""Least images per second of all clients, in those of one-by-one."""
LEVELS = 1
"""Most difference of a pixel, of 255: images of a batch are rounded otherwise than single ones."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=positive, default=64)
    parser.add_argument("--images", type=positive, default=256, help="of each of the three ways")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args(arguments)


def singly() -> Any:
    """A server's application that draws each request by itself, as one writes it first."""
    from fastapi import FastAPI, Response

    sampler = Sampler.load("mnist16", threads=1)
    app = FastAPI()

    @app.get("/image", response_class=Response)
    def image(seed: int = 0) -> Response:
        file = io.BytesIO()
        sampler.sample(1, seed=seed, output="pil")[0].save(file, "PNG")
        return Response(file.getvalue(), media_type="image/png")

    return app


@contextmanager
def server(folder: Path, application: str, *options: str) -> Iterator[int]:
    """uvicorn on a free port of 127.0.0.1; ended at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "uvicorn", application, "--app-dir", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", *options]
    process = subprocess.Popen(command)
    try:
        end = time.monotonic() + START_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end:
                raise SparseDDPMError("the server did not start; fastapi and uvicorn installed?")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(START_S)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


def ask(port: int, seeds: Sequence[int], clients: int) -> tuple[float, list[float], list[bytes]]:
    """Images of ``seeds``, in order: seconds of all, of each request, and the answers."""
    jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(seeds)):
        jobs.put(number)
    taken = [0.0] * len(seeds)
    answers = [b""] * len(seeds)
    failures: list[BaseException] = []
    ready = threading.Barrier(clients + 1)

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_S)
        try:
            connection.connect()
            ready.wait(START_S)
            while True:
                number = jobs.get_nowait()
                begun = time.perf_counter()
                connection.request("GET", f"/image?seed={seeds[number]}")
                answer = connection.getresponse()
                answers[number] = answer.read()
                taken[number] = time.perf_counter() - begun
                if answer.status != 200:
                    raise SparseDDPMError(f"the server answered {answer.status}.")
        except queue.Empty:
            pass
        except BaseException as error:
            failures.append(error)
            ready.abort()
        finally:
            connection.close()

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait(START_S)
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if failures:
        raise SparseDDPMError(f"a client failed: {failures[0]!r}")
    return seconds, taken, answers


def pixels(answer: bytes) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(answer))).astype(np.int16)


def worst(answers: Sequence[bytes], wanted: NDArray[np.uint8]) -> int:
    """Most difference of a pixel from ``wanted`` ``[n, H, W, 1]``."""
    images = zip(answers, wanted, strict=True)
    return max(int(np.abs(pixels(answer) - image[:, :, 0]).max()) for answer, image in images)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of each way; see the module."""
    seeds = list(range(options.images))
    with Sampler.load("mnist16", threads=1) as sampler:
        wanted = np.concatenate([sampler.sample(1, seed=seed) for seed in seeds])
    ways: dict[str, Any] = {}

    def way(name: str, port: int, clients: int) -> None:
        print(f"serving: {name}", file=sys.stderr, flush=True)
        ask(port, seeds[:WARM_UP], clients)
        seconds, taken, answers = ask(port, seeds, clients)
        ways[name] = {
            "clients": clients,
            "images_per_s": len(seeds) / seconds,
            "median_ms": 1e3 * statistics.median(taken),
            "slowest_ms": 1e3 * max(taken),
            "difference": worst(answers, wanted),
        }

    with server(TOGETHER, "app:app") as port:
        way("one-by-one", port, 1)
        way("together", port, options.clients)
    with server(Path(__file__).parent, "serving:singly", "--factory") as port:
        way("drawn singly", port, options.clients)
    return ways


def judge(ways: dict[str, Any]) -> list[dict[str, Any]]:
    """The claims, and whether they hold."""
    rate = ways["together"]["images_per_s"]
    alone = rate / ways["one-by-one"]["images_per_s"]
    singly = rate / ways["drawn singly"]["images_per_s"]
    difference = max(way["difference"] for way in ways.values())
    return [
        {
            "text": f"every image is its seed's: {difference} of 255 levels off at most",
            "holds": difference <= LEVELS,
        },
        {
            "text": f"together makes {alone:.2f} times the images of one-by-one "
            f"(wanted: {RATIO:g}), {singly:.2f} times those of drawing singly",
            "holds": alone >= RATIO,
        },
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        ways = measure(options)
    except SparseDDPMError as error:
        print(f"serving: {error}", file=sys.stderr)
        return 2
    claims = judge(ways)
    if options.json:
        result = {"schema": 1, "machine": machine(), "ways": ways, "claims": claims}
        text = json.dumps(result, indent=1) + "\n"
        write_atomically(options.json, lambda file: file.write(text.encode()))
    print(f"{'':<14} {'clients':>7} {'images/s':>9} {'median ms':>10} {'slowest ms':>10}")
    for name, found in ways.items():
        print(
            f"{name:<14} {found['clients']:>7} {found['images_per_s']:>9.1f} "
            f"{found['median_ms']:>10.1f} {found['slowest_ms']:>10.1f}"
        )
    for claim in claims:
        print(f"{'holds' if claim['holds'] else 'FAILS'}: {claim['text']}")
    return 0 if all(claim["holds"] for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
