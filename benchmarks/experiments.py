"""Run or resume the rows of docs/tickets.md: one TOML file per row under benchmarks/experiments.

python benchmarks/experiments.py --list
python benchmarks/experiments.py element-95-lr [ROW ...] --data ROOT [--seeds 0 1] [--dry]
python benchmarks/experiments.py --all --data ROOT --jobs 2

A row is trained, accounted for, judged and timed by the commands of sparse-ddpm; what they print
as JSON is kept in benchmarks/results/tickets/ROW.json, stage by stage and seed by seed. What is
there is not done again, and training that was stopped goes on. ROOT holds the folder mnist; its
default is SPARSE_DDPM_DATA. Runs are kept in runs/tickets. Time nothing else beside it.

A neighbour can disturb a machine for as long as one timing takes, so a row may have several, of
which the page takes the calmest: each run with --again bench adds one to every row that it names.
What is trained anew loses what was found of the ticket before it.

With --jobs N, N rows are at work at once, each on its share of the cores: more rows an hour than
one at a time on all. What commands say then goes to a file beside each run; rows are timed last,
one at a time on all cores. The last bits of a ticket depend on how many cores trained it: a run
that was stopped goes on only with as many as it began with.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiment_lanes import Locks, run_in_lanes
from experiment_rows import (
    FOLDER,
    RESULTS,
    ROOT,
    STAGES,
    Row,
    dense_key,
    dense_options,
    load_rows,
    parse_ticket,
    read_result,
    result_path,
)

from sparse_ddpm.bench.engines import DENSE
from sparse_ddpm.errors import ConfigError, SparseDDPMError, expected
from sparse_ddpm.files import write_atomically

LONG = ("operations", "memory", "storage")
"""What ``inspect`` says that is not kept."""
ALONE = ("inspect", "bench")
"""Stages whose figures depend on the cores at hand."""
TURNS = 10
"""Of an engine in one timing; several timings, far apart, say more than one that is longer."""
DENSE_FILES = ("ticket.pt", "samples.png", "weights.pt", "rewind.pt", "metrics.json")


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are on this machine."""

    data: Path | None
    runs: Path
    results: Path
    samples: int = 10_000
    dry: bool = False


