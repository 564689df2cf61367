"""The rows of docs/tickets.md, as files under benchmarks/experiments, and where results are kept.

common.toml is under every row. A row has a `title`, the `tables` it stands in, `seeds`, and either
a `[train]` table of options of `sparse-ddpm train`, or `of` another row and the `control` of it, or
the `pair` of tickets that are compared. "ticket:ROW/SEED" as an option stands for that ticket. An
`[evaluate]` table has options of `sparse-ddpm evaluate`. `remedy` is a pair of another row and of
what this one does otherwise, so that its distance may come nearer to that of dense.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.lottery.settings import GIVEN

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "experiments"
RESULTS = ROOT / "benchmarks" / "results" / "tickets"
COMMON = "common"
SCHEMA = 2
"""Of result files."""
TABLES = ("matching", "control", "similarity", "allocation", "pattern", "shipping")
STAGES = ("train", "inspect", "evaluate", "bench")
KNOWN = (
    "title",
    "tables",
    "seeds",
    "budget",
    "train",
    "evaluate",
    "of",
    "control",
    "pair",
    "remedy",
)
DECIDED = tuple(name.replace("_", "-") for name in GIVEN)
"""Options that `sparse-ddpm train --from` refuses."""
LATER = (
    *("rounds", "prune-fraction", "sparsity", "steps", "final-steps"),
    *("allocation", "similar-to", "pattern", "permute", "gradual", "ramp", "distil"),
)
"""Options that do not bear on the dense round, so that rows which differ in them share it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what to train, whose control to train, or what to compare.

    ``pair``: twice (row, seed). ``budget``: steps of all rounds, or 0 where a row has its own.
    """

    name: str
    title: str
    tables: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: int
    train: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)
    of: str = ""
    control: str = ""
    pair: tuple[tuple[str, int], ...] = ()
    remedy: tuple[str, str] | None = None

    @property
    def trained(self) -> str:
        """The row whose run holds this row's ticket."""
        return self.of or self.name

    @property
    def stages(self) -> tuple[str, ...]:
        return ("compare",) if self.pair else STAGES

    @property
    def begins(self) -> tuple[str, int] | None:
        """The (row, seed) whose ticket its run begins with."""
        text = self.train.get("from")
        return None if text is None else parse_ticket(self.name, text)

    def steps(self) -> int:
        """Training steps of its own run, from the first to those of its ticket."""
        dense, rounds = self.train["dense-steps"], self.train["rounds"]
        if rounds == 0:
            return int(dense)
        last = self.train.get("final-steps", self.train["steps"])
        return int(dense + (rounds - 1) * self.train["steps"] + last)


def load_rows(folder: Path = FOLDER) -> dict[str, Row]:
    """All rows by name, those of the first tables first. Raises `ConfigError`."""
    common = _read(folder / f"{COMMON}.toml")
    found = {}
    for path in sorted(folder.glob("*.toml")):
        if path.stem != COMMON:
            found[path.stem] = _row(path.stem, _read(path), common)
    for row in found.values():
        named = (*row.pair, *filter(None, (row.begins, row.remedy)))
        for name in (row.of, *(name for name, _ in named)):
            if name and (name not in found or found[name].pair):
                raise ConfigError(expected(f"row {row.name}", "another row's name", repr(name)))
        if row.of:
            row.train.update(found[row.of].train)
        if row.train and row.budget and row.steps() != row.budget:
            what = f"row {row.name}: steps in all"
            raise ConfigError(expected(what, f"the budget of {row.budget}", row.steps()))
    return dict(sorted(found.items(), key=lambda item: _place(item[1])))


def _place(row: Row) -> tuple[Any, ...]:
    """By table, then by name, with the numbers in it by their size."""
    words = re.split(r"(\d+)", row.name)
    words[1::2] = [f"{int(digits):9}" for digits in words[1::2]]
    return min(TABLES.index(table) for table in row.tables), words


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(expected(str(path), "a TOML file", error)) from error


def _row(name: str, content: dict[str, Any], common: dict[str, Any]) -> Row:
    merged = {**common, **content}
    for key in merged:
        if key not in KNOWN:
            raise ConfigError(expected(f"row {name}", f"keys among {', '.join(KNOWN)}", key))
    if sum(key in content for key in ("train", "of", "pair")) != 1:
        raise ConfigError(expected(f"row {name}", "one of train, of, pair", list(content)))
    tables = tuple(merged.get("tables", ()))
    if not tables or not set(tables) <= set(TABLES):
        raise ConfigError(expected(f"row {name}: tables", f"some of {TABLES}", tables))
    pair = tuple(parse_ticket(name, text) for text in merged.get("pair", ()))
    remedy = merged.get("remedy")
    if remedy is not None and [type(part) for part in remedy] != [str, str]:
        raise ConfigError(expected(f"row {name}: remedy", "a row and what is otherwise", remedy))
    if ("of" in content) != ("control" in content) or ("pair" in content and len(pair) != 2):
        raise ConfigError(expected(f"row {name}", "of and control, or a pair", list(content)))
    return Row(
        name=name,
        title=merged["title"],
        tables=tables,
        seeds=(0,) if pair else tuple(merged["seeds"]),
        budget=merged["budget"],
        train=_options(content["train"], common["train"]) if "train" in content else {},
        evaluate=merged.get("evaluate", {}),
        of=merged.get("of", ""),
        control=merged.get("control", ""),
        pair=pair,
        remedy=None if remedy is None else (remedy[0], remedy[1]),
    )


def _options(own: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """The options of one run. What a ticket that it begins with decides is not said again."""
    if "from" in own:
        common = {name: value for name, value in common.items() if name not in DECIDED}
    return {**common, **own}


def parse_ticket(row: str, text: str) -> tuple[str, int]:
    match = re.fullmatch(r"ticket:([\w.-]+)/(\d+)", text)
    if not match:
        raise ConfigError(expected(f"row {row}", "ticket:ROW/SEED", repr(text)))
    return match[1], int(match[2])


def dense_options(row: Row) -> dict[str, Any]:
    """The options that the dense round depends on."""
    options = {name: value for name, value in row.train.items() if name not in LATER}
    if not str(options.get("rewind", "")).startswith("late:"):
        options.pop("rewind", None)
    return options


def dense_key(row: Row) -> str:
    """The same for rows whose dense round is the same."""
    return json.dumps(dense_options(row), sort_keys=True)


def result_path(row: Row, results: Path = RESULTS) -> Path:
    return results / f"{row.name}.json"


def read_result(row: Row, results: Path = RESULTS) -> dict[str, Any]:
    """What is kept of ``row``: ``{"schema": 2, "row": name, "runs": {seed: {stage: ...}}}``.

    ``bench`` is a list of timings. Raises `ConfigError` for a file of another schema.
    """
    path = result_path(row, results)
    if not path.exists():
        return {"schema": SCHEMA, "row": row.name, "runs": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found.get("schema") != SCHEMA:
        raise ConfigError(expected(f"{path.name}: schema", SCHEMA, found.get("schema")))
    return found
