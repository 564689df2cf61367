"""Safetensors files with headers that lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from damage_base import (
    BIAS,
    Content,
    damage_bytes,
    sound_safetensors,
)

from sparse_ddpm.ticket.content import FORMAT


def _header(name: str, says: str, edit: Callable[[dict[str, Any]], object]) -> None:
    def make() -> bytes:
        data = sound_safetensors()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        edit(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    damage_bytes(name, says, make)


def _metadata(name: str, says: str, edit: Callable[[Content], object]) -> None:
    def edit_header(header: dict[str, Any]) -> None:
        content = json.loads(header["__metadata__"][FORMAT])
        edit(content)
        header["__metadata__"][FORMAT] = json.dumps(content)

    _header(name, says, edit_header)


def _raw_header(name: str, says: str, text: bytes) -> None:
    damage_bytes(name, says, lambda: len(text).to_bytes(8, "little") + text)


_VALUES = f"{BIAS}/values"


def _shift(header: dict[str, Any]) -> None:
    begin, end = header[_VALUES]["data_offsets"]
    header[_VALUES]["data_offsets"] = [begin - 4, end - 4]


damage_bytes(
    "safetensors huge header",
    "header",
    lambda: (2**60).to_bytes(8, "little") + sound_safetensors()[8:],
)
_raw_header("safetensors header no JSON", "header", b"{" * 9)
_raw_header("safetensors header deep", "header", b'{"a":' * 100_000)
_raw_header("safetensors header not UTF-8", "header", b'{"\xff\xfe": 1}')
_raw_header("safetensors names twice", "occurs twice", b'{"a": 1, "a": 2}')
_raw_header("safetensors empty table", "metadata", b"{}")
_header("safetensors without metadata", "metadata", lambda h: h.pop("__metadata__"))
_header(
    "safetensors of another kind", "metadata", lambda h: h.update(__metadata__={"format": "pt"})
)
_header(
    "safetensors metadata no JSON", "metadata", lambda h: h["__metadata__"].update({FORMAT: "{"})
)
_header(
    "safetensors metadata a number", "metadata", lambda h: h["__metadata__"].update({FORMAT: 1})
)
_header(
    "safetensors metadata NaN",
    "the number NaN",
    lambda h: h["__metadata__"].update({FORMAT: '{"version": NaN}'}),
)
_header(
    "safetensors metadata long number",
    "metadata",
    lambda h: h["__metadata__"].update({FORMAT: '{"version": ' + "9" * 5000 + "}"}),
)
_header("safetensors offsets overlap", BIAS, _shift)
_header("safetensors offsets backwards", BIAS, lambda h: h[_VALUES]["data_offsets"].reverse())
_header(
    "safetensors offsets past the end",
    BIAS,
    lambda h: h[_VALUES].update(data_offsets=[2**39, 2**39 + 24]),
)
_header("safetensors offsets negative", BIAS, lambda h: h[_VALUES].update(data_offsets=[-24, 0]))
_header("safetensors offsets of text", BIAS, lambda h: h[_VALUES].update(data_offsets=["0", "24"]))
_header("safetensors shape huge", BIAS, lambda h: h[_VALUES].update(shape=[2**39, 2**39]))
_header("safetensors shape differs", BIAS, lambda h: h[_VALUES].update(shape=[2, 3]))
_header("safetensors dtype unknown", BIAS, lambda h: h[_VALUES].update(dtype="F8_E4M3"))
_header("safetensors entry no table", BIAS, lambda h: h.update({_VALUES: [1]}))
_header("safetensors array missing", "data at offset", lambda h: h.pop(_VALUES))
_header(
    "safetensors array too many",
    BIAS,
    lambda h: h.update({f"{BIAS}/mask": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}),
)
_header(
    "safetensors array unknown", "more/values", lambda h: h.update({"more/values": h.pop(_VALUES)})
)
damage_bytes("safetensors bytes left over", "bytes of data", lambda: sound_safetensors() + bytes(4))
_metadata("safetensors wrong version", "please upgrade", lambda c: c.update(version=2))
_metadata(
    "safetensors bad objective",
    "diffusion.objective",
    lambda c: c["diffusion"].update(objective="score"),
)
_metadata("safetensors values in JSON", BIAS, lambda c: c["tensors"][BIAS].update(values=[0.0] * 6))
_metadata(
    "safetensors half a surrogate pair",
    "provenance.command",
    lambda c: c["provenance"].update(command="\udc80"),
)
_metadata("safetensors tensors a list", "tensors", lambda c: c.update(tensors=[]))
