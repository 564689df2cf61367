"""Speed-up against sparsity: ``sparse-ddpm bench`` for a list of tickets, a table and a picture.

python benchmarks/speedup.py [--model paper] [--sparsity 0 0.9 0.99] [--pattern element vector:16]
    [--tickets mnist] [--resume | --kept] [-o docs/cpu-speedup.png] [arguments of bench after --]

Each result is kept as JSON under benchmarks/results/cpu; with --resume those that exist are not
measured again, with --kept nothing is measured. The table, in Markdown, goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sparse_ddpm.bench.picture import check_picture, save_speedup
from sparse_ddpm.errors import SparseDDPMError, expected
from sparse_ddpm.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
SPARSITIES = ("0", "0.5", "0.8", "0.9", "0.95", "0.98", "0.99")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="paper", choices=("paper", "small"))
    parser.add_argument("--sparsity", nargs="+", default=list(SPARSITIES), metavar="S")
    parser.add_argument("--pattern", nargs="+", default=["element", "vector:16"])
    parser.add_argument(
        "--tickets", nargs="+", metavar="NAME", default=[], help="that ship; a row each"
    )
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument("--resume", action="store_true", help="keep the results that exist")
    keep.add_argument("--kept", action="store_true", help="only show the results that exist")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "cpu")
    parser.add_argument(
        "-o", "--picture", type=Path, default=ROOT / "docs" / "cpu-speedup.png", metavar="FILE"
    )
    parser.add_argument("bench", nargs="*", help="arguments of bench, such as -- --threads 2")
    return parser.parse_args(arguments)


def jobs(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Name of the result and arguments of bench. What is not pruned has no pattern."""
    found: dict[str, list[str]] = {}
    for pattern in options.pattern:
        for sparsity in options.sparsity:
            dense = float(sparsity) == 0.0
            kind = "element" if dense else pattern
            name = f"{options.model}-{sparsity}-{kind.replace(':', '')}"
            found[name] = ["--synthetic", f"{options.model}:{sparsity}:{kind}"]
    found |= {name: [name] for name in options.tickets}
    if not options.kept:
        return list(found.items())
    kept = [(name, job) for name, job in found.items() if _path(name, options).exists()]
    if not kept:
        wanted = f"one of {', '.join(found)}"
        raise SparseDDPMError(expected(f"results in {options.results}", wanted, "none"))
    return kept


def _path(name: str, options: argparse.Namespace) -> Path:
    return Path(options.results) / f"{name}.json"


def measure(name: str, arguments: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run bench, or read what it said before."""
    path = _path(name, options)
    if (options.resume or options.kept) and path.exists():
        print(f"{name}: kept", file=sys.stderr)
    else:
        print(f"{name}: measuring", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "sparse_ddpm", "bench", "--json"]
        done = subprocess.run(
            [*command, *arguments, *options.bench], stdout=subprocess.PIPE, check=False
        )
        if done.returncode != 0:
            raise SparseDDPMError(f"bench of {name} ended with status {done.returncode}.")
        text = json.dumps(json.loads(done.stdout), indent=1) + "\n"
        options.results.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(text.encode()))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def table(results: dict[str, dict[str, Any]]) -> None:
    """Step times and ratios in Markdown."""
    print("| ticket | batch | ms a step | over the fastest fp32 peer | over the fastest peer |")
    print("| --- | --- | --- | --- | --- |")
    for name, result in results.items():
        for row in result["ratios"]:
            ours = [
                f"{r['step_ms']:.2f} ({r['dtype']})"
                for r in result["results"]
                if r["engine"] == "sparse-ddpm" and r["batch"] == row["batch"]
            ]
            cells = [
                f"{row[f'vs_fastest_{key}']:.2f}x {row[f'fastest_{key}']}"
                if row[f"vs_fastest_{key}"]
                else "-"
                for key in ("fp32_peer", "peer")
            ]
            print(f"| {name} | {row['batch']} | {', '.join(ours)} | {cells[0]} | {cells[1]} |")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        check_picture(options.picture)
        results = {name: measure(name, job, options) for name, job in jobs(options)}
        table(results)
        synthetic = [result for name, result in results.items() if name not in options.tickets]
        save_speedup(_spread_dense(synthetic), options.picture)
    except SparseDDPMError as error:
        print(f"speedup: {error}", file=sys.stderr)
        return 1
    return 0


def _spread_dense(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The unpruned ticket begins the line of every pattern."""
    patterns = {r["pattern"] for r in results if r["sparsity"] > 0}
    dense = [r for r in results if r["sparsity"] == 0]
    pruned = [r for r in results if r["sparsity"] > 0]
    return pruned + [{**r, "pattern": p} for r in dense for p in sorted(patterns or {"element"})]


if __name__ == "__main__":
    sys.exit(main())
