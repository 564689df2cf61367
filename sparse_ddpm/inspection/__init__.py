"""``sparse-ddpm inspect``: all accounts of a ticket in one object, as tables, JSON and pictures.

Tables and pictures are made from that object alone, so that all of them show the same figures.
"""

from sparse_ddpm.inspection.picture import check_plot, save_plot
from sparse_ddpm.inspection.report import Inspection, Settings, inspect_ticket
from sparse_ddpm.inspection.side_by_side import compare_inspections, comparison_lines
from sparse_ddpm.inspection.table import SORTS, table_lines

__all__ = [
    "SORTS",
    "Inspection",
    "Settings",
    "check_plot",
    "compare_inspections",
    "comparison_lines",
    "inspect_ticket",
    "save_plot",
    "table_lines",
]
