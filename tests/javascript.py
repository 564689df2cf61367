"""The JavaScript examples in tests: node, and a copy of an example with its packages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")


def program(name: str) -> str:
    """The path of a program; skips the test where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def node(code: str) -> bytes:
    """What a JavaScript module writes to stdout; `web` in it is the address of that example."""
    web = (EXAMPLES / "web" / "src").as_uri()
    command = [program("node"), "--input-type=module", "--eval", code.replace("web:", f"{web}/")]
    return run(command, EXAMPLES).stdout


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done


def copy_example(name: str, root: Path) -> Path:
    """A copy of an example below ``root``, with its packages but nothing that was built.

    The packages are those beside the example, where somebody ran ``npm ci`` there, or fresh ones.
    Skips the test where there is no npm, or no network for it.
    """
    folder = root / name
    built = shutil.ignore_patterns("node_modules", "dist", "*.onnx", "*.png")
    shutil.copytree(EXAMPLES / name, folder, ignore=built)
    ready = EXAMPLES / name / "node_modules"
    if ready.is_dir():
        (folder / "node_modules").symlink_to(ready)
        return folder
    done = subprocess.run(
        [program("npm"), "ci", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    if done.returncode != 0 and any(word in said for word in OFFLINE):
        pytest.skip("npm has no network to install packages from")
    assert done.returncode == 0, said
    return folder
