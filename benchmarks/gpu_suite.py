"""Everything that is measured on a GPU, in one command: correctness, whole steps, limits, layers.

python benchmarks/gpu_suite.py --out DIR [--minutes 8.5] [--section NAME ...] [--fresh] [--retry]
                               [--dry-run] [--commit HASH]

Runs from a checkout, without installing. Each section writes DIR/<section>.json after every
measurement; what is there already is kept if the sources it depends on, the device and the
versions are the same, so that the command can be given again until nothing is left to do. At the
end, and when interrupted, DIR/summary.md and DIR/summary.png are made of what there is.

With --dry-run everything but CUDA graphs runs on the CPU, in Triton's interpreter, at tiny sizes;
its times are no measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "export"))
sys.path.insert(0, str(ROOT / "kernels"))
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT))
# ruff: noqa: E402 - the imports below need these folders

from gpu.budget import Budget, OutOfTime
from gpu.report import FILES, SECTIONS, write_summary
from gpu.results import RUNNING, DeviceLost, forget
from gpu.supervise import DONE, GAVE_UP, LOST, OUT_OF_TIME, supervise

from sparse_ddpm.errors import SparseDDPMError
from sparse_ddpm.files import sweep


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the results")
    parser.add_argument(
        "--section",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        help=f"default all, in this order: {', '.join(SECTIONS)}",
    )
    parser.add_argument(
        "--minutes", type=float, default=8.5, help="stop between measurements (default: 8.5)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure anew what DIR holds")
    parser.add_argument("--retry", action="store_true", help="measure anew what failed")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, interpreted, tiny")
    parser.add_argument("--commit", help="of a checkout without git's folder")
    parser.add_argument("--worker", type=float, metavar="END", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0: everything is measured; 3: time ran out before; 1: something else ended it."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(given)
    try:
        if options.worker is not None:
            return work(options)
        return watch(options, given)
    except SparseDDPMError as error:
        print(f"gpu_suite: {error}", file=sys.stderr)
        return 1


def watch(options: argparse.Namespace, given: list[str]) -> int:
    """The parent: children measure, the summary is written whatever happens."""
    options.out.mkdir(parents=True, exist_ok=True)
    if options.fresh or options.retry:
        for section in options.section:
            if section in FILES:
                forget(options.out / f"{section}.json", failed_only=not options.fresh)
    budget = Budget.minutes(options.minutes)
    command = [sys.executable, str(Path(__file__)), *given, "--worker", repr(budget.end)]
    status = 1
    try:
        with interrupts():
            status = supervise(command, options.out, budget, lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        print("gpu_suite: interrupted", file=sys.stderr)
    finally:
        (options.out / RUNNING).unlink(missing_ok=True)
        sweep(options.out)
        write_summary(options.out)
        print(f"gpu_suite: {options.out / 'summary.md'}", flush=True)
    return status


def work(options: argparse.Namespace) -> int:
    """The child: measure one section after the other until the time is over."""
    end_with_parent()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    from gpu.sections import Suite

    budget, command = Budget(options.worker), typed(options)
    suite = Suite(options.out, budget, command, dry=options.dry_run, commit=options.commit)
    status = DONE
    try:
        for section in options.section:
            try:
                suite.run(section)
            except (OutOfTime, DeviceLost, SparseDDPMError):
                raise
            except Exception:
                # Of the suite itself, such as a kernel's module that cannot be imported.
                traceback.print_exc()
                print(f"gpu_suite: {section}: gave up", flush=True)
                status = GAVE_UP
    except OutOfTime as reason:
        print(f"gpu_suite: time is over: {reason}", flush=True)
        return OUT_OF_TIME
    except DeviceLost as reason:
        print(f"gpu_suite: the GPU no longer answers this process: {reason}", flush=True)
        return LOST
    return status


def typed(options: argparse.Namespace) -> list[str]:
    """The command as one would give it again from the checkout, without this machine's paths."""
    command = ["python", "benchmarks/gpu_suite.py", "--out", options.out.name]
    command += ["--minutes", f"{options.minutes:g}"]
    if options.section != list(SECTIONS):
        command += ["--section", *options.section]
    flags = {"--fresh": options.fresh, "--retry": options.retry, "--dry-run": options.dry_run}
    return command + [flag for flag, given in flags.items() if given]


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """SIGTERM as if the keyboard had interrupted."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before: Callable[..., object] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent(seconds: float = 1.0) -> None:
    """Leave no child behind when the parent is killed."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            threading.Event().wait(seconds)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=look, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
