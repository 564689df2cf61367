"""Many processes that sample for minutes: do they share fairly, keep their pace and their memory?

python benchmarks/soak.py --processes 4 --minutes 10 --threads 2 [--json FILE]

One process samples alone first, which gives each kind of step its time. Then all of them sample
side by side, again and again. Progress goes to stderr; stdout gets a table and a line for each
claim. Exit status 0: all claims hold; 1: one does not; 2: nothing was measured.

Work is counted in seconds of the process alone, so that steps of any size add up: all processes
together should do about one second's worth in a second, however many they are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from sparse_ddpm.api import Sampler
from sparse_ddpm.bench.machine import cores, machine, resident_mib
from sparse_ddpm.cli.common import positive, synthetic
from sparse_ddpm.errors import SparseDDPMError
from sparse_ddpm.files import write_atomically
from sparse_ddpm.ticket import save_ticket, shipped_ticket_path

BATCHES = (1, 16)
STEPS = 10
"""Of one sample."""
TURN_S = 1.0
"""Samples of one ticket and batch are repeated so long before the next, at least one; less in short
runs."""
ALONE_S = 30.0
WARM_UP = 2
"""Samples of each ticket and batch before anything counts."""

FAIR = 0.9
"""Least work of all processes together, of that of one alone."""
EVEN = 0.8
"""Least work of a process, of the mean of all."""
STEADY = 0.95
"""Least rate of the last third, of that of the first."""
GROWTH_MIB = 4.0
"""Most growth of a process's resident memory since it warmed up."""

