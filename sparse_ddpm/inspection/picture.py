"""Pictures of inspections: HTML, or what matplotlib draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparse_ddpm.files import write_atomically
from sparse_ddpm.inspection.report import Inspection
from sparse_ddpm.pictures import FIGURES, check_figure

PAGE = ".html"


def check_plot(path: Path) -> None:
    """Raise `ConfigError` or `MissingDependencyError` where ``path`` cannot be drawn."""
    check_figure(path, (PAGE, *FIGURES))


def save_plot(found: Sequence[Inspection], path: Path) -> None:
    """Draw one inspection, or two side by side; the suffix of ``path`` says how."""
    if path.suffix.lower() == PAGE:
        from sparse_ddpm.inspection.page import page

        text = page(found)
        write_atomically(path, lambda file: file.write(text.encode()))
        return
    from sparse_ddpm.inspection.figure import save_inspections

    save_inspections(found, path)
