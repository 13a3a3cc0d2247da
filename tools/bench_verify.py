"""Hold bnfold's verification, and the criteria of other tools, to wrong folds and right ones.

    python tools/bench_verify.py --output tools/results/verify-DATE.txt      everything: some twenty minutes
    python tools/bench_verify.py --networks resnet dense --seeds 2 --no-peers

Wrong: every kind of fault in `tests/mutations`, at every place of every network. Right: folds by three arithmetics,
by bnfold with every flag, by other tools (those installed), of the networks and of models/; and bnfold's folds of
models/ on the inputs of many seeds. What onnxsim, onnxslim and polygraphy go by is written again from their sources
(`tests/mutations/criteria.py`), and the tools themselves are not run for it. Progress is on stderr. Exit code 1 if
bnfold lets a wrong fold pass, does not name it, or calls a right one different.
"""

import argparse
import multiprocessing
import os
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.mutations.corpus import COUNTS, KINDS
from tests.mutations.criteria import CRITERIA
from tests.mutations.honest import PEERS, installed
from tests.mutations.networks import NAMES
from tests.mutations.rows import Row, of_mutants, of_own_models, of_peer, of_right_folds, of_seeds

ROOT = Path(__file__).resolve().parent.parent
JUDGES = ("bnfold", *CRITERIA)
PACKAGES = ("bnfold", "numpy", "onnx", "onnxruntime", *(peer for peer in PEERS if peer != "onnxruntime"))
OWN = "own arithmetic"


def main() -> int:
    """Run what was asked for, print, and say whether all is as it must be."""
    arguments = _parse()
    started = time.perf_counter()
    models = sorted((ROOT / "models").glob("*.onnx"))
    peers = [] if arguments.no_peers else [peer for peer in PEERS if installed(peer)]
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        wrong = _collect(pool, of_mutants, [(kind, name) for kind in KINDS for name in arguments.networks], "mutants")
        right = _collect(pool, of_right_folds, arguments.networks, "right folds")
        right += _collect(pool, of_own_models, models, "models/")
        sources = [*arguments.networks, *models]
        others = _collect(pool, of_peer, [(peer, source) for peer in peers for source in sources], "other tools")
        seeds = _collect(pool, of_seeds, [(path, arguments.seeds) for path in models], "seeds")
    right += [row for row in others if row.wrong is False]
    text = "\n".join([
        *_environment(arguments.jobs, started), "", *_kills(wrong, right), "", *_alarms(right), "",
        *_seeds(seeds, arguments.seeds), "", *_peers(others), "", *_not_counting(wrong),
        "", "wrong folds that bnfold lets pass", *_listed(_survivors(wrong)),
        "", "faults in one value: different, but another value is named, or none", *_listed(_unnamed(wrong)),
        "", "right folds that bnfold calls different", *_listed(_false_alarms([*right, *seeds])),
    ])  # fmt: skip
    print(text)
    if arguments.output:
        arguments.output.write_text(f"{text}\n", encoding="utf-8")
    return int(bool(_survivors(wrong) or _unnamed(wrong) or _false_alarms([*right, *seeds])))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Hold verification to wrong folds and right ones.")
    parser.add_argument("--networks", nargs="+", metavar="NAME", choices=NAMES, default=NAMES, help="default: all")
    parser.add_argument("--seeds", type=int, metavar="N", default=20, help="for each of models/; default: 20")
    parser.add_argument("--no-peers", action="store_true", help="leave out what other tools fold")
    parser.add_argument("--jobs", type=int, metavar="N", default=2, help="processes; default: 2")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the tables to FILE too")
    return parser.parse_args()


def _collect(pool: Any, function: Any, tasks: Sequence[Any], title: str) -> list[Row]:
    rows: list[Row] = []
    for done, found in enumerate(pool.imap(function, tasks), 1):
        rows += found
        if done % 20 == 0 or done == len(tasks):
            print(f"{title}: {done} of {len(tasks)}, {len(rows)} pairs", file=sys.stderr, flush=True)
    return rows


def _environment(jobs: int, started: float) -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} from the working tree" if package == "bnfold" else f"{package} not installed")
    return [
        f"packages   {', '.join(found)}",
        (
            f"machine    Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
            f"load {os.getloadavg()[0]:.1f}"
        ),
        f"seconds    {time.perf_counter() - started:.0f}, {jobs} processes",
        "criteria   of other tools are written again in tests/mutations/criteria.py; the tools are not run for them",
    ]


