"""Model files with right checksums and wrong numbers: each is refused for what is wrong."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from c_library import Library, StatusError, aligned, quick_build

from sparse_ddpm.lower import lower
from sparse_ddpm.native import ARRAYS, MODEL, PLAN, SAMPLERS, TEXT, assemble, native_model
from sparse_ddpm.sampling import make_table
from sparse_ddpm.ticket import DiffusionConfig, UNetConfig, synthetic_ticket

TINY = UNetConfig(dim=6, dim_mults=(1, 2), channels=1, image_size=8, groups=3, heads=2, dim_head=4)
LOAD, STORE, CONV, NORM, CHANNEL_NORM, ATTENTION = range(6)
SPACE_TO_DEPTH, CONTEXT, APPLY = 7, 11, 13
OUT, X, Y = 56, 104, 152
OFFSET, STRIDE, ROW, LEAD, CHANNELS, HEIGHT, HALO = 0, 8, 16, 24, 32, 36, 44
A, PTR, OFFSETS, VALUES, SLOTS = 208, 240, 256, 272, 288

Sections = dict[int, bytearray]


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(quick_build() / "libsparse_ddpm.so")


@pytest.fixture(scope="module")
def sound() -> bytes:
    samplers = {"ddim-3": make_table(DiffusionConfig(), steps=3)}
    program = lower(synthetic_ticket(TINY, 0.8))
    return native_model(program, samplers, batches=(1,), text={"dataset": "none"})


def taken_apart(content: bytes) -> Sections:
    entries = [struct.unpack_from("<I4xQQ", content, 64 + 32 * i) for i in range(5)]
    return {kind: bytearray(content[at : at + size]) for kind, at, size in entries}


def put(section: bytearray, at: int, value: float, kind: str = "q") -> None:
    struct.pack_into(f"<{kind}", section, at, value)


def get(section: bytearray, at: int, kind: str = "q") -> int:
    return int(struct.unpack_from(f"<{kind}", section, at)[0])


def operation(plan: bytearray, kind: int, where: Callable[[int], bool] = lambda _: True) -> int:
    """Where the first operation of a kind begins that ``where`` accepts."""
    blocks, count = struct.unpack_from("<qq", plan, 16)
    starts = (32 + 448 * blocks + 304 * i for i in range(count))
    return next(at for at in starts if get(plan, at, "i") == kind and where(at))


def edit(kind: int, field: int, value: float, form: str = "q") -> Callable[[Sections], None]:
    """A field of the first operation of a kind."""

    def change(sections: Sections) -> None:
        plan = sections[PLAN]
        put(plan, operation(plan, kind) + field, value, form)

    return change


def element(
    kind: int, array: int, index: int, value: float, form: str
) -> Callable[[Sections], None]:
    """An element of an array of the first operation of a kind."""

    def change(sections: Sections) -> None:
        plan = sections[PLAN]
        place = get(plan, operation(plan, kind) + array)
        put(sections[ARRAYS], place + index * struct.calcsize(form), value, form)

    return change


def offset(value: int, copies: bool) -> Callable[[Sections], None]:
    """The first of a convolution that reads copies of its input, or the input itself."""

    def change(sections: Sections) -> None:
        plan = sections[PLAN]
        at = operation(plan, CONV, lambda at: bool(get(plan, at + 28, "i")) == copies)
        put(sections[ARRAYS], get(plan, at + OFFSETS), value, "i")

    return change


def all_sides(sections: Sections) -> None:
    for at in (4, 8):
        put(sections[MODEL], at, 2**20, "i")


def in_block(field: int, value: float, form: str) -> Callable[[Sections], None]:
    return lambda sections: put(sections[PLAN], 32 + field, value, form)


def in_head(field: int, value: int) -> Callable[[Sections], None]:
    """A number of the first head of the first block."""

    def change(sections: Sections) -> None:
        place = get(sections[PLAN], 32 + 432)
        put(sections[ARRAYS], place + 4 * field, value, "i")

    return change


def in_weight(array: int, value: int, form: str) -> Callable[[Sections], None]:
    """The first element of an array of q's weight of the first block."""

    def change(sections: Sections) -> None:
        place = get(sections[PLAN], 32 + 48 + array)
        put(sections[ARRAYS], place, value, form)

    return change


def section(kind: int, at: int, value: float, form: str) -> Callable[[Sections], None]:
    return lambda sections: put(sections[kind], at, value, form)


