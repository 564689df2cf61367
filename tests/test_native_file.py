"""Model files for the library without Python: the layout, and the command that writes them."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from sparse_ddpm.cli.main import main
from sparse_ddpm.errors import ConfigError
from sparse_ddpm.lower import lower
from sparse_ddpm.native import MAGIC, PLAN, VERSION, native_model, write_native
from sparse_ddpm.program import Program
from sparse_ddpm.sampling import Table, make_table
from sparse_ddpm.ticket import DiffusionConfig, UNetConfig, synthetic_ticket

TINY = UNetConfig(dim=6, dim_mults=(1, 2), channels=1, image_size=8, groups=3, heads=2, dim_head=4)
TABLE = make_table(DiffusionConfig(), steps=3)


@pytest.fixture(scope="module")
def program() -> Program:
    return lower(synthetic_ticket(TINY, 0.9))


def sections(content: bytes) -> list[tuple[int, int, int, int]]:
    """Kind, checksum, place and size of each."""
    count = struct.unpack_from("<I", content, 24)[0]
    return [struct.unpack_from("<IIQQ", content, 64 + 32 * i) for i in range(count)]


def test_header_and_sections(program: Program) -> None:
    content = native_model(program, {"ddim-3": TABLE}, text={"dataset": "mnist"})
    magic, order, version, size, _, checksum = struct.unpack_from("<8sIIQII", content)
    assert (magic, order, version, size) == (MAGIC, 0x01020304, VERSION, len(content))
    table = content[64 : 64 + 32 * len(sections(content))]
    assert zlib.crc32(content[:28] + bytes(4) + content[32:64] + table) == checksum
    found = sections(content)
    assert [kind for kind, *_ in found] == [1, 2, 3, 4, 4, 5]
    for _, checksum, place, length in found:
        assert place % 64 == 0
        assert zlib.crc32(content[place : place + length]) == checksum
    assert found[-1][2] + found[-1][3] == len(content)
    _, _, text, length = found[1]
    assert content[text : text + length] == b"dataset=mnist\n"


def test_the_same_program_gives_the_same_bytes(program: Program) -> None:
    again = lower(synthetic_ticket(TINY, 0.9))
    samplers = {"ddim-3": TABLE}
    assert native_model(program, samplers) == native_model(again, samplers)


@pytest.mark.parametrize(
    ("batches", "lanes"), [((1,), [1]), ((16,), [16]), ((16, 3, 1), [1, 16]), ((2, 12), [1])]
)
def test_a_plan_for_each_kind_of_pass(
    program: Program, batches: tuple[int, ...], lanes: list[int]
) -> None:
    content = native_model(program, {"ddim-3": TABLE}, batches=batches)
    plans = [place for kind, _, place, _ in sections(content) if kind == PLAN]
    assert [struct.unpack_from("<q", content, place)[0] for place in plans] == lanes


def test_equal_arrays_are_stored_once(program: Program) -> None:
    one = native_model(program, {"a": TABLE})
    two = native_model(program, {"a": TABLE, "b": TABLE})
    assert len(two) - len(one) <= 128  # the record, and its padding


@pytest.mark.parametrize(
    ("samplers", "options", "message"),
    [
        ({}, {}, "samplers: expected at least one, got none."),
        ({"": TABLE}, {}, "name of a sampler: expected 1 to 31 printable"),
        ({"n" * 32: TABLE}, {}, "name of a sampler"),
        ({"with space": TABLE}, {}, "name of a sampler"),
        ({"ä": TABLE}, {}, "name of a sampler"),
        ({"a": TABLE}, {"batches": ()}, "batches: expected numbers of at least 1"),
        ({"a": TABLE}, {"batches": (0,)}, "batches"),
        ({"a": TABLE}, {"text": {"": "x"}}, "text: expected key=value"),
        ({"a": TABLE}, {"text": {"a=b": "x"}}, "text"),
        ({"a": TABLE}, {"text": {"a": "x\ny"}}, "text"),
        ({"a": TABLE}, {"text": {"a": "x\0"}}, "text"),
    ],
)
def test_what_cannot_be_written(
    program: Program,
    tmp_path: Path,
    samplers: dict[str, Table],
    options: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_native(tmp_path / "model.sddpm", program, samplers, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def export(tmp_path: Path, *arguments: str) -> tuple[int, Path]:
    path = tmp_path / "model.sddpm"
    ticket = ["export", "--synthetic", "small:0.95:element", "--what", "native"]
    return main([*ticket, "-o", str(path), *arguments]), path


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, path = export(tmp_path, "--json", "--samplers", "ddim:3", "dpm++:2", "--batch", "2")
    assert status == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert found["what"] == "native"
    assert found["version"] == VERSION
    assert found["samplers"] == ["ddim-3", "dpm++-2"]
    assert found["batches"] == [2]
    assert found["bytes"] == path.stat().st_size
    content = path.read_bytes()
    names = np.frombuffer(content, "S32", 1, sections(content)[2][2])
    assert names.tolist() == [b"ddim-3"]
    assert b"pattern=element\n" in content
    assert export(tmp_path, "--sampler", "ddpm", "--steps", "5")[0] == 0
    assert "native, version 1, " in (text := capsys.readouterr().out)
    assert "samplers ddpm-5" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samplers", "ddim"], "--samplers: expected NAME:STEPS, such as ddim:50, got 'ddim'."),
        (["--samplers", "euler:5"], "sampler: expected one of"),
        (["--samplers", "ddim:0"], "steps: expected an integer from 1"),
        (["--samplers", "ddim:5", "--steps", "5"], "--steps: expected none with --samplers, got 5"),
        (["--opset", "17"], "--opset: expected none with --what native, got 17."),
        (["--weights", "dense"], "--weights: expected none with --what native"),
        (["--no-check"], "--no-check: expected none with --what native"),
        (["--seed", "1"], "--seed: expected none with --what native, got 1."),
    ],
)
def test_wishes_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert export(tmp_path, *arguments)[0] == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_onnx_has_neither_samplers_nor_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx", reason="needs the onnx extra")
    for option in (["--samplers", "ddim:5"], ["--batch", "1"]):
        assert export(tmp_path, "--what", "denoiser", *option)[0] == 1
        assert f"{option[0]}: expected --what native beside it" in capsys.readouterr().err
