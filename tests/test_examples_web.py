"""The page of examples/web in headless Chromium, beside the images that Python draws."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser
from javascript import EXAMPLES, copy_example, program, run
from numpy.typing import NDArray
from PIL import Image

pytest.importorskip("onnx", reason="needs the onnx extra")
pytest.importorskip("onnxruntime", reason="needs the onnx extra")

import json

from sparse_ddpm import Sampler
from sparse_ddpm.cli import common
from sparse_ddpm.cli.main import main
from sparse_ddpm.pictures import grid, save_grid

SYNTHETIC = "small:0.95:element"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built as its README says, with a model of the shipped ticket."""
    program("node")
    if find_browser() is None:
        pytest.skip("Chromium is not installed")
    folder = copy_example("web", tmp_path_factory.mktemp("examples"))
    scripts = json.loads((EXAMPLES / "web" / "package.json").read_text())["scripts"]
    name, *arguments = shlex.split(scripts["model"])
    assert name == "sparse-ddpm"
    with contextlib.chdir(folder):
        assert main(arguments) == 0
    command = shlex.split(scripts["build"])
    run(command, folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def address(page: Path) -> Iterator[str]:
    """Where any static server offers the page."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def end_headers(self) -> None:
            self.send_header("Cache-Control", "no-cache")  # a file that is gone is gone
            super().end_headers()

    handler = functools.partial(Quiet, directory=page)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = find_browser()
    if found is None:
        pytest.skip("Chromium is not installed")
    with Browser(found, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def text(browser: Browser, name: str) -> str:
    return str(browser.evaluate(f"document.getElementById('{name}').textContent.trim()"))


def open_page(browser: Browser, address: str, wish: str = "") -> None:
    """Open the page afresh, and wait until its model is there or it has complained."""
    browser.open("about:blank")
    browser.wait("location.href === 'about:blank'")
    browser.requests.clear()
    browser.console.clear()
    browser.open(address + wish)
    rested(browser)


def rested(browser: Browser) -> None:
    browser.wait(
        "window.location.protocol === 'http:' && document.readyState === 'complete' && ("
        "document.getElementById('status').textContent === 'Ready.' ||"
        "!document.getElementById('error').hidden)"
    )


def draw(browser: Browser) -> None:
    browser.evaluate("document.getElementById('draw').click()")
    browser.wait("!document.getElementById('save').disabled", 120)


def canvas(browser: Browser) -> NDArray[np.uint8]:
    """What the canvas shows: uint8 [height, width, 4]."""
    width, height, pixels = browser.evaluate(
        "(() => { const { width, height } = document.getElementById('canvas');"
        "const brush = document.getElementById('canvas').getContext('2d');"
        "const { data } = brush.getImageData(0, 0, width, height);"
        "return [width, height, btoa(String.fromCharCode(...data))]; })()"
    )
    return np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)


def assert_shows(browser: Browser, images: NDArray[np.uint8]) -> None:
    """The canvas holds the images [n, H, W, C] in our grid, to within 1/255 a pixel."""
    found = canvas(browser)
    inside = grid(np.full_like(images, 255))[..., 0] == 255
    np.testing.assert_array_equal(found[..., 3], np.where(inside, 255, 0))
    wanted = np.broadcast_to(grid(images), (*inside.shape, 3)).astype(int)
    assert np.abs(found[inside][:, :3] - wanted[inside]).max() <= 1


def pick_file(browser: Browser, path: Path) -> None:
    document = browser.call("DOM.getDocument")["root"]["nodeId"]
    box = browser.call("DOM.querySelector", {"nodeId": document, "selector": "#file"})
    browser.call("DOM.setFileInputFiles", {"nodeId": box["nodeId"], "files": [str(path)]})


def test_the_page_draws_what_python_draws(chromium: Browser, address: str, tmp_path: Path) -> None:
    open_page(chromium, address, "#seed=5&images=4")
    draw(chromium)
    images = Sampler.load().sample(4, sampler="dpm++", steps=20, seed=5)
    assert_shows(chromium, images)
    assert re.fullmatch(r"4 images in \d+\.\d s · \d+ ms a step", text(chromium, "status"))
    assert "20 steps of DPM-Solver++ · one thread" in text(chromium, "facts")
    label = chromium.evaluate("document.getElementById('canvas').ariaLabel")
    assert label == "4 images drawn from seed 5"

    settings = {"behavior": "allow", "downloadPath": str(tmp_path)}
    chromium.call("Browser.setDownloadBehavior", settings, session=None)
    chromium.evaluate("document.getElementById('save').click()")
    saved = tmp_path / "digits-seed-5.png"
    end = time.monotonic() + 20
    while not saved.exists() and time.monotonic() < end:
        time.sleep(0.05)
    save_grid(images, tmp_path / "ours.png")
    found, wanted = (
        np.asarray(Image.open(path).convert("RGB"), dtype=int)
        for path in (saved, tmp_path / "ours.png")
    )
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1

    assert not chromium.console
    names = {url.removeprefix(address) for url in chromium.requests if url.startswith(address)}
    assert {"page.js", "worker.js", "model.onnx", "ort-wasm-simd-threaded.wasm"} <= names
    assert elsewhere(chromium, address) == []


def elsewhere(browser: Browser, address: str) -> list[str]:
    """Requests that left for another host; data and blob addresses go nowhere."""
    here = (address, "data:", f"blob:{address}", "about:")
    return [url for url in browser.requests if not url.startswith(here)]


def test_the_page_may_ask_nobody_else(chromium: Browser, address: str) -> None:
    ask = "fetch('http://example.invalid/').then(() => 'answered', () => 'refused')"
    open_page(chromium, address)
    assert chromium.evaluate(ask) == "refused"
    assert elsewhere(chromium, address) == []
    # Without the page's policy the request would have left, and been on record.
    chromium.open("about:blank")
    chromium.wait("location.href === 'about:blank'")
    assert chromium.evaluate(ask) == "refused"
    assert elsewhere(chromium, address) == ["http://example.invalid/"]


@pytest.mark.parametrize(
    ("what", "sampler", "steps"), [("step", "ddpm", 3), ("sampler", "ddpm", 3)]
)
def test_another_sampler_from_a_file(
    chromium: Browser, address: str, tmp_path: Path, what: str, sampler: str, steps: int
) -> None:
    path = tmp_path / "other.onnx"
    settings = ["--what", what, "--sampler", sampler, "--steps", str(steps), "--no-check"]
    assert main(["export", "--synthetic", SYNTHETIC, *settings, "-o", str(path)]) == 0
    open_page(chromium, address, f"#seed={2**64 - 1}")
    pick_file(chromium, path)
    chromium.wait(f"document.getElementById('facts').textContent.includes('{steps} steps of')")
    chromium.wait("document.getElementById('status').textContent === 'Ready.'")
    # Fewer at once than of the small digits: these have four times the pixels.
    assert chromium.evaluate("document.getElementById('count').value") == "4"
    chromium.evaluate("document.getElementById('count').value = '9'")
    draw(chromium)
    ours = Sampler(common.synthetic(SYNTHETIC))
    assert_shows(chromium, ours.sample(9, sampler=sampler, steps=steps, seed=2**64 - 1))


def test_files_that_are_no_samplers(
    chromium: Browser, page: Path, address: str, tmp_path: Path
) -> None:
    """Each is refused in words, and the model that was open stays so."""
    open_page(chromium, address, "#images=1")
    denoiser, baked = tmp_path / "denoiser.onnx", tmp_path / "baked.onnx"
    start = ["export", "--synthetic", SYNTHETIC, "--no-check"]
    assert main([*start, "-o", str(denoiser)]) == 0
    sampler = ["--what", "sampler", "--steps", "2", "--seed", "1"]
    assert main([*start, *sampler, "-o", str(baked)]) == 0
    damaged = tmp_path / "damaged.onnx"
    content = bytearray((page / "model.onnx").read_bytes())
    content[len(content) // 2 :] = content[len(content) // 2 :][::-1]
    damaged.write_bytes(content)
    for path, words in (
        (page / "page.js", "This sampler cannot be used: this is not an ONNX file"),
        (damaged, "This sampler cannot be used: "),
        (baked, "This sampler cannot be used: expected a sampler that takes noise, got one"),
        (denoiser, "export --what step”, got a denoiser."),
    ):
        chromium.evaluate("document.getElementById('error').textContent = ''")
        pick_file(chromium, path)
        chromium.wait(f"document.getElementById('error').textContent.includes('{words}')")
        assert chromium.evaluate("document.getElementById('error').checkVisibility()")
    draw(chromium)
    assert_shows(chromium, Sampler.load().sample(1, sampler="dpm++", steps=20))


def test_no_model(chromium: Browser, page: Path, address: str) -> None:
    hidden = page / "model.hidden"
    (page / "model.onnx").rename(hidden)
    try:
        open_page(chromium, address)
    finally:
        hidden.rename(page / "model.onnx")
    said = text(chromium, "error")
    assert said.startswith("model.onnx cannot be loaded: the server says 404. Make it with")
    assert chromium.evaluate("document.getElementById('draw').disabled")
    # The page goes on as soon as it is given a model.
    pick_file(chromium, page / "model.onnx")
    chromium.wait("!document.getElementById('draw').disabled")
    assert chromium.evaluate("document.getElementById('error').hidden")


def test_a_page_without_its_runtime(chromium: Browser, page: Path, address: str) -> None:
    hidden = page / "runtime.hidden"
    (page / "ort-wasm-simd-threaded.wasm").rename(hidden)
    try:
        open_page(chromium, address)
    finally:
        hidden.rename(page / "ort-wasm-simd-threaded.wasm")
    said = text(chromium, "error")
    assert said.endswith("threaded.wasm, which runs it, cannot be loaded: the server says 404.")


def test_a_bad_seed(chromium: Browser, address: str) -> None:
    open_page(chromium, address, "#seed=-1")
    chromium.evaluate("document.getElementById('draw').click()")
    assert text(chromium, "error").startswith("A seed is a whole number from 0 to ")
    seed = "document.getElementById('seed')"
    assert chromium.evaluate(f"{seed}.ariaInvalid === 'true' && {seed} === document.activeElement")
    chromium.evaluate(f"{seed}.value = '7'")
    chromium.evaluate("document.getElementById('draw').click()")
    assert chromium.evaluate("document.getElementById('error').hidden")
    assert chromium.evaluate(f"{seed}.ariaInvalid") == "false"


def test_stop(chromium: Browser, address: str) -> None:
    open_page(chromium, address, "#images=64")
    chromium.evaluate("document.getElementById('draw').click()")
    assert text(chromium, "draw") == "Stop"
    chromium.wait("document.getElementById('progress').value > 0")
    assert re.match(r"Step \d+ of 80 · \d+ ms a step · \d+ s left", text(chromium, "status"))
    chromium.evaluate("document.getElementById('draw').click()")
    chromium.wait("document.getElementById('status').textContent === 'Stopped.'")
    assert text(chromium, "draw") == "Draw"
    assert chromium.evaluate("document.getElementById('progress').value < 1")


def test_threads_where_the_page_is_isolated(chromium: Browser, page: Path) -> None:
    server = subprocess.Popen(
        [program("node"), "serve.mjs"],
        cwd=page.parent,
        env={**os.environ, "PORT": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip().replace("localhost", "127.0.0.1") + "/"
        wanted = {"hardwareConcurrency": 4}
        chromium.call("Emulation.setHardwareConcurrencyOverride", wanted)
        open_page(chromium, address, "#images=1")
        assert "2 threads" in text(chromium, "facts")
        draw(chromium)
        assert_shows(chromium, Sampler.load().sample(1, sampler="dpm++", steps=20))
        statuses = "Promise.all(['../package.json', '%2e%2e/serve.mjs', 'nothing', '%'].map("
        statuses += "async (name) => (await fetch(name)).status))"
        assert chromium.evaluate(statuses) == [404, 404, 404, 404]
        assert elsewhere(chromium, address) == []
    finally:
        server.terminate()
        server.wait(timeout=10)
        server.stdout.close() if server.stdout else None


def test_nothing_hangs_over_the_edge(chromium: Browser, address: str) -> None:
    open_page(chromium, address)
    for width in (1100, 600, 390, 320):
        size = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": width < 600}
        chromium.call("Emulation.setDeviceMetricsOverride", size)
        chromium.wait(f"innerWidth === {width}")
        edges = "new Promise((show) => requestAnimationFrame(() => setTimeout(() => show(["
        edges += "document.documentElement.scrollWidth, ...['frame', 'canvas'].map((name) =>"
        edges += "document.getElementById(name).getBoundingClientRect().right)]))))"
        page, frame, canvas = chromium.evaluate(edges)
        assert canvas < frame < page <= width
