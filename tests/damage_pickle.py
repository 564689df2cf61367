"""Pickles that do or claim what a ticket never does, and tensors that lie."""

from __future__ import annotations

import os
import pickle
from typing import Any

from damage_base import (
    damage_bytes,
    damage_opcodes,
    replaced,
    sound_pickle,
    with_pickle,
)

from sparse_ddpm.ticket.content import FORMAT


class _Calls:
    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.call


class _HasState:
    def __init__(self) -> None:
        self.state = 1


def _pickled(name: str, says: str, value: object) -> None:
    damage_bytes(name, says, lambda: with_pickle(pickle.dumps(value, protocol=2)))


PWNED = "sparse-ddpm-was-here"
_pickled("pickle calls os.system", "system", {"format": _Calls(os.system, f"touch {PWNED}")})
_pickled("pickle calls eval", "eval", {"format": FORMAT, "version": _Calls(eval, "1")})
_pickled("pickle calls in a list", "exec", {"format": FORMAT, "a": {"b": [_Calls(exec, "1")]}})
damage_opcodes("pickle names builtins.eval", "builtins.eval", b"cbuiltins\neval\n")
damage_opcodes("pickle names a torch function", "torch.load", b"ctorch\nload\n")
damage_opcodes("pickle names with a dot", "torch.FloatStorage.mro", b"ctorch\nFloatStorage.mro\n")
damage_opcodes("pickle class as a value", "plain values", b"ctorch\nFloatStorage\n")
damage_opcodes("pickle calls a storage", "torch.FloatStorage", b"ctorch\nFloatStorage\n)R")
damage_opcodes("pickle opcode INST", "INST", b"(X\x01\x00\x00\x00aios\nsystem\n")
damage_opcodes("pickle opcode OBJ", "OBJ", b"(ccollections\nOrderedDict\no")
damage_opcodes("pickle opcode BUILD", "BUILD", b"ccollections\nOrderedDict\n)R}b")
damage_opcodes("pickle opcode NEWOBJ", "NEWOBJ", b"ccollections\nOrderedDict\n)\x81")
damage_opcodes("pickle opcode PERSID", "PERSID", b"P0\n")
damage_opcodes("pickle opcode unknown", "opcode", b"\xff")
damage_opcodes("pickle string too long", "bytes", b"X\xff\xff\xff\xffabc")
damage_opcodes("pickle string not UTF-8", "UTF-8", b"X\x02\x00\x00\x00\xff\xfe")
damage_opcodes("pickle integer too long", "integers", b"\x8a\xff" + b"\x7f" * 255)
damage_opcodes("pickle memo unknown", "memo", b"h\x63")
damage_opcodes("pickle stack empty", "stack", b"ss")
damage_opcodes("pickle mark missing", "mark", b"u")
damage_bytes("pickle leaves more", "one value", lambda: with_pickle(b"\x80\x02K\x01K\x02."))
damage_bytes("pickle goes on", "one value", lambda: with_pickle(b"\x80\x02K\x01.K\x02."))
damage_opcodes("pickle keys of integers", "keys", b"}K\x01K\x02s")
damage_opcodes("pickle keys twice", "two", b"}X\x01\x00\x00\x00aK\x01sX\x01\x00\x00\x00aK\x01s")
damage_opcodes("pickle of marks only", "open containers", b"(" * 100_000)
damage_opcodes("pickle of nested lists", "levels", b"]" * 100_000 + b"a" * 99_999)
damage_opcodes("pickle of nested tuples", "plain values", b")" + b"\x85" * 100_000)
damage_bytes("pickle of an instance", "_HasState", lambda: with_pickle(_pickle_of_instance()))
damage_bytes(
    "pickle cut off", "data.pkl", lambda: replaced("archive/data.pkl", sound_pickle()[:-100])
)
damage_bytes("pickle empty", "data.pkl", lambda: with_pickle(b""))
damage_bytes(
    "pickle of protocol 4",
    "protocol 2",
    lambda: with_pickle(pickle.dumps({"format": FORMAT}, protocol=4)),
)
damage_bytes(
    "pickle of protocol 0",
    "protocol 2",
    lambda: with_pickle(pickle.dumps({"format": FORMAT}, protocol=0)),
)
damage_bytes("pickle of megabytes", "data.pkl", lambda: with_pickle(b"\x80\x02" + b"]" * 3_000_000))
damage_bytes("bare pickle", "bare pickle", lambda: pickle.dumps({"format": FORMAT}, protocol=2))
_pickled("content is a list", "content", [FORMAT, 1])
_pickled("content is None", "content", None)
_pickled("format is None", "format", {"format": None})


