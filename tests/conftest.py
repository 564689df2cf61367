"""Fixtures that several stages share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("triton") is not None and not Path("/dev/nvidiactl").exists():
    # Before any kernel's module is imported: it then belongs to Triton's interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_configure(config: pytest.Config) -> None:
    """xdist would begin with the files of most tests, which are not the longest ones."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that none is left over for one process at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data sets: the folder SPARSE_DDPM_DATA, or ``../shared/data`` of the repository."""
    named = os.environ.get("SPARSE_DDPM_DATA")
    path = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data: {path} is not a folder (set SPARSE_DDPM_DATA)")
    return path


@pytest.fixture(scope="session")
def triton_device() -> Any:
    """Where Triton kernels run: a GPU, or the CPU in Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed")
    torch = pytest.importorskip("torch")
    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


@pytest.fixture(scope="session")
def triton_dtypes(triton_device: Any) -> tuple[Any, ...]:
    """Of activations: the interpreter is right in float32 alone (its bfloat16 is not)."""
    import torch

    if triton_device.type == "cpu":
        return (torch.float32,)
    return torch.float16, torch.bfloat16


@pytest.fixture(params=range(2))
def dtype(request: pytest.FixtureRequest, triton_dtypes: tuple[Any, ...]) -> Any:
    """Each of `triton_dtypes`."""
    if request.param >= len(triton_dtypes):
        pytest.skip("the interpreter is right in float32 alone")
    return triton_dtypes[request.param]


@pytest.fixture
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An instruction set of the C++ engine, forced, with memory full of NaN before a run."""
    monkeypatch.setenv("SPARSE_DDPM_ISA", request.param)
    monkeypatch.setenv("SPARSE_DDPM_POISON", "1")
    return str(request.param)


@pytest.fixture(scope="session")
def c_folder() -> Path:
    """The C library and its example, built."""
    from c_library import quick_build

    return quick_build()


@pytest.fixture(scope="session")
def c_library(c_folder: Path) -> Any:
    """The C library, loaded."""
    from c_library import Library

    return Library(c_folder / "libsparse_ddpm.so")


@pytest.fixture(scope="session")
def shipped_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped ticket as a model of the C library."""
    from c_models import write_shipped

    path = tmp_path_factory.mktemp("model") / "shipped.sddpm"
    write_shipped(path)
    return path
