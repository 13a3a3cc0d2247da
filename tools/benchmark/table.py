"""Results as plain aligned text, good on a terminal and in a README."""

import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from benchmark.process import Run
from benchmark.tools import BASELINE, TOOLS, Tool

_PACKAGES = ("bnfold", "onnx", "onnx-ir", "numpy", "protobuf", *dict.fromkeys(t.package for t in TOOLS[2:]))
_HEAD = ("tool", "min s", "median s", "CPU s", "peak MiB", "x bnfold", "BN left", "nodes")


@dataclass(slots=True)
class Result:
    """What one tool did with one model: its counted runs and what it wrote, or why there is nothing to count."""

    tool: Tool
    runs: list[Run] = field(default_factory=list)
    nodes: int = 0
    left: int = 0
    failure: str = ""

    @property
    def wall(self) -> float:
        """The median wall time in seconds."""
        return median(run.wall for run in self.runs)


def environment(scratch: Path, rounds: int) -> str:
    """Date, machine, versions and how it was measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = f"load {os.getloadavg()[0]:.1f} at the start"
    return _aligned([
        ("date", f"{datetime.now().astimezone():%Y-%m-%d}"),
        ("machine", f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, {load}"),
        ("Python", platform.python_version()),
        ("packages", ", ".join(_versions())),
        ("method", f"whole processes, one warm-up and {rounds} counted rounds, tools in turn; output to {scratch}"),
    ])  # fmt: skip


def model_table(title: str, results: Sequence[Result]) -> str:
    """One model: a line a tool, and who was ahead."""
    base = next((r.wall for r in results if r.tool.name == BASELINE and not r.failure), None)
    rows = [_HEAD, *(_cells(result, base) for result in results if not result.failure)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    widths[0] = max(len(result.tool.name) for result in results)
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines += [f"{result.tool.name.ljust(widths[0])}  {result.failure}" for result in results if result.failure]
    return "\n".join([title, *lines, *_verdict(results, base)])


def notes(tools: Iterable[Tool]) -> str:
    """The commands that were run, and why these."""
    lines = [
        "min, median: wall seconds; CPU: median of user + system; peak: resident memory; x bnfold: ratio of medians;",
        "BN left, nodes: in the main graph of what was written. Commands:",
    ]
    for tool in tools:
        lines += ["", f"{tool.name}: {tool.why}", *(f"  {line}" for line in tool.shown())]
    return "\n".join(lines)


def _cells(result: Result, base: float | None) -> tuple[str, ...]:
    runs = result.runs
    return (
        result.tool.name,
        f"{min(run.wall for run in runs):.2f}",
        f"{result.wall:.2f}",
        f"{median(run.cpu for run in runs):.2f}",
        f"{max(run.peak for run in runs) / 2**20:.0f}",
        "-" if base is None else f"{result.wall / base:.2f}",
        str(result.left),
        str(result.nodes),
    )


def _verdict(results: Sequence[Result], base: float | None) -> list[str]:
    if base is None:
        return []
    peers = [result for result in results if result.tool.package != BASELINE and not result.failure]
    ahead = [f"{peer.tool.name} ({peer.wall / base:.2f})" for peer in peers if peer.wall <= base]
    if ahead:
        return [f"-> not behind bnfold: {', '.join(ahead)}"]
    return [f"-> bnfold is ahead of the {len(peers)} others that finished"] if peers else []


def _versions() -> Iterable[str]:
    for package in _PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} not installed"


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _aligned(pairs: Sequence[tuple[str, str]]) -> str:
    width = max(len(key) for key, _ in pairs)
    return "\n".join(f"{key.ljust(width)}  {value}" for key, value in pairs)
