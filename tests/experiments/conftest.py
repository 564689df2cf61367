"""Rows of their own, a folder of results, and no training."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from experiment_rig import BENCHMARKS, COMMON, MODULES, ROWS, Fake


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "experiments"
    folder.mkdir()
    for name, text in {"common": COMMON, **ROWS}.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture
def fake(
    modules: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Fake:
    fake = Fake(capsys)
    call = lambda runner, words: fake(runner, words)  # noqa: E731 - a method needs a function
    monkeypatch.setattr(modules["experiments"].Runner, "_command", call)
    return fake


@pytest.fixture
def where(rows: Path, tmp_path: Path) -> list[str]:
    places = {"experiments": rows, "results": tmp_path / "results", "runs": tmp_path / "runs"}
    words = ["--data", str(tmp_path / "data")]
    for option, place in places.items():
        words += [f"--{option}", str(place)]
    return words