Report = dict[str, Any]
"""What one process did: ``start_rss_mib``, and ``intervals``, each with ``wall_s`` since the start
at its end; of the interval itself ``cpu_s`` (processor time of all threads), ``steps`` and
``seconds`` by job; and ``rss_mib`` at its end."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=positive, default=4)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=positive, default=cores(), help="of each process")
    parser.add_argument(
        "--synthetic", default="paper:0.95:element", metavar="MODEL:SPARSITY:PATTERN"
    )
    parser.add_argument("--report", type=float, default=10.0, help="seconds between reports")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all reports there")
    parser.add_argument("--worker", nargs="+", metavar="TICKET", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def work(tickets: Sequence[str], threads: int, report_s: float) -> None:
    """One process: warm up, say so, wait for a number of seconds on stdin, sample for so long.

    Lines of JSON on stdout: ``{"start_rss_mib"}``, then each interval.
    """
    samplers = [Sampler.load(path, threads=threads) for path in tickets]
    jobs = {
        f"{Path(path).stem} x{batch}": (sampler, batch)
        for path, sampler in zip(tickets, samplers, strict=True)
        for batch in BATCHES
    }

    def sample(name: str, seed: int) -> None:
        sampler, batch = jobs[name]
        sampler.sample(batch, steps=STEPS, seed=seed, batch_size=batch)

    for name in jobs:
        for seed in range(WARM_UP):
            sample(name, seed)
    print(json.dumps({"start_rss_mib": resident_mib()}), flush=True)
    end_s = float(sys.stdin.readline())
    turn_s = min(TURN_S, end_s / (2 * len(jobs)))
    waiting = set(jobs)  # a job that never ran would have no time
    start, seed = time.perf_counter(), WARM_UP
    cpu, reported = time.process_time(), 0.0
    steps, seconds = dict.fromkeys(jobs, 0), dict.fromkeys(jobs, 0.0)
    for name in turns(tuple(jobs)):
        turn = time.perf_counter()
        while True:
            begun = time.perf_counter()
            sample(name, seed)
            now = time.perf_counter()
            seed += 1
            steps[name] += STEPS
            seconds[name] += now - begun
            wall = now - start
            waiting.discard(name)
            over = wall >= end_s and not waiting
            if over or wall >= reported + report_s:
                used = time.process_time()
                interval = {"wall_s": wall, "cpu_s": used - cpu, "rss_mib": resident_mib()}
                print(json.dumps({**interval, "steps": steps, "seconds": seconds}), flush=True)
                cpu, reported = used, wall
                steps, seconds = dict.fromkeys(jobs, 0), dict.fromkeys(jobs, 0.0)
            if over:
                return
            if now - turn >= turn_s:
                break


def turns(jobs: tuple[str, ...]) -> Iterator[str]:
    """Every job, again and again."""
    while True:
        yield from jobs


def run(
    processes: int, seconds: float, options: argparse.Namespace, tickets: list[str]
) -> list[Report]:
    """``processes`` workers side by side, started together when all have warmed up."""
    command = [sys.executable, str(Path(__file__).resolve()), "--threads", str(options.threads)]
    command += ["--report", str(options.report), "--worker", *tickets]
    reports: list[Report] = [{} for _ in range(processes)]
    with ExitStack() as stack:
        workers = []
        for _ in range(processes):
            worker = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(worker)
            stack.callback(worker.kill)  # before the wait of its own exit; none when it is over
            workers.append(worker)
        for worker, report in zip(workers, reports, strict=True):
            report.update(_line(worker), intervals=[])
        threads = [
            threading.Thread(target=_collect, args=(index, worker, report))
            for index, (worker, report) in enumerate(zip(workers, reports, strict=True))
        ]
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{seconds}\n")
            worker.stdin.flush()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for worker in workers:
            if worker.wait() != 0:
                raise SparseDDPMError(f"a worker ended with status {worker.returncode}.")
    return reports


def _line(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SparseDDPMError(f"a worker ended with status {worker.wait()} before it sampled.")
    found: dict[str, Any] = json.loads(line)
    return found


def _collect(index: int, worker: subprocess.Popen[str], report: Report) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        interval = json.loads(line)
        report["intervals"].append(interval)
        print(
            f"soak: process {index}, {interval['wall_s']:.0f} s: "
            f"{sum(interval['steps'].values())} steps, {interval['cpu_s']:.1f} s of processor, "
            f"{interval['rss_mib']:.1f} MiB",
            file=sys.stderr,
            flush=True,
        )


def step_seconds(reports: Sequence[Report]) -> dict[str, float]:
    """Time of one step of each job, over all ``reports``."""
    intervals = [interval for report in reports for interval in report["intervals"]]
    found = {}
    for job in intervals[0]["steps"]:
        steps = sum(interval["steps"][job] for interval in intervals)
        if steps > 0:
            found[job] = sum(interval["seconds"][job] for interval in intervals) / steps
    return found


def rate(report: Report, costs: dict[str, float], begin: float, end: float) -> float:
    """Work a second between two times of a run, intervals cut evenly."""
    times, done = [0.0], [0.0]
    for interval in report["intervals"]:
        times.append(interval["wall_s"])
        done.append(done[-1] + sum(n * costs.get(job, 0.0) for job, n in interval["steps"].items()))
    first, last = np.interp([begin, end], times, done)
    return float(last - first) / (end - begin)


def cores_used(reports: Sequence[Report]) -> float:
    """Processor time of all ``reports`` in a second."""
    used = 0.0
    for report in reports:
        intervals = report["intervals"]
        used += sum(interval["cpu_s"] for interval in intervals) / intervals[-1]["wall_s"]
    return used


def judge(alone: Report, together: Sequence[Report]) -> dict[str, Any]:
    """The figures of a soak and, under ``claims``, what was claimed, found and whether it holds.

    ``alone`` is the report of one process by itself; work is counted by its steps' times.
    """
    costs = step_seconds([alone])
    end = min(report["intervals"][-1]["wall_s"] for report in together)
    alone_end = alone["intervals"][-1]["wall_s"]
    alone_rate = rate(alone, costs, 0.0, alone_end)
    rates = [rate(report, costs, 0.0, end) for report in together]
    first = sum(rate(report, costs, 0.0, end / 3) for report in together)
    last = sum(rate(report, costs, 2 * end / 3, end) for report in together)
    used_alone, used = cores_used([alone]), cores_used(together)
    growth = [r["intervals"][-1]["rss_mib"] - r["start_rss_mib"] for r in together]
    total, even = sum(rates) / alone_rate, min(rates) * len(rates) / sum(rates)
    steps = step_seconds(together)
    return {
        "total_rate": total,
        "least_share": even,
        "last_over_first_third": last / first,
        "growth_mib": growth,
        "cores_used_alone": used_alone,
        "cores_used": used,
        "rate_per_core": total * used_alone / used,
        "step_ms": {
            job: {"alone": 1e3 * costs[job], "together": 1e3 * steps[job]}
            for job in costs
            if job in steps
        },
        "claims": [
            _claim(f"all together do {total:.2f} of the work of one alone", total, FAIR),
            _claim(f"the slowest process does {even:.2f} of its share", even, EVEN),
            _claim(f"the last third runs at {last / first:.3f} of the first", last / first, STEADY),
            _claim(f"a process grows by {max(growth):.1f} MiB at most", -max(growth), -GROWTH_MIB),
        ],
    }


def _claim(text: str, found: float, least: float) -> dict[str, Any]:
    wanted = f"at least {least:g}" if least > 0 else f"at most {-least:g}"
    return {"text": f"{text} (wanted: {wanted})", "holds": found >= least}


def show(found: dict[str, Any], options: argparse.Namespace) -> Iterator[str]:
    """Lines for people."""
    yield (
        f"{options.processes} processes of {options.threads} threads on {cores()} cores for "
        f"{options.minutes:g} minutes; cores used: {found['cores_used_alone']:.2f} alone, "
        f"{found['cores_used']:.2f} together; work of a core's second: "
        f"{found['rate_per_core']:.2f} of that alone"
    )
    yield f"{'steps of':<28} {'ms alone':>9} {'together':>9} {'ratio':>7}"
    for job, ms in found["step_ms"].items():
        ratio = ms["together"] / ms["alone"]
        yield f"{job:<28} {ms['alone']:>9.3f} {ms['together']:>9.3f} {ratio:>6.2f}x"
    for claim in found["claims"]:
        yield f"{'holds' if claim['holds'] else 'FAILS'}: {claim['text']}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.worker:
            work(options.worker, options.threads, options.report)
            return 0
        seconds = 60.0 * options.minutes
        with tempfile.TemporaryDirectory(prefix="sparse-ddpm-soak-") as folder:
            path = Path(folder) / f"{options.synthetic.replace(':', '-')}.safetensors"
            save_ticket(synthetic(options.synthetic), path)
            tickets = [str(shipped_ticket_path()), str(path)]
            print("soak: one process alone", file=sys.stderr)
            (alone,) = run(1, min(ALONE_S, seconds), options, tickets)
            print(f"soak: {options.processes} processes", file=sys.stderr)
            together = run(options.processes, seconds, options, tickets)
        found = judge(alone, together)
        if options.json:
            result = {
                "schema": 1,
                **{key: getattr(options, key) for key in ("processes", "minutes", "threads")},
                "machine": machine(),
                **found,
                "alone": alone,
                "together": together,
            }
            text = json.dumps(result, indent=1) + "\n"
            write_atomically(options.json, lambda file: file.write(text.encode()))
        for line in show(found, options):
            print(line)
    except SparseDDPMError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    return 0 if all(claim["holds"] for claim in found["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
