"""Kill real `bnfold fold` processes at random moments, and look at what they leave.

    python tools/kill.py --times 200 --seed 0
    python tools/kill.py --times 200 --seed 0 --output FILE   the table also into a file

Each run folds in a fresh folder: inline or with external data, in place or to a new file, with or without
verification, and gets SIGKILL, SIGINT or SIGTERM at a random moment of the time that such a run takes (measured
before), or, every fourth, of the time from its first temporary file on. Whatever is left must be whole:

- the target is absent, or is exactly the old model or the new one, loads with its data, and passes onnx's checker;
- after SIGINT and SIGTERM nothing else is left, and the exit code is 130 (0 where it was done), with the truth said;
- after SIGKILL there may be files named `.<name>.<hex>.bnfold-tmp...`. In the instants around the commit there may
  also be the new data without its model, or the old data without its; both are counted.

Prints the counts; progress and failures are on stderr. Exit code 1 if anything failed.
"""

import argparse
import platform
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bnfold
from tools.killing.judge import TEMPORARY, kind_of_end, load_problem, problems, state
from tools.killing.scene import Scene, listing, network

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
CALIBRATION_RUNS = 3
Kinds = Sequence[tuple[bool, bool, bool]]
ALL_KINDS: Kinds = tuple(product((True, False), repeat=3))  # external, in place, verified


def calibrated(scene: Scene, room: Path) -> Scene:
    """The scene with its files before and after, and how long it takes when nobody disturbs it."""
    source = room / "source"
    source.mkdir()
    options = {"save_as_external_data": scene.external, "location": "weights.bin", "size_threshold": 0}
    onnx.save(network(), source / "model.onnx", **options)
    scene.before = listing(source)
    shutil.rmtree(source)
    times = []
    for number in range(CALIBRATION_RUNS):
        started = time.perf_counter()
        process = scene.start(room / str(number))
        out, err = process.communicate()
        times.append(time.perf_counter() - started)
        if process.returncode:
            raise SystemExit(f"{scene}: {out}{err}")
        scene.done = listing(room / str(number))
        shutil.rmtree(room / str(number))
    scene.seconds = statistics.median(times)
    return scene


def killed(scene: Scene, number: int, folder: Path, rng: random.Random, *, late: bool) -> tuple[int, str]:
    """Run the scene and send the signal; returns exit code and stderr. `late`: only once something was written."""
    moment = rng.uniform(0, 1.05)
    process = scene.start(folder)
    started = time.perf_counter()
    while late and process.poll() is None and not list(folder.glob(".*.bnfold-tmp*")):
        time.sleep(0.0005)
    left = max(0.01, scene.seconds - (time.perf_counter() - started)) if late else scene.seconds
    time.sleep(moment * left)
    process.send_signal(number)
    return process.wait(), process.communicate()[1]


@dataclass(slots=True)
class Counts:
    """What happened, for the table."""

    scenes: Counter[str] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    leftovers: int = 0
    failures: list[str] = field(default_factory=list)

    def table(self, seconds: dict[str, float]) -> str:
        """The counts as text."""
        lines = []
        for title, counter in (("signal", self.signals), ("end", self.ends), ("model found", self.states)):
            lines.append(title)
            lines += [f"  {name:<52}{count:>5}" for name, count in sorted(counter.items())]
        lines.append("kind of run, and how long it takes")
        lines += [f"  {name:<52}{count:>5}{seconds[name]:>7.2f} s" for name, count in sorted(self.scenes.items())]
        lines.append(f"runs that left temporary files, all so named       {self.leftovers:>7}")
        total = self.scenes.total()
        lines.append(f"whole                                              {total - len(self.failures)} of {total}")
        return "\n".join(lines)


def one(scene: Scene, folder: Path, rng: random.Random, counts: Counts, index: int) -> None:
    """One run: killed, looked at, counted."""
    number = SIGNALS[index % len(SIGNALS)]
    code, err = killed(scene, number, folder, rng, late=index % 4 == 3)
    after = listing(folder)
    found = list(problems(scene, number, code, err, after))
    models = {scene.target, "model.onnx"} & after.keys()
    found += filter(None, (load_problem(folder / name) for name in models))
    temporary = [name for name in after if TEMPORARY.fullmatch(name)]
    counts.leftovers += bool(temporary)
    counts.scenes[str(scene)] += 1
    counts.signals[number.name] += 1
    counts.ends[kind_of_end(code, err)] += 1
    counts.states[state(scene, {k: v for k, v in after.items() if k not in temporary})] += 1
    if found:
        counts.failures.append(f"run {index}: {scene}, {number.name}: {'; '.join(found)}")
        print(counts.failures[-1], file=sys.stderr)
    shutil.rmtree(folder)


def kill(times: int, seed: int, room: Path, kinds: Kinds = ALL_KINDS) -> tuple[Counts, dict[str, float]]:
    """All runs, in folders inside `room`; returns the counts and how long each kind of run takes."""
    rng = random.Random(seed)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored in a shell's background job: inherited
    try:
        scenes = [calibrated(Scene(*options), room) for options in kinds]
        counts = _all_runs(times, scenes, room, rng)
    finally:
        signal.signal(signal.SIGINT, before)
    return counts, {str(scene): scene.seconds for scene in scenes}


def _all_runs(times: int, scenes: list[Scene], room: Path, rng: random.Random) -> Counts:
    counts = Counts()
    for index in range(times):
        one(scenes[rng.randrange(len(scenes))], room / str(index), rng, counts, index)
        if sys.stderr.isatty():
            print(f"\r{index + 1} of {times}", end="", file=sys.stderr)
    return counts


def main() -> int:
    """Run, print, and say by the exit code whether all was whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the table into this file too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bnfold-kill-") as room:
        counts, seconds = kill(args.times, args.seed, Path(room))
    packages = f"bnfold {bnfold.__version__}, onnxruntime {version('onnxruntime')}, onnx {onnx.__version__}"
    text = f"{packages}, Python {platform.python_version()}, {platform.system()}\n"
    text += f"times {args.times}, seed {args.seed}\n{counts.table(seconds)}\n"
    print(text, end="")
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    return 1 if counts.failures else 0


if __name__ == "__main__":
    sys.exit(main())
