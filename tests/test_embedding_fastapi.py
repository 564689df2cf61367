"""examples/fastapi with real clients on the loopback interface, and benchmarks/serving.py."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="fastapi is the example's framework")
pytest.importorskip("uvicorn", reason="uvicorn serves the example")

from sparse_ddpm import Sampler

ROOT = Path(__file__).resolve().parents[1]


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"embedding_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # where fastapi looks annotations up
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def serving() -> ModuleType:
    return module(ROOT / "benchmarks" / "serving.py")


@pytest.fixture(scope="module")
def port(serving: ModuleType) -> Iterator[int]:
    with serving.server(ROOT / "examples" / "fastapi", "app:app") as port:
        yield port


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_64_clients_at_once_get_the_images_of_their_seeds(serving: ModuleType, port: int) -> None:
    seeds = [2**64 - 1, *range(1, 64)]
    with Sampler.load("mnist16", threads=1) as sampler:
        wanted = sampler.sample(seeds=seeds)
        assert len({one.tobytes() for one in wanted}) == 64
        seconds, taken, answers = serving.ask(port, seeds, 64)
        assert seconds > 0
        assert len(taken) == len(answers) == 64
        assert serving.worst(answers, wanted) <= serving.LEVELS
        status, body = get(port, "/image?seed=5&index=9")
        assert status == 200
        assert serving.worst([body], sampler.sample(seed=5, indices=[9])) <= serving.LEVELS


def test_wrong_seeds_are_refused(port: int) -> None:
    for text in ("-1", str(2**64), "x", "1.5"):
        status, body = get(port, f"/image?seed={text}")
        assert status == 422
        assert b"seed" in body


def test_clients_that_leave_do_no_harm(port: int) -> None:
    for _ in range(3):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/image?seed=1")
        connection.close()
    assert get(port, "/image?seed=1")[0] == 200


class Fake:
    """A sampler that counts, and fails for seed 13."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.go = threading.Event()

    def sample(self, *, seeds: tuple[int, ...], **_: Any) -> list[int]:
        self.calls.append(seeds)
        self.go.wait(60)
        if 13 in seeds:
            raise RuntimeError("no thirteen")
        return [10 * seed for seed in seeds]


def test_what_waits_is_drawn_together_and_failures_are_told() -> None:
    app = module(ROOT / "examples" / "fastapi" / "app.py")

    async def scene() -> tuple[Fake, list[Any]]:
        fake, loop = Fake(), asyncio.get_running_loop()
        task = asyncio.create_task(app.draw(fake))
        answers = []
        for seed in (1, *range(20, 45), 13, 3):
            answers.append(loop.create_future())
            await app.waiting.put((seed, 0, answers[-1]))
            if seed == 1:
                while not fake.calls:
                    await asyncio.sleep(0.001)
            if seed == 30:
                answers[-1].cancel()
        fake.go.set()
        got = await asyncio.gather(*answers, return_exceptions=True)
        last = loop.create_future()
        await app.waiting.put((7, 0, last))
        got.append(await last)
        task.cancel()
        return fake, got

    fake, got = asyncio.run(scene())
    assert fake.calls == [(1,), tuple(range(20, 36)), (*range(36, 45), 13, 3), (7,)]
    assert got[0] == 10
    assert got[1:11] == [10 * seed for seed in range(20, 30)]
    assert isinstance(got[11], asyncio.CancelledError)
    assert got[12:17] == [10 * seed for seed in range(31, 36)]
    assert all(isinstance(one, RuntimeError) for one in got[17:28])
    assert got[28] == 70


def test_the_benchmarks_judgement(serving: ModuleType) -> None:
    def ways(together: float, difference: int) -> dict[str, Any]:
        rates = {"one-by-one": 10.0, "together": together, "drawn singly": 8.0}
        return {
            name: {"images_per_s": rate, "difference": difference} for name, rate in rates.items()
        }

    assert [claim["holds"] for claim in serving.judge(ways(31.0, 1))] == [True, True]
    assert [claim["holds"] for claim in serving.judge(ways(29.0, 2))] == [False, False]


def test_the_benchmark_sees_a_wrong_image(serving: ModuleType, port: int) -> None:
    _, _, answers = serving.ask(port, [1, 2], 2)
    assert serving.worst(answers, np.zeros((2, 16, 16, 1), np.uint8)) > 50
