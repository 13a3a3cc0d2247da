"""Fold random models, or odd files, and check every result, for as long as told.

    python tools/fuzz.py --graphs --minutes 30                random graphs, on all cores
    python tools/fuzz.py --files --minutes 30                 odd files (see tools/fuzzing)
    python tools/fuzz.py --scale --nodes 1000000              whether time grows with the model, and no faster
    python tools/fuzz.py --graphs --seed 7 --example 123      one of them again, with its text

Prints counts and failures; each of those is saved (--failures DIR), and made small. Exit code 1 if there are any.
"""

import argparse
import importlib
import multiprocessing
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bnfold
from tests.random_graphs import Outcome, Wrong, check, random_model, random_options
from tests.random_graphs.reduce import Example, reduced

CHUNK = 50
MADE_SMALL = 3  # failures of one kind that are made small; it takes seconds each


@dataclass(slots=True)
class Failure:
    """One example that is not as it must be."""

    example: int
    kind: str
    text: str


@dataclass(slots=True)
class Tally:
    """Sums over examples."""

    examples: int = 0
    changed: int = 0
    planted: int = 0
    found: int = 0
    folded: int = 0
    worst: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def count(self, planted: int, outcome: Outcome) -> None:
        """One example that passed, or that onnxruntime could not run."""
        if outcome.skipped:
            self.skipped[outcome.skipped[:60]] += 1
            return
        self.changed += outcome.folded > 0
        self.planted += planted
        self.found += outcome.found
        self.folded += outcome.folded
        self.codes += outcome.codes
        self.worst = max(self.worst, outcome.worst)

    def add(self, other: "Tally") -> None:
        """Another tally into this one."""
        for name in ("examples", "changed", "planted", "found", "folded"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.worst = max(self.worst, other.worst)
        self.codes += other.codes
        self.skipped += other.skipped
        self.failures += other.failures


def graphs(seed: int, start: int) -> Tally:
    """Examples `start` to `start + CHUNK` of this seed."""
    tally = Tally()
    for index in range(start, start + CHUNK):
        tally.examples += 1
        try:
            tally.count(*_graph(seed, index))
        except Wrong as problem:
            tally.failures.append(Failure(index, problem.kind, str(problem)))
    return tally


def _graph(seed: int, index: int) -> tuple[int, Outcome]:
    rng = np.random.default_rng([seed, index])
    example = random_model(rng)
    options = random_options(rng)
    return example.planted, check(example.proto, example.sizes, rng, **options)


def main() -> int:
    """Run, print, save what failed."""
    arguments = _arguments()
    if isinstance(arguments.work, str):
        arguments.heading = [_versions(), f"seed             {arguments.seed}"]
        return int(importlib.import_module(f"tools.fuzzing.{arguments.work}").main(arguments))
    if arguments.example is not None:
        return _one(arguments.seed, arguments.example, arguments.failures)
    started = time.perf_counter()
    total = Tally()
    for tally in _chunks(arguments, started + 60 * arguments.minutes):
        total.add(tally)
        _progress(total, started)
    kinds: Counter[str] = Counter()
    for failure in total.failures:
        kinds[failure.kind] += 1
        _save(arguments.seed, failure, arguments.failures, small=kinds[failure.kind] <= MADE_SMALL)
    text = _table(total, arguments, time.perf_counter() - started)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 1 if total.failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--graphs", dest="work", action="store_const", const=graphs, help="random graphs")
    what.add_argument("--files", dest="work", action="store_const", const="files", help="odd files")
    what.add_argument("--scale", dest="work", action="store_const", const="scale", help="large graphs")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="with --files: the first example")
    parser.add_argument("--nodes", type=int, default=200_000, help="with --scale")
    parser.add_argument("--example", type=int, help="only this one; prints the model and what folds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--output", "--out", type=Path, help="write the table there too")
    parser.add_argument("--failures", type=Path, default=Path("build/fuzz"), help="where failing models go")
    return parser.parse_args()