class Runner:
    """Does what is missing. ``rows``: all of them, since some need others."""

    def __init__(self, rows: dict[str, Row], places: Places) -> None:
        self.rows, self.places = rows, places
        self.pretended: set[tuple[str, int, str]] = set()
        self.locks, self.lane = Locks(), threading.local()

    def run(self, name: str, seed: int, stages: tuple[str, ...], again: tuple[str, ...]) -> None:
        """Bring one row and seed up to date. Raises `SparseDDPMError` when a command fails."""
        row = self.rows[name]
        with self.locks.hold("run", row.trained, seed):
            for stage in row.stages:
                if stage not in stages:
                    continue
                done = stage in self._kept(row, seed)
                if (done and stage not in again) or (name, seed, stage) in self.pretended:
                    continue
                self._say(f"{name}, seed {seed}: {stage}")
                getattr(self, f"_{stage}")(row, seed)

    def run_to_log(self, name: str, seed: int, *stages: tuple[str, ...]) -> None:
        """As `run`, with what the commands say on stderr in a file beside the run."""
        self.places.runs.mkdir(parents=True, exist_ok=True)
        path = self.places.runs / f"{name}-seed{seed}.log"
        with path.open("a", encoding="utf-8") as self.lane.log:
            try:
                self.run(name, seed, *stages)
            except SparseDDPMError as error:
                raise SparseDDPMError(f"{error} See {path}.") from error
            finally:
                self.lane.log = None

    def ticket(self, name: str, seed: int) -> Path:
        """The ticket of a row, trained if it is not there yet."""
        self.run(name, seed, ("train",), ())
        row = self.rows[name]
        folder = self._folder(row.trained, seed)
        return (
            folder / f"control-{row.control.replace(':', '-')}" / "ticket.pt"
            if row.of
            else folder / "ticket.pt"
        )

    def _train(self, row: Row, seed: int) -> None:
        folder = self._folder(row.trained, seed)
        if row.of:
            self.run(row.of, seed, ("train",), ())
        words = ["train", "--data", self._data(), "--out", str(folder), "--resume", "--json"]
        for name, value in row.train.items():
            words += self._option(row, name, value)
        words += ["--seed", str(seed)] + (["--control", row.control] if row.of else [])
        with self._dense_round(row, seed, folder):
            found = self._command(words)
        if found is None:
            self.pretended.add((row.name, seed, "train"))
            return
        controls = [m for m in found["controls"] if m["control"] == row.control]
        part = {"controls": controls} if row.of else {"rounds": found["rounds"]}
        self._keep(row, seed, "train", part)

    def _inspect(self, row: Row, seed: int) -> None:
        found = self._command(["inspect", str(self.ticket(row.name, seed)), "--json"])
        if found is not None:
            # What has a row for each operation or tensor is for looking at, not for keeping.
            self._keep(row, seed, "inspect", {k: v for k, v in found.items() if k not in LONG})

    def _evaluate(self, row: Row, seed: int) -> None:
        ticket, samples = str(self.ticket(row.name, seed)), str(self.places.samples)
        words = ["evaluate", ticket, "--data", self._data(), "--samples", samples, "--json"]
        for name, value in row.evaluate.items():
            words += [f"--{name}", str(value)]
        self._keep(row, seed, "evaluate", self._command(words))

    def _bench(self, row: Row, seed: int) -> None:
        """Time it once more, in turns with the same network with every weight stored."""
        found = self._command(self._bench_words(row, seed))
        if row.control.startswith("narrow:"):
            # Its own dense network is as narrow: the wide one is that of its ticket.
            wide = self._command(self._bench_words(self.rows[row.of], seed))
            if found is not None and wide is not None:
                narrow = [each for each in found["results"] if each["engine"] != DENSE]
                dense = [each for each in wide["results"] if each["engine"] == DENSE]
                found["results"] = [*narrow, *dense]
        if found is not None:
            self._keep(row, seed, "bench", [*self._kept(row, seed).get("bench", []), plain(found)])

    def _bench_words(self, row: Row, seed: int) -> list[str]:
        ticket = str(self.ticket(row.name, seed))
        words = ["bench", ticket, "--peers", "none", "--dtype", "float32", "--dense", "--json"]
        return [*words, "--rounds", str(TURNS)]

    def _compare(self, row: Row, seed: int) -> None:
        tickets = [str(self.ticket(*each)) for each in row.pair]
        self._keep(row, seed, "compare", self._command(["compare", *tickets, "--json"]))

    def _folder(self, name: str, seed: int) -> Path:
        return self.places.runs / f"{name}-seed{seed}"

    def _option(self, row: Row, name: str, value: Any) -> list[str]:
        if isinstance(value, bool):
            return [f"--{name}"] if value else []
        values = value if isinstance(value, list) else [value]
        texts = [str(each) for each in values]
        for index, text in enumerate(texts):
            if text.startswith("ticket:"):
                texts[index] = str(self.ticket(*parse_ticket(row.name, text)))
        return [f"--{name}", *texts]

    @contextlib.contextmanager
    def _dense_round(self, row: Row, seed: int, folder: Path) -> Iterator[None]:
        """Begin with the dense round of a run that trained the very same one.

        Where none has and this run is to train it, others wait until it has.
        """
        if row.of or row.begins or self.places.dry:
            yield
            return
        key = dense_key(row)
        found = partial(self._with_dense_round, row, seed)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.locks.hold("dense", key, seed, unless=lambda: bool(found())))
            if not folder.exists() and (other := found()):
                self._say(f"{row.name}, seed {seed}: the dense round of {other}")
                self._copy_dense_round(self._folder(other, seed), folder)
            if found():
                stack.close()
            yield

    def _with_dense_round(self, row: Row, seed: int) -> str:
        """The name of a row that has trained the dense round of ``row``, or nothing."""
        for name in (row.name, *self.rows):
            other = self.rows[name]
            same = not (other.of or other.pair) and dense_options(other) == dense_options(row)
            if same and (self._folder(name, seed) / "round-00" / "metrics.json").exists():
                return name
        return ""

    @staticmethod
    def _copy_dense_round(source: Path, folder: Path) -> None:
        half = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(half, ignore_errors=True)
        (half / "round-00").mkdir(parents=True)
        for name in DENSE_FILES:
            if (source / "round-00" / name).exists():
                shutil.copyfile(source / "round-00" / name, half / "round-00" / name)
        os.replace(half, folder)

    def _data(self) -> str:
        if self.places.data is None:
            raise ConfigError(expected("--data", "the folder of the data sets", "none"))
        return f"mnist:{self.places.data / 'mnist'}"

    def _kept(self, row: Row, seed: int) -> dict[str, Any]:
        kept = read_result(row, self.places.results)["runs"].get(str(seed), {})
        found = kept.get("options", row.train)
        for key in {**found, **row.train}:
            if found.get(key) != row.train.get(key):
                what = f"row {row.name}, seed {seed}: {key}"
                wanted = f"{found.get(key)!r} as its result has (remove that to begin anew)"
                raise ConfigError(expected(what, wanted, repr(row.train.get(key))))
        return dict(kept)

    def _keep(self, row: Row, seed: int, stage: str, found: Any) -> None:
        if found is None:
            return
        found = self._without_places(plain(found))
        # Two seeds of a row share the file.
        with self.locks.hold("result", row.name):
            result = read_result(row, self.places.results)
            run = result["runs"].setdefault(str(seed), {})
            if stage == "train" and run.get(stage, found) != found:
                run.clear()
            if row.train:
                run["options"] = row.train
            run[stage] = found
            text = json.dumps(result, indent=1, allow_nan=False) + "\n"
            self.places.results.mkdir(parents=True, exist_ok=True)
            path = result_path(row, self.places.results)
            write_atomically(path, lambda file: file.write(text.encode()))

    def _without_places(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._without_places(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._without_places(each) for each in value]
        if isinstance(value, str):
            value = value.replace(str(self.places.runs), "runs")
            return value.replace(str(self.places.data), "DIR") if self.places.data else value
        return value

    def _command(self, words: list[str]) -> dict[str, Any] | None:
        """What ``sparse-ddpm`` prints for ``words``; None in a dry run."""
        if self.places.dry:
            print(shlex.join(["sparse-ddpm", *words]))
            return None
        done = subprocess.run(
            [sys.executable, "-m", "sparse_ddpm", *words],
            stdout=subprocess.PIPE,
            stderr=getattr(self.lane, "log", None),
            check=False,
        )
        if done.returncode != 0:
            raise SparseDDPMError(f"{shlex.join(words)} ended with status {done.returncode}.")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _say(self, text: str) -> None:
        print(f"experiments: {text}", file=sys.stderr, flush=True)


def plain(found: Any) -> Any:
    """``found`` without the version of its own format."""
    return {k: v for k, v in found.items() if k != "schema"} if isinstance(found, dict) else found


def apart(rows: dict[str, Row], pairs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """``pairs`` with one for each dense round first: others would wait for it in their lanes."""
    first: dict[tuple[str, int], tuple[str, int]] = {}
    for name, seed in pairs:
        row = rows[name]
        if not (row.of or row.begins or row.pair):
            first.setdefault((dense_key(row), seed), (name, seed))
    return [*first.values(), *(pair for pair in pairs if pair not in first.values())]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--all", action="store_true", help="all rows, the first seeds first")
    parser.add_argument("--list", action="store_true", help="the rows, and what is done of them")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="only these")
    parser.add_argument("--stages", nargs="+", choices=(*STAGES, "compare"), help="only these")
    again = "do these anew; of bench, add another timing"
    parser.add_argument("--again", nargs="+", choices=(*STAGES, "compare"), default=[], help=again)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="rows at once; default: 1")
    parser.add_argument("--samples", type=int, default=10_000, help="default: 10000")
    environment = os.environ.get("SPARSE_DDPM_DATA")
    parser.add_argument("--data", type=Path, metavar="ROOT", default=environment)
    parser.add_argument("--runs", type=Path, metavar="DIR", default=ROOT / "runs" / "tickets")
    parser.add_argument("--results", type=Path, metavar="DIR", default=RESULTS)
    parser.add_argument("--experiments", type=Path, metavar="DIR", default=FOLDER)
    parser.add_argument("--dry", action="store_true", help="print the commands, run nothing")
    options = parser.parse_args(arguments)
    if not (options.rows or options.all or options.list):
        parser.error("expected rows, --all or --list")
    return options