def _pickle_of_instance() -> bytes:
    return pickle.dumps({"format": _HasState()}, protocol=2)


def _endless() -> bytes:
    value: dict[str, object] = {"format": FORMAT}
    value["self"] = [value]
    return with_pickle(pickle.dumps(value, protocol=2))


def _memo_bomb() -> bytes:
    value: list[object] = ["lol"]
    for _ in range(40):
        value = [value] * 10
    return with_pickle(pickle.dumps({"format": value}, protocol=2))


damage_bytes("pickle that holds itself", "shared", _endless)
damage_bytes("pickle memo bomb", "shared", _memo_bomb)

_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def _tensor_opcodes(
    count: bytes = b"K\x04",
    offset: bytes = b"K\x00",
    shape: bytes = b"K\x04\x85",
    strides: bytes = b"K\x01\x85",
    rest: bytes = b"\x89ccollections\nOrderedDict\n)R",
    kind: bytes = b"FloatStorage",
    key: bytes = b"0",
) -> bytes:
    def text(raw: bytes) -> bytes:
        return b"X" + len(raw).to_bytes(4, "little") + raw

    identity = b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(key) + text(b"cpu")
    return _REBUILD + b"(" + identity + count + b"tQ" + offset + shape + strides + rest + b"tR"


def _storage(name: str, says: str, data: bytes = b"\0" * 16, **opcodes: bytes) -> None:
    damage_opcodes(name, says, _tensor_opcodes(**opcodes), _0=data)


_HUGE = b"\x8a\x08" + (2**62).to_bytes(8, "little")
_storage("storage too short", "data/0", data=bytes(15))
_storage("storage too long", "data/0", data=bytes(20))
_storage("storage missing", "'1'", key=b"1")
_storage("storage key is a path", "storage of this file", key=b"../../0")
_storage("storage claims exabytes", "data/0", count=_HUGE)
_storage("storage of negative size", "data/0", count=b"J\xff\xff\xff\xff")
_storage("storage of bfloat16", "BFloat16Storage", kind=b"BFloat16Storage")
_storage("storage untyped", "UntypedStorage", kind=b"UntypedStorage")
_storage("tensor past its storage", "data/0", shape=b"K\x05\x85")
_storage("tensor claims exabytes", "data/0", shape=_HUGE + b"\x85")
_storage("tensor of negative size", "data/0", shape=b"J\xfc\xff\xff\xff\x85")
_storage("tensor offset past the end", "an offset of 1", offset=b"K\x01")
_storage("tensor offset negative", "an offset of -1", offset=b"J\xff\xff\xff\xff")
_storage("tensor offset is a bool", "an offset of True", offset=b"\x88")
_storage("tensor strides of 0", "strides", strides=b"K\x00\x85")
_storage("tensor strides of 2", "strides", shape=b"K\x02\x85", strides=b"K\x02\x85")
_storage("tensor strides too many", "strides", strides=b"K\x04K\x01\x86")
_storage("tensor shape is a list", "shape", shape=b"](K\x04e")
_storage("tensor of many axes", "axes", shape=b"(" + b"K\x01" * 9 + b"t")
_storage("tensor with gradient", "gradient", rest=b"\x88ccollections\nOrderedDict\n)R")
_storage("tensor with hooks", "hooks", rest=b"\x89]")
damage_opcodes("tensor without storage", "other arguments", _REBUILD + b"(K\x00K\x00))\x89}tR")
damage_opcodes("tensor without arguments", "other arguments", _REBUILD + b")R")
