"""One JSON file a section: rows by key, kept across runs, written after every measurement."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu.budget import Budget
from sparse_ddpm.errors import ConfigError, expected
from sparse_ddpm.files import write_atomically

Row = dict[str, Any]
RUNNING = ".running.json"
"""In the folder of results while a measurement is under way: which, and until when it may take."""


class DeviceLost(Exception):  # noqa: N818 - the process has to end; the next one goes on
    """A kernel broke the process's CUDA context."""


class Results:
    """The rows of ``folder/section.json``.

    A row is kept while the sources it depends on are the same (`about.fingerprint`) and the file's
    device and versions are those of ``about``. Raises `ConfigError` where the file is of another
    device: nothing of another one is overwritten.
    """

    def __init__(self, folder: Path, section: str, about: dict[str, Any], budget: Budget) -> None:
        self.folder, self.section, self.about, self.budget = folder, section, about, budget
        self.path = folder / f"{section}.json"
        self.rows: dict[str, Row] = {}
        self._texts: dict[str, str] = {}
        found = read(self.path)
        if found is not None:
            device, here = found["about"]["device"]["name"], about["device"]["name"]
            if device != here:
                wanted = f"results of {here!r} (another --out, or --fresh)"
                raise ConfigError(expected(str(self.path), wanted, repr(device)))
            if found["about"]["versions"] == about["versions"]:
                self.rows = {row["key"]: row for row in found["rows"]}

    def kept(self, key: str, source: str) -> Row | None:
        """The row, if it was measured with the same ``source``."""
        row = self.rows.get(key)
        return row if row is not None and row["source"] == source else None

    def measure(
        self,
        key: str,
        source: str,
        make: Callable[[], Row],
        *,
        seconds: float = 5.0,
        limit: float = 60.0,
        again: bool = False,
    ) -> Row:
        """The kept row, or a new one from ``make``; with ``again`` only a failure is kept.

        ``seconds``: what has to be left of the budget, else `OutOfTime`. ``limit``: after so many
        the parent ends this process. What ``make`` raises becomes the row's ``failed``, and
        `DeviceLost` follows where the GPU no longer answers.
        """
        row = self.kept(key, source)
        if row is not None and not (again and "failed" not in row):
            return row
        self.budget.require(seconds)
        begun = {"key": key, "source": source, "commit": self.about["commit"]}
        running = {"section": self.section, "row": begun, "about": self.about}
        _write(self.folder / RUNNING, {**running, "until": time.time() + limit})
        start = time.perf_counter()
        try:
            made = make()
        except Exception as error:
            traceback.print_exc()
            made = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        row = {**begun, **made}
        row["took_s"] = round(time.perf_counter() - start, 3)
        self.put(row)
        (self.folder / RUNNING).unlink(missing_ok=True)
        print(f"{self.section}: {key}: {_brief(row)}", flush=True)
        problems = [made, *made.get("engines", {}).values()]
        reason = next((part["failed"] for part in problems if "failed" in part), None)
        if reason is not None and _lost():
            if "failed" not in row:
                self.put({**row, "failed": reason})
            raise DeviceLost(reason)
        return row

    def put(self, row: Row) -> None:
        """Add or replace one row and write the file."""
        self.rows[row["key"]] = row
        self._texts.pop(row["key"], None)
        _write_rows(self.path, self.section, self.about, self.rows, self._texts)


def forget(path: Path, *, failed_only: bool) -> None:
    """Remove a section's file, or only the rows of what failed."""
    found = read(path)
    if found is None or not failed_only:
        path.unlink(missing_ok=True)
        return
    rows = {row["key"]: row for row in found["rows"] if "failed" not in row}
    _write_rows(path, found["section"], found["about"], rows, {})


def read(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found


def bury(folder: Path, reason: str) -> str | None:
    """Mark the measurement under way as failed, for a process that died; its name, or None."""
    running = read(folder / RUNNING)
    if running is None:
        return None
    (folder / RUNNING).unlink(missing_ok=True)
    results = Results(folder, running["section"], running["about"], Budget(0.0))
    results.put({**running["row"], "failed": reason})
    return f"{running['section']}: {running['row']['key']}"


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _write_rows(
    path: Path, section: str, about: dict[str, Any], rows: dict[str, Row], texts: dict[str, str]
) -> None:
    """A line a row. ``texts``: of the rows, kept, as all are written again after each."""
    for key, row in rows.items():
        if key not in texts:
            texts[key] = json.dumps(row, allow_nan=False)
    head = json.dumps({"schema": 1, "section": section, "about": about}, indent=1)
    lines = ",\n".join(texts[key] for key in rows)
    text = f'{head[:-2]},\n "rows": [\n{lines}\n]\n}}\n'
    write_atomically(path, lambda file: file.write(text.encode()))


def _brief(row: Row) -> str:
    if "failed" in row:
        return f"failed: {row['failed'][:300]}"
    return str(row.get("brief", "done")) + f" ({row['took_s']:.1f} s)"


def _lost() -> bool:
    """Whether the CUDA context is broken. An illegal access stays with the process for ever."""
    import torch

    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False
