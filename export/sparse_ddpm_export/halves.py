"""A Program whose trained values are what a float16 file holds."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.errors import ProgramError, expected
from sparse_ddpm.formats import BSR, CSR, Dense, Matrix
from sparse_ddpm.program import Operation, Program, TimeEmbedding
from sparse_ddpm_export.form import Form

Float = NDArray[np.float32]
Record = TypeVar("Record", bound=Operation | TimeEmbedding)


def prepare(program: Program, form: Form | None) -> tuple[Program, Form]:
    """The Program that a file of ``form`` (None: `Form`'s defaults) holds, and the form."""
    form = form or Form()
    return (round_program(program) if form.dtype == "float16" else program), form


def round_program(program: Program) -> Program:
    """Every weight, bias and gain rounded to float16, in float32 arrays as before.

    Raises `ProgramError` for a value above 65504, which names where it is.
    """
    operations = tuple(
        _rounded_fields(operation, operation.out) for operation in program.operations
    )
    time = _rounded_fields(program.time, "time")
    return dataclasses.replace(program, operations=operations, time=time)


def _rounded_fields(record: Record, name: str) -> Record:
    """``record`` with every field that holds trained values rounded."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray | Dense | CSR | BSR):
            changes[field.name] = _rounded(value, f"{name}.{field.name}")
    return dataclasses.replace(record, **changes)


def _rounded(value: Float | Matrix, what: str) -> Float | Matrix:
    match value:
        case Dense() | CSR():
            return dataclasses.replace(value, values=_half(value.values, what))
        case BSR():
            return dataclasses.replace(value, blocks=_half(value.blocks, what))
        case _:
            return _half(value, what)


def _half(array: Float, what: str) -> Float:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(array).max())
        raise ProgramError(expected(what, "at most 65504 with dtype float16", largest))
    return half.astype(np.float32)
