"""docs/embedding.md: every block is run, in order, in one process, and what it prints compared."""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sparse_ddpm

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
OPTIONAL = ("diffusers", "torch", "fastapi")
MARKER = "--- block ---"


def blocks() -> list[tuple[str, str]]:
    """Each block of code, and what it prints."""
    found: list[tuple[str, str]] = []
    for kind, text in BLOCKS:
        if kind == "text":
            found[-1] = found[-1][0], text
        else:
            found.append((text, ""))
    return found


def needs(text: str) -> set[str]:
    """What is optional and has to be there for a block to run."""
    named = {
        name for name in OPTIONAL if re.search(rf"^(from|import) {name}\b", text, re.MULTILINE)
    }
    return named | ({"diffusers", "torch"} if "unet" in text else set())


def test_every_block_is_code_or_what_it_prints() -> None:
    kinds = [kind for kind, _ in BLOCKS]
    assert set(kinds) == {"python", "text"}
    assert kinds.count("python") >= 12
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert kinds[0] == "python"


def test_every_block_runs_and_prints_what_the_page_says(tmp_path: Path) -> None:
    absent = {name for name in OPTIONAL if importlib.util.find_spec(name) is None}
    runnable = [(text, printed) for text, printed in blocks() if not needs(text) & absent]
    script = tmp_path / "page.py"
    marker = f"print({MARKER!r}, flush=True)\n"
    script.write_text("\n".join(marker + text for text, _ in runnable))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    got = found.stdout.split(f"{MARKER}\n")[1:]
    assert got == [printed for _, printed in runnable]
    made = {path.name for path in tmp_path.iterdir()}
    assert {f"digit-{number}.png" for number in range(4)} | {"digits.png"} <= made
    if absent:
        pytest.skip(f"ran all but the blocks that need {', '.join(sorted(absent))}")


@pytest.mark.parametrize("name", ["Sampler", "Sampler.stream", "UNet2D"])
def test_docstrings_say_what_happens(name: str) -> None:
    names: dict[str, object] = {"Sampler": sparse_ddpm.Sampler}
    if name == "UNet2D":
        diffusers = pytest.importorskip("diffusers", reason="an example is one of diffusers")
        for needed in ("DDIMPipeline", "DDIMScheduler"):
            names[needed] = getattr(diffusers, needed)
        names["UNet2D"] = sparse_ddpm.UNet2D
    thing: object = sparse_ddpm
    for part in name.split("."):
        thing = getattr(thing, part)
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs=names)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_service_on_the_page_is_the_example() -> None:
    example = (ROOT / "examples" / "fastapi" / "app.py").read_text(encoding="utf-8")
    assert ("python", example) in BLOCKS
    lines = [line for line in example.splitlines() if line and not line.startswith(("from", "imp"))]
    assert len(lines) <= 40
