"""denoising-diffusion-pytorch beside ours: the original implementation that imports are held to.

Its one file of networks and diffusions is imported without the rest of its package, and what that
file imports for training alone (torchvision, accelerate, ...) is replaced by a stand-in. Several
versions are tested where ``SPARSE_DDPM_LUCIDRAINS`` lists the folders that hold them (made by
``pip install --no-deps --target FOLDER``), and else the one that is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

PACKAGE = "denoising_diffusion_pytorch"
FOR_TRAINING = (
    "accelerate",
    "datasets",
    "ema_pytorch",
    "matplotlib",
    "matplotlib.pyplot",
    "pandas",
    "pytorch_fid",
    "pytorch_fid.fid_score",
    "pytorch_fid.inception",
    "scipy",
    "scipy.optimize",
    "tensorboardX",
    "torchvision",
    "utils",
    f"{PACKAGE}.fid_evaluation",
)


def folders() -> list[Path]:
    """Where the package lies, once for each version at hand."""
    named = os.environ.get("SPARSE_DDPM_LUCIDRAINS")
    if named:
        return [Path(folder) / PACKAGE for folder in named.split(os.pathsep)]
    found = importlib.util.find_spec(PACKAGE)
    return [Path(place) for place in (found.submodule_search_locations or [])] if found else []


def versions() -> list[Any]:
    """Parameters of a test: a folder each, or a skip with the reason."""
    here = folders()
    if importlib.util.find_spec("einops") is None or not here:
        reason = f"{PACKAGE} and einops are not installed"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    return [pytest.param(folder, id=folder.parent.name) for folder in here]


def load(folder: Path) -> ModuleType:
    """The module with ``Unet`` and ``GaussianDiffusion`` of one version."""
    saved = {name: module for name, module in sys.modules.items() if name.startswith(PACKAGE)}
    for name in saved:
        del sys.modules[name]
    others = {name: sys.modules[name] for name in FOR_TRAINING if name in sys.modules}
    sys.modules.update({name: MagicMock() for name in FOR_TRAINING})
    package = ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    try:
        return importlib.import_module(f"{PACKAGE}.{PACKAGE}")
    finally:
        for name in [*FOR_TRAINING, *(n for n in sys.modules if n.startswith(PACKAGE))]:
            sys.modules.pop(name, None)
        sys.modules.update(saved | others)


def version_of(folder: Path) -> str | None:
    """As the package's own ``version.py`` has it; the first ones did not write it to files."""
    if not (folder / "version.py").exists():
        return None
    text = (folder / "version.py").read_text()
    return text.split("=")[1].strip().strip("'\"")
