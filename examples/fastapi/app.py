"""Digits over HTTP: GET /image?seed=7 is a PNG. Requests that wait are drawn together.

uvicorn app:app
"""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Response

from sparse_ddpm import Sampler

BATCH = 16
Word = Annotated[int, Query(ge=0, lt=2**64)]
waiting: asyncio.Queue[tuple[int, int, asyncio.Future[Any]]] = asyncio.Queue()


async def draw(sampler: Sampler) -> None:
    while True:
        asked = [await waiting.get()]
        while len(asked) < BATCH and not waiting.empty():
            asked.append(waiting.get_nowait())
        seeds, indices, answers = zip(*asked, strict=True)
        job = asyncio.to_thread(sampler.sample, seeds=seeds, indices=indices, output="pil")
        [made] = await asyncio.gather(job, return_exceptions=True)
        for number, answer in enumerate(answers):
            if isinstance(made, BaseException) and not answer.done():
                answer.set_exception(made)
            elif not answer.done():  # else the client has left
                answer.set_result(made[number])


@asynccontextmanager
async def life(_: FastAPI) -> AsyncIterator[None]:
    with Sampler.load("mnist16", threads=1) as sampler:  # small network: a core for each batch
        tasks = [asyncio.create_task(draw(sampler)) for _ in range(sampler.concurrency)]
        yield
        for task in tasks:
            task.cancel()


app = FastAPI(lifespan=life)


@app.get("/image", response_class=Response)
async def image(seed: Word = 0, index: Word = 0) -> Response:
    answer = asyncio.get_running_loop().create_future()
    await waiting.put((seed, index, answer))
    file = io.BytesIO()
    (await answer).save(file, "PNG")
    return Response(file.getvalue(), media_type="image/png")
