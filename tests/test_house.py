"""The house rules that a machine can check."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tool(*command: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_ruff_check() -> None:
    tool("ruff", "check", ".")


def test_ruff_format() -> None:
    tool("ruff", "format", "--check", ".")


@pytest.mark.slow
def test_mypy_strict() -> None:
    tool("mypy")


def test_import_contracts() -> None:
    environment = dict(os.environ)
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "export")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert command is not None
    found = subprocess.run(
        [command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("package", ["sparse_ddpm", "sparse_ddpm.api", "sparse_ddpm.cli.main"])
def test_import_is_light(package: str) -> None:
    code = (
        f"import sys, {package}\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'triton', 'diffusers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys\n"
        "from sparse_ddpm.cli.main import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "heavy = {'torch', 'onnx', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_top_level_names() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    tops = {name.split("/")[0] for name in listed.stdout.split()}
    fixed = {"pyproject.toml", "sparse_ddpm", "kernels", "export", "benchmarks", "tests"}
    files = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CMakeLists.txt"}
    beside = files | {"docs", "examples"}
    assert fixed <= tops
    assert {name for name in tops if not name.startswith(".")} <= fixed | beside


def test_no_test_folder_shadows_a_package() -> None:
    packages = {"sparse_ddpm", "sparse_ddpm_kernels", "sparse_ddpm_export", "kernels", "export"}
    assert not {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} & packages
