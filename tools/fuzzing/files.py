"""Processes that try file after file, a watchdog over them, and what came of it all.

A worker says which example it is at before it starts with it. Where one dies, that example is the find, and another
worker goes on behind it. Where the alarm of an example does not ring (a loop in C), faulthandler ends the worker.
"""

import argparse
import faulthandler
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from tools.fuzzing import target
from tools.fuzzing.compare import Judge
from tools.fuzzing.minimise import minimised
from tools.fuzzing.mutate import Example, Seed, example
from tools.fuzzing.seeds import ROOT, load_seeds
from tools.fuzzing.tally import Failure, Tally, table
from tools.fuzzing.target import Find, attempt, options_of, prepare

CHUNK = 100
COMPARED = 0.1  # of what is folded
GIGABYTES = 6  # of address space
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
FINDS = ROOT / "tests" / "hostile"


def run(arguments: argparse.Namespace) -> tuple[Tally, float]:
    """All workers until the time is up."""
    started = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="bnfold-fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
    total = Tally()
    try:
        seeds = load_seeds(FINDS)
        crew = [_Crew(arguments, number, seeds, work, total) for number in range(arguments.jobs)]
        end = started + 60 * arguments.minutes
        while crew:
            crew = [one for one in crew if one.look(end)]
            _progress(total, started)
            time.sleep(0.2)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return total, time.monotonic() - started


class _Crew:
    """One worker at a time, and its replacement when it is lost. Takes every `jobs`-th chunk."""

    def __init__(
        self, arguments: argparse.Namespace, number: int, seeds: Sequence[Seed], work: Path, total: Tally
    ) -> None:
        self._arguments, self._number, self._seeds, self._total = arguments, number, seeds, total
        self._folder = work / str(number)
        self._start(arguments.start + number * CHUNK)

    def _start(self, first: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._now = context.Value("q", first)
        stride = (self._arguments.jobs - 1) * CHUNK
        given = (self._arguments.seed, first, stride, self._seeds, self._folder, self._now, theirs)
        self._process = context.Process(target=_worker, args=given, daemon=False)
        self._process.start()
        theirs.close()

    def look(self, end: float) -> bool:
        """Take what is done; False when the time is up."""
        alive = self._process.is_alive()
        try:
            while self._pipe.poll():
                self._total.add(self._pipe.recv())
        except EOFError:
            alive = False
        if time.monotonic() > end:
            self._process.kill()
            return False
        if not alive:
            self._process.join()
            index = self._now.value
            text = f"the process ended with {self._process.exitcode}"
            self._total.failures.append(Failure(index, "crash or endless loop in C", text))
            self._start(index + 1)
        return True


def _worker(seed: int, first: int, stride: int, seeds: Sequence[Seed], folder: Path, now: Any, pipe: Any) -> None:
    limit_process()
    prepare(folder)
    judge = Judge()
    index = first
    while True:
        tally = Tally()
        stop = index - index % CHUNK + CHUNK
        while index < stop:
            now.value = index
            faulthandler.dump_traceback_later(3 * target.SECONDS + 30, exit=True)
            one(seed, index, seeds, folder, tally, judge)
            index += 1
        pipe.send(tally)
        index += stride


def limit_process() -> None:
    """Bound the memory of this process; a crash leaves a traceback and no core; nothing waits for a disk."""
    os.fsync = lambda _: None  # durability is not what this is about
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def one(seed: int, index: int, seeds: Sequence[Seed], folder: Path, tally: Tally, judge: Judge | None) -> Example:
    """One example: tried, counted, and in a sample compared."""
    random = Random(f"{seed}-{index}-options")
    options = options_of(random)
    made = example(seed, index, seeds)
    tally.files[made.kind] += 1
    tally.changes.update(made.changes)
    try:
        ending = attempt(made.data, folder, options)
    except Find as find:
        if find.kind.startswith("refold") and judge is not None and not judge.valid(folder / "model.onnx"):
            tally.verdicts[f"{find.kind}, of no valid model"] += 1
        else:
            tally.failures.append(Failure(index, find.kind, str(find)))
        return made
    tally.opened[made.kind] += ending.opened
    tally.understood[made.kind] += ending.understood
    tally.folded[made.kind] += ending.folded > 0
    tally.sites += ending.folded
    tally.left += ending.left
    if ending.error:
        tally.errors[ending.error] += 1
    if ending.folded and judge is not None and random.random() < COMPARED:
        verdict, reason = judge.compare(folder / "model.onnx", folder / "out" / "folded.onnx")
        tally.verdicts[verdict] += 1
        if verdict == "lost":
            tally.lost.append(index)
        if verdict in ("different", "invalid", "crash"):
            tally.failures.append(Failure(index, f"compared: {verdict}", reason))
    return made


def _progress(total: Tally, started: float) -> None:
    count = total.files.total()
    now = int(time.monotonic() - started)
    if sys.stderr.isatty() or now % 60:
        return
    print(f"{now:6} s {count:8} files {len(total.failures):5} failures", file=sys.stderr, flush=True)
    time.sleep(1)


# Finds --------------------------------------------------------------------------------------------------------------


def save(arguments: argparse.Namespace, failure: Failure, seeds: Sequence[Seed], *, small: bool) -> None:
    """The file as it was, and made small."""
    folder = arguments.failures
    folder.mkdir(parents=True, exist_ok=True)
    made = example(arguments.seed, failure.index, seeds)
    name = f"file-{arguments.seed}-{failure.index}"
    (folder / f"{name}.onnx").write_bytes(made.data)
    (folder / f"{name}.txt").write_text(f"{failure.kind}\n{failure.text}\n{made.kind} {made.seed} {made.changes}\n")
    if small and not failure.kind.startswith(("crash", "hang", "memory", "compared")):
        shrunk = minimised(made.data, lambda data: _fails(arguments.seed, failure, data, folder / "work"))
        (folder / f"{name}-small.onnx").write_bytes(shrunk)


def _fails(seed: int, failure: Failure, data: bytes, folder: Path) -> bool:
    prepare(folder)
    try:
        attempt(data, folder, options_of(Random(f"{seed}-{failure.index}-options")))
    except Find as find:
        return find.kind == failure.kind
    return False


def show(arguments: argparse.Namespace) -> int:
    """One example, in full."""
    folder = Path(tempfile.mkdtemp(prefix="bnfold-fuzz-"))
    prepare(folder)
    tally = Tally()
    judge = Judge()
    seeds = load_seeds(FINDS)
    made = one(arguments.seed, arguments.example, seeds, folder, tally, judge)
    judge.close()
    print(made.kind, made.seed, made.changes, options_of(Random(f"{arguments.seed}-{arguments.example}-options")))
    for failure in tally.failures:
        print(f"FAILED {failure.kind}: {failure.text}")
        save(arguments, failure, seeds, small=True)
    print(f"{os.fspath(folder)}/model.onnx")
    return 1 if tally.failures else 0


def main(arguments: argparse.Namespace) -> int:
    """Run, print, save what failed."""
    if arguments.example is not None:
        return show(arguments)
    total, seconds = run(arguments)
    text = "\n".join(
        [*arguments.heading, f"seconds          {seconds:.0f}, {arguments.jobs} processes", *table(total)]
    )
    print(text, flush=True)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    kinds: Counter[str] = Counter()
    seeds = load_seeds(FINDS) if total.failures else []
    for failure in total.failures:
        kinds[failure.kind] += 1
        if kinds[failure.kind] <= 5:
            save(arguments, failure, seeds, small=kinds[failure.kind] <= 2)
    return 1 if total.failures else 0