def _kills(rows: list[Row], right: list[Row]) -> list[str]:
    counting = [row for row in rows if row.wrong]
    local = [row for row in counting if row.value is not None]
    took = sorted(row.seconds for row in rows) or [0.0]
    lines = [
        (
            f"wrong folds: {len(rows)} of {len({row.kind for row in rows})} kinds; {len(counting)} "
            f"({len(counting) / max(len(rows), 1):.0%}) count: some map moves by more than {COUNTS:g} honest bounds"
        ),
        f"bnfold took {took[len(took) // 2]:.3f} s for one in the middle, {took[-1]:.2f} s at most",
        "",
        f"{'killed':16} {'all':>12} {'telling':>12} {'named':>12}   "
        + " ".join(f"{name:>10}" for name in _networks(rows)),
    ]
    for judge in JUDGES:
        killed = Counter(_network(row) for row in counting if not row.equal[judge])
        total = Counter(_network(row) for row in counting)
        named = f"{sum(r.named for r in local)} of {len(local)}" if judge == "bnfold" else "-"
        telling = {name for name in total if _passes(judge, name, right)}
        both = [sum(count for name, count in counts.items() if name in telling) for counts in (killed, total)]
        cells = " ".join(f"{f'{killed[name]}/{total[name]}':>10}" for name in _networks(rows))
        whole = f"{sum(killed.values())} of {len(counting)}"
        lines.append(f"{judge:16} {whole:>12} {f'{both[0]} of {both[1]}':>12} {named:>12}   {cells}")
    lines.append(
        "telling: on networks of which it calls the right folds equal; where it does not, it calls all different"
    )
    return lines


def _passes(judge: str, name: str, right: list[Row]) -> bool:
    """Whether every right fold of a network by `tests/mutations/folder.py` is equal to this judge."""
    return all(row.equal[judge] for row in right if row.kind == OWN and _network(row) == name)


def _networks(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(map(_network, rows)))


def _network(row: Row) -> str:
    return row.where.split()[0].rstrip(",")


def _alarms(rows: list[Row]) -> list[str]:
    kinds = Counter(row.kind for row in rows)
    lines = [f"{'false alarms':16} {'all':>12}   " + " ".join(f"{kind:>14}" for kind in kinds)]
    lines.append(f"{'  of pairs':16} {len(rows):>12}   " + " ".join(f"{count:>14}" for count in kinds.values()))
    for judge in JUDGES:
        wrong = Counter(row.kind for row in rows if not row.equal[judge])
        cells = " ".join(f"{wrong[kind]:>14}" for kind in kinds)
        lines.append(f"{judge:16} {sum(wrong.values()):>12}   {cells}")
    return lines


def _seeds(rows: list[Row], seeds: int) -> list[str]:
    alarms = sum(not row.equal["bnfold"] for row in rows)
    return [
        (
            f"seeds: {len({_network(row) for row in rows})} models of models/, {seeds} seeds each: "
            f"{alarms} of {len(rows)} not equal; {sum(row.seconds for row in rows):.0f} s in all"
        )
    ]


def _peers(rows: list[Row]) -> list[str]:
    found = [row for row in rows if row.wrong is not False]
    lines = [f"folds by other tools that are left out, not being clearly right: {len(found)}"]
    for row in found:
        off = "another interface, or not finite" if row.off == float("inf") else f"off by {row.off:.2g} of scale"
        lines.append(
            f"    {row.kind}, {row.where}: {row.reason if not row.equal else f'{off}; bnfold: {row.reason}'}"[:230]
        )
    return lines


def _not_counting(rows: list[Row]) -> list[str]:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if not row.wrong:
            found[row.kind, _network(row)].append(row.off)
    lines = [f"wrong folds that do not count: {sum(map(len, found.values()))}; how many, honest bounds from and to"]
    lines += [
        f"    {kind + ', ' + name:50} {len(off):4}  {min(off):.2g} to {max(off):.2g}"
        for (kind, name), off in found.items()
    ]
    return lines


def _survivors(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.wrong and row.equal["bnfold"]]


def _unnamed(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.wrong and row.value and not row.named and not row.equal["bnfold"]]


def _false_alarms(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not row.equal["bnfold"]]


def _listed(rows: list[Row]) -> list[str]:
    return [f"    {row.kind}, {row.where} ({row.off:.3g}): {row.reason}"[:230] for row in rows] or ["    none"]


if __name__ == "__main__":
    sys.exit(main())