def _chunks(arguments: argparse.Namespace, end: float) -> Iterator[Tally]:
    """Tallies of chunk after chunk until the time is up."""
    work = partial(arguments.work, arguments.seed)
    starts = iter(range(0, sys.maxsize, CHUNK))
    in_time = iter(lambda: next(starts) if time.perf_counter() < end else None, None)
    if arguments.jobs == 1:
        yield from map(work, in_time)
        return
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        waiting = [pool.apply_async(work, (start,)) for start, _ in zip(in_time, range(2 * arguments.jobs))]  # noqa: B905
        while waiting:
            yield waiting.pop(0).get()
            start = next(in_time, None)
            if start is not None:
                waiting.append(pool.apply_async(work, (start,)))


def _progress(total: Tally, started: float) -> None:
    if total.examples % (20 * CHUNK) == 0:
        seconds = time.perf_counter() - started
        print(f"{seconds:6.0f} s {total.examples:8} examples {len(total.failures):5} failures", file=sys.stderr)


# Failures -----------------------------------------------------------------------------------------------------------


def _one(seed: int, index: int, folder: Path) -> int:
    """One example, in full."""
    rng = np.random.default_rng([seed, index])
    example = random_model(rng)
    options = random_options(rng)
    print(onnx.printer.to_text(example.proto))
    print(f"fold(..., {', '.join(f'{name}={value!r}' for name, value in options.items())})")
    try:
        outcome = check(example.proto, example.sizes, rng, **options)
    except Wrong as problem:
        failure = Failure(index, problem.kind, str(problem))
        print(f"{failure.text}\n")
        print(onnx.printer.to_text(_save(seed, failure, folder, small=True)))
        return 1
    print(f"{outcome.folded} of {outcome.found} folded; {dict(outcome.codes)}; {outcome.skipped or 'passed'}")
    return 0


def _save(seed: int, failure: Failure, folder: Path, *, small: bool) -> onnx.ModelProto:
    """The example as it was, and made small."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, failure.example])
    example = random_model(rng)
    options = random_options(rng)
    onnx.save(example.proto, folder / f"{seed}-{failure.example}.onnx")
    if not small:
        return example.proto
    proto, _ = reduced(example.proto, example.sizes, partial(_fails, failure.kind, options, rng.bit_generator.state))
    onnx.save(proto, folder / f"{seed}-{failure.example}-small.onnx")
    return proto


def _fails(kind: str, options: dict[str, Any], state: Any, example: Example) -> bool:
    """Whether the example fails in this way, with the numbers that the original failed with."""
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    try:
        check(*example, rng, orders=5 if kind == "order" else 0, **options)
    except Wrong as problem:
        return problem.kind == kind
    except Exception:  # noqa: BLE001 - a cut that makes no sense
        return False
    return False


# The table ----------------------------------------------------------------------------------------------------------


def _versions() -> str:
    import onnxruntime

    machine = (
        f"onnx {onnx.__version__}, numpy {np.__version__}, Python {platform.python_version()}, {platform.machine()}"
    )
    return f"bnfold {bnfold.__version__}, onnxruntime {onnxruntime.__version__}, {machine}"


def _table(total: Tally, arguments: argparse.Namespace, seconds: float) -> str:
    share = total.folded / total.found if total.found else 0.0
    lines = [
        _versions(),
        f"seed             {arguments.seed}",
        f"seconds          {seconds:.0f}, {arguments.jobs} processes",
        f"examples         {total.examples}, {total.changed} of them with something folded",
        f"not runnable     {total.skipped.total()} (onnxruntime refuses the original)",
        f"sites planted    {total.planted}",
        f"sites found      {total.found}",
        f"sites folded     {total.folded} ({share:.1%} of those found)",
        f"largest error    {total.worst:.2f} of what rounding may do",
        f"failures         {len(total.failures)}",
        "left, by code",
        *(f"  {code:26} {count}" for code, count in total.codes.most_common()),
    ]
    for kind, count in Counter(failure.kind for failure in total.failures).most_common():
        first = next(failure for failure in total.failures if failure.kind == kind)
        lines += [
            f"FAILED {count} x {kind}, first: --seed {arguments.seed} --example {first.example}",
            f"  {first.text}",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
