"""The names of denoising-diffusion-pytorch in ours.

Theirs are positions: ``downs.2.0`` is the first block of level 2, ``downs.2.2`` its attention.
Until version 1.7 the attention lies in two wrappers, ``fn.fn``, and its norm in one.
"""

from __future__ import annotations

import re

_PLACES = (
    (r"(init_conv|final_conv)", r"\1"),
    (r"time_mlp\.1", r"time.linear1"),
    (r"time_mlp\.3", r"time.linear2"),
    (r"(down|up)s\.(\d+)\.0", r"\1.\2.block1"),
    (r"(down|up)s\.(\d+)\.1", r"\1.\2.block2"),
    (r"(down|up)s\.(\d+)\.2", r"\1.\2.attn"),
    (r"(down|up)s\.(\d+)\.3(?:\.1)?", r"\1.\2.\1"),
    (r"mid_block([12])", r"mid.block\1"),
    (r"mid_attn", r"mid.attn"),
    (r"final_res_block", r"final_block"),
)
_PARTS = (
    (r"\.(weight|bias)", r".\1"),
    (r"\.mlp\.1\.(weight|bias)", r".film.\1"),
    (r"\.block([12])\.proj\.(weight|bias)", r".conv\1.\2"),
    (r"\.block([12])\.norm\.(weight|bias)", r".norm\1.\2"),
    (r"\.block([12])\.norm\.g", r".norm\1.gain"),
    (r"\.res_conv\.(weight|bias)", r".shortcut.\1"),
    (r"(?:\.fn)?\.norm\.g", r".norm.gain"),
    (r"(?:\.fn\.fn)?\.to_qkv\.weight", r".qkv.weight"),
    (r"(?:\.fn\.fn)?\.to_out(?:\.0)?\.(weight|bias)", r".out.\1"),
    (r"(?:\.fn\.fn)?\.to_out\.1\.g", r".out_norm.gain"),
    (r"\.mem_kv", r".memory"),
)


def our_name(name: str) -> str | None:
    """Our name of the tensor that they call ``name``; None for one that no version has."""
    for place, ours in _PLACES:
        at = re.match(rf"{place}(?=\.)", name)
        if at is None:
            continue
        for part, our_part in _PARTS:
            if tail := re.fullmatch(part, name[at.end() :]):
                return at.expand(ours) + tail.expand(our_part)
    return None
