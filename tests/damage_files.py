"""No ticket at all: missing, cut off, or of another kind."""

from __future__ import annotations

import os
from pathlib import Path

from damage_base import (
    damage,
    damage_bytes,
    sound_file,
    sound_safetensors,
)


def _make_directory(path: Path) -> None:
    path.mkdir()


damage("missing file", "No such file", lambda path: None)
damage("directory", "a directory", _make_directory)
damage("link to itself", "symbolic links", lambda path: path.symlink_to(path.name))
damage("named pipe", "a pipe", lambda path: os.mkfifo(path))
damage_bytes("empty file", "an empty file", lambda: b"")
damage_bytes("one byte", "something else", lambda: b"P")
damage_bytes("text file", "something else", lambda: b"version 1\nsize 1\n")
damage_bytes("png file", "something else", lambda: b"\x89PNG\r\n\x1a\n" + bytes(100))
damage_bytes("zip signature only", "zip archive", lambda: b"PK\x03\x04")
damage_bytes("empty zip", "something else", lambda: b"PK\x05\x06" + bytes(18))
damage_bytes("junk before the zip", "something else", lambda: b"junk" + sound_file())
damage_bytes("junk after the zip", "zip archive", lambda: sound_file() + b"junk")
for _percent in (1, 10, 30, 50, 70, 90, 99):
    damage_bytes(
        f"pt truncated at {_percent} %",
        "zip archive",
        lambda percent=_percent: sound_file()[: len(sound_file()) * percent // 100],
    )
damage_bytes("pt without its last byte", "zip archive", lambda: sound_file()[:-1])
for _percent in (1, 30, 60, 99):
    damage_bytes(
        f"safetensors truncated at {_percent} %",
        "safetensors",
        lambda percent=_percent: sound_safetensors()[: len(sound_safetensors()) * percent // 100],
    )