MANY = 2**62
CASES: dict[str, tuple[Callable[[Sections], None], str]] = {
    "no image": (section(MODEL, 0, 0, "i"), "DAMAGED: the shape of an image"),
    "another image": (section(MODEL, 4, 16, "i"), "operation 0: wrong: the shape of an image"),
    "image of terabytes": (all_sides, "LIMIT: images are larger"),
    "another type": (section(MODEL, 12, 1, "i"), "UNSUPPORTED"),
    "time table of others": (section(MODEL, 16, 7, "q"), "a sampler's table has another size"),
    "text with a zero": (section(TEXT, 3, 0, "b"), "the text holds a zero"),
    "text without a line": (lambda s: s[TEXT].pop(), "a line of the text"),
    "sampler without a name": (section(SAMPLERS, 0, 0, "b"), "the name of a sampler"),
    "sampler without an end": (
        lambda s: s[SAMPLERS].__setitem__(slice(0, 32), b"n" * 32),
        "the name of a sampler",
    ),
    "no sampler": (lambda s: s[SAMPLERS].clear(), "there is no sampler"),
    "half a sampler": (lambda s: s[SAMPLERS].extend(b"half"), "a section ends too early"),
    "twice a sampler": (lambda s: s[SAMPLERS].extend(s[SAMPLERS]), "the same name"),
    "endless steps": (section(SAMPLERS, 32, 2**31 - 1, "i"), "number of steps"),
    "more steps": (section(SAMPLERS, 32, 4, "i"), "another size than its steps"),
    "maybe clip": (section(SAMPLERS, 36, 2, "i"), "whether it clips"),
    "table outside": (section(SAMPLERS, 56, 2**40, "q"), "an array lies outside"),
    "table not aligned": (section(SAMPLERS, 56, 4, "q"), "an array lies outside"),
    "table of many": (section(SAMPLERS, 64, MANY, "q"), "another size than its steps"),
    "negative lanes": (section(PLAN, 0, -1, "q"), "number of images of a pass"),
    "lanes of 15": (section(PLAN, 0, 15, "q"), "number of images of a pass"),
    "huge arena": (section(PLAN, 8, 2**33, "q"), "LIMIT"),
    "overflowing arena": (section(PLAN, 8, MANY, "q"), "the size of the arena"),
    "small arena": (section(PLAN, 8, 100, "q"), "the place of a tensor|the channels of a tensor"),
    "many blocks": (section(PLAN, 16, MANY, "q"), "the number of blocks"),
    "many operations": (section(PLAN, 24, MANY, "q"), "the number of operations"),
    "one operation less": (lambda s: s[PLAN].__delitem__(slice(-304, None)), "number of op"),
    "unknown kind": (edit(NORM, 0, 14, "i"), "panels|its kind"),
    "negative kind": (edit(NORM, 0, -1, "i"), "its kind"),
    "input twice": (edit(SPACE_TO_DEPTH, 0, LOAD, "i"), "the input is not loaded first, and once"),
    "output early": (edit(SPACE_TO_DEPTH, 0, STORE, "i"), "the output is not stored last"),
    "tensor before the arena": (edit(CONV, X + OFFSET, 0), "the place of a tensor"),
    "tensor behind the arena": (edit(CONV, X + OFFSET, 10**7), "the place of a tensor"),
    "tensor far away": (edit(CONV, OUT + OFFSET, MANY), "the place of a tensor"),
    "channels on top": (edit(CONV, OUT + STRIDE, 16), "the channels of a tensor"),
    "channels far apart": (edit(CONV, OUT + STRIDE, 10**9), "the channels of a tensor"),
    "rows on top": (edit(CONV, X + ROW, 1), "the rows of a tensor"),
    "no room for the halo": (edit(NORM, OUT + HALO, 3, "i"), "the rows|the channels of a tensor"),
    "lead too short": (edit(CONV, X + LEAD, -16), "the channels of a tensor"),
    "no channels": (edit(CONV, X + CHANNELS, -1, "i"), "the shape of a tensor"),
    "tall": (edit(CONV, X + HEIGHT, 2**30, "i"), "the shape of a tensor"),
    "another height": (edit(NORM, X + HEIGHT, 4, "i"), "the shape of a norm"),
    "ghost of a residual": (edit(NORM, Y + OFFSET, 64), "a tensor where none belongs"),
    "group of 3": (edit(CONV, 20, 3, "i"), "the group of panels"),
    "group of 0": (edit(CONV, 20, 0, "i"), "the group of panels"),
    "many panels": (edit(CONV, 200, MANY), "the number of panels"),
    "fewer panels": (edit(CONV, 200, 1), "the number of panels"),
    "no bounds of panels": (edit(CONV, PTR + 8, 1), "the number of panels"),
    "even size": (edit(CONV, 24, 4, "i"), "the size of a convolution"),
    "copies of nothing": (edit(CONV, 28, 5, "i"), "the copies of a convolution"),
    "half upsampled": (edit(CONV, 32, 2, "i"), "a flag"),
    "upsampled": (edit(CONV, 32, 1, "i"), "the shape of a convolution"),
    "bias too short": (edit(CONV, A + 8, 2), "the bias of a convolution"),
    "bias of no time": (edit(CONV, 40, 10**6), "the bias of a convolution|columns of the time"),
    "panels out of order": (element(CONV, PTR, 1, 10**6, "q"), "the entries of a panel"),
    "panels begin late": (element(CONV, PTR, 0, 1, "q"), "the entries of panels"),
    "column too large": (offset(10**6, copies=True), "the offset of an entry"),
    "column negative": (offset(-1, copies=True), "the offset of an entry"),
    "offset too large": (offset(10**6, copies=False), "the offset of an entry"),
    "offset too small": (offset(-(10**6), copies=False), "the offset of an entry"),
    "row too large": (element(CONV, SLOTS, 0, 10**6, "i"), "the rows of panels"),
    "row negative": (element(CONV, SLOTS, 0, -2, "i"), "the rows of panels"),
    "row twice": (element(CONV, SLOTS, 0, 1, "i"), "the rows of panels"),
    "row left out": (element(CONV, SLOTS, 0, -1, "i"), "the rows of panels"),
    "no groups": (edit(NORM, 8, 0, "i"), "the groups of a norm"),
    "odd groups": (edit(NORM, 8, 4, "i"), "the groups of a norm"),
    "column past the table": (edit(NORM, 40, 10**6), "columns of the time table|factors"),
    "column before the table": (edit(NORM, 40, -2), "columns of the time table|factors"),
    "eps is NaN": (edit(NORM, 48, float("nan"), "d"), "eps"),
    "norm with panels": (edit(NORM, 200, 1), "panels where none belong"),
    "norm with a block": (edit(NORM, 36, 0, "i"), "a block where none belongs"),
    "block that is not there": (edit(CONTEXT, 36, 10**6, "i"), "a block that is not there"),
    "context without a block": (edit(CONTEXT, 36, -1, "i"), "none where one does"),
    "gain too short": (edit(CHANNEL_NORM, A + 8, 1), "the gain of a norm"),
    "many heads": (edit(ATTENTION, 12, 2**31 - 1, "i"), "heads"),
    "other heads": (edit(ATTENTION, 12, 3, "i"), "the shape of an attention"),
    "no head": (edit(ATTENTION, 16, 0, "i"), "heads"),
    "unshuffled twice": (edit(SPACE_TO_DEPTH, OUT + HEIGHT, 8, "i"), "the shape of an unsh|place"),
    "block of many heads": (in_block(0, 10**6, "i"), "heads of a block"),
    "block of no pixels": (in_block(8, 0, "i"), "the pixels of a block"),
    "block of another stride": (in_block(12, 16 * 3, "i"), "the pixels of a block"),
    "block without chunks": (in_block(16, 0, "i"), "the chunks of a block"),
    "block of many chunks": (in_block(16, 10**6, "i"), "the chunks of a block"),
    "contexts outside": (in_block(24, 10**9, "q"), "the contexts of a block"),
    "contexts before": (in_block(24, -1, "q"), "the contexts of a block"),
    "contexts without room": (in_block(32, 1, "q"), "the context of a head"),
    "contexts without end": (in_block(32, MANY, "q"), "the contexts of a block"),
    "head of many rows": (in_head(1, 10**6), "the rows of a head"),
    "head without rows": (in_head(1, -1), "the rows of a head"),
    "head of all both": (in_head(0, 5), "the rows of a head"),
    "head of many panels": (in_head(4, 10**6), "the panels of a head"),
    "head of fewer panels": (in_head(4, 0), "the rows of panels|the panels of heads"),
    "head elsewhere": (in_head(7, 10**6), "the context of a head"),
    "row of scratch": (in_weight(32, 10**6, "i"), "the offset of an entry"),
    "between rows of scratch": (in_weight(32, 1, "i"), "the offset of an entry"),
    "before scratch": (in_weight(32, -16, "i"), "the offset of an entry"),
    "row of a head": (in_weight(64, 100, "i"), "the rows of panels"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_number_is_named(library: Library, sound: bytes, name: str) -> None:
    change, message = CASES[name]
    sections = taken_apart(sound)
    assert assemble([(kind, bytes(data)) for kind, data in sections.items()]) == sound
    change(sections)
    damaged = assemble([(kind, bytes(data)) for kind, data in sections.items()])
    assert damaged != sound
    with pytest.raises(StatusError, match=message):
        library.open(aligned(damaged))


def test_sections_that_do_not_fit_together(library: Library, sound: bytes) -> None:
    sections = [(kind, bytes(data)) for kind, data in taken_apart(sound).items()]

    def refused(parts: list[tuple[int, bytes]], message: str) -> None:
        with pytest.raises(StatusError, match=message):
            library.open(aligned(assemble(parts)))

    for index, (kind, _) in enumerate(sections):
        missing = "there is no plan" if kind == PLAN else "a section is missing"
        refused(sections[:index] + sections[index + 1 :], missing)
        twice = "two plans are for" if kind == PLAN else "two sections are of the same kind"
        refused([*sections, sections[index]], twice)
    refused([*sections, (6, b"")], "no known kind")
    refused([*sections, (0, b"")], "no known kind")
    refused([], "the number of sections")
    refused([*sections, *[(TEXT, b"")] * 64], "the number of sections")
    with library.open(aligned(assemble(sections[::-1]))) as model:
        assert np.isfinite(model.sample()).all()