def list_rows(rows: dict[str, Row], results: Path) -> None:
    for row in rows.values():
        runs = read_result(row, results)["runs"]
        done = [
            f"seed {seed}: {sum(stage in runs.get(str(seed), {}) for stage in row.stages)}"
            f"/{len(row.stages)}"
            for seed in row.seeds
        ]
        print(f"{row.name:<28} {row.title:<52} {', '.join(done)}")


def work(runner: Runner, chosen: list[Row], options: argparse.Namespace) -> list[str]:
    """Bring rows up to date, the first seeds first; return the names of those that failed."""
    stages, again = tuple(options.stages or (*STAGES, "compare")), tuple(options.again)
    pairs = [(row.name, seed) for row in chosen for seed in row.seeds]
    if options.seeds:
        pairs = [(name, seed) for name, seed in pairs if seed in options.seeds]
    pairs.sort(key=lambda pair: pair[1])
    failed: list[tuple[str, int]] = []

    def attempt(run: Callable[..., None], pair: tuple[str, int], *what: tuple[str, ...]) -> None:
        try:
            run(*pair, *what)
        except SparseDDPMError as error:
            print(f"experiments: {pair[0]}: {error}", file=sys.stderr)
            failed.append(pair)

    if options.jobs != 1:
        beside = tuple(stage for stage in stages if stage not in ALONE)
        tasks = [
            partial(attempt, runner.run_to_log, pair, beside, again)
            for pair in apart(runner.rows, pairs)
        ]
        run_in_lanes(tasks, options.jobs)
        stages = tuple(stage for stage in stages if stage in ALONE)
    for pair in pairs:
        if pair not in failed:
            attempt(runner.run, pair, stages, again)
    return [name for name, _ in failed]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        rows = load_rows(options.experiments)
        if options.list:
            list_rows(rows, options.results)
            return 0
        for name in options.rows:
            if name not in rows:
                raise ConfigError(expected("row", "a name that --list prints", repr(name)))
        data = options.data.absolute() if options.data else None
        runs = options.runs.absolute()
        places = Places(data, runs, options.results, options.samples, options.dry)
        runner = Runner(rows, places)
        chosen = [rows[name] for name in (rows if options.all else options.rows)]
        failed = work(runner, chosen, options)
    except SparseDDPMError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if failed:
        print(f"experiments: failed: {', '.join(dict.fromkeys(failed))}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
