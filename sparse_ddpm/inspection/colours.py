"""Colours of the pictures, by what they stand for."""

from __future__ import annotations

from collections.abc import Mapping

SERIES_COLOURS: Mapping[str, str] = {
    "dense_flops": "#c3c9d4",
    "executed_flops": "#00798c",
    "surviving_flops": "#d1495b",
}
KIND_COLOURS: Mapping[str, str] = {
    "Conv": "#00798c",
    "LinearBlock": "#d1495b",
    "LinearAttention": "#d1495b",
    "Attention": "#edae49",
}
STAGE_COLOURS = ("#8fb8c4", "#e3b7a0", "#a9c7a0", "#c5b3d6", "#e6d08f")
PART_COLOURS: Mapping[str, str] = {
    "dense float32": "#c3c9d4",
    "gzip of dense": "#8d99ae",
    "dense: values": "#5f4b8b",
    "bitmask: values": "#00798c",
    "bitmask: places": "#7fc0ca",
    "gaps: values": "#d1495b",
    "gaps: places": "#ecaab3",
    "names and alignment": "#444444",
}
OTHER = "#66a182"
ROOF, INK, FAINT = "#444444", "#222222", "#dddddd"
