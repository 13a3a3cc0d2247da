"""Time bnfold beside the other tools that fold BatchNormalization, each as a whole process.

    python tools/make_models.py --all DIR            the full-size models, once
    python tools/bench.py DIR                        resnet50 and chain2000, every tool, five rounds
    python tools/bench.py DIR --models mobilenet_v2 --tools bnfold onnxruntime --rounds 3
    python tools/bench.py DIR --output FILE          also into a file

Needs what it compares with; what is missing is listed as not installed:

    pip install onnxruntime==1.32.0 onnxsim==0.8.1 onnxslim==0.1.98 onnxscript==0.7.2 onnxoptimizer==0.4.2

Rounds are interleaved (A B C, A B C, ...), so that a machine that grows slow is slow for all. The first round
warms the page cache and the byte code, and does not count. A tool that fails or takes too long is reported as such.
Outputs go to the folder for temporary files (TMPDIR) and are deleted. Progress is on stderr.
"""

import argparse
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmark.process import Run, count_nodes, fresh_environment, measure
from benchmark.table import Result, environment, model_table, notes
from benchmark.tools import TOOLS, Tool


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how to run: a scratch folder, an environment, a time limit for each process."""

    scratch: Path
    environment: dict[str, str]
    timeout: float

    def compare(self, model: Path, tools: list[Tool], rounds: int) -> list[Result]:
        """All tools on one model, in turn, round after round."""
        results = [Result(tool, failure="" if tool.version else "not installed") for tool in tools]
        for number in range(rounds + 1):
            for result in results:
                if not result.failure:
                    self._round(model, result, number)
        return results

    def _round(self, model: Path, result: Result, number: int) -> None:
        """One run; round 0 is the warm-up, in which the output is looked at instead of counted."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as name:
            target = Path(name) / "out.onnx"
            run = measure(result.tool.command(model, target), Path(name), self.environment, self.timeout)
            result.failure = run.failure
            if number:
                result.runs.append(run)
            elif not run.failure:
                _look_at(target, result)
        _progress(model, result, run, number)


def main() -> None:
    """Check what was asked for, measure, print."""
    parser = _parser()
    arguments = parser.parse_args()
    if not hasattr(os, "wait4"):
        parser.error("this system has no wait4, which tells a process's time and memory; use Linux or macOS")
    models = [_find(parser, arguments.folder, name) for name in arguments.models]
    tools = [tool for tool in TOOLS if tool.name in arguments.tools]
    output = arguments.output
    if output and not output.parent.is_dir():
        parser.error(f"--output: the folder {output.parent} does not exist")
    with tempfile.TemporaryDirectory(prefix="bnfold-bench-") as name:
        bench = Bench(Path(name), fresh_environment(Path(name) / "pycache"), arguments.timeout)
        parts = [environment(Path(tempfile.gettempdir()), arguments.rounds)]
        for model in models:
            title = _title(parser, model)
            parts.append(model_table(title, bench.compare(model, tools, arguments.rounds)))
    text = "\n\n".join([*parts, notes(tools)])
    print(text)
    if output:
        output.write_text(f"{text}\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time bnfold beside the other tools, each as a whole process.")
    names = [tool.name for tool in TOOLS]
    parser.add_argument("folder", type=Path, help="where `tools/make_models.py --all` wrote the models")
    parser.add_argument(
        "--models", nargs="+", metavar="NAME", default=["resnet50", "chain2000"], help="default: resnet50 chain2000"
    )
    parser.add_argument(
        "--tools", nargs="+", metavar="NAME", default=names, choices=names, help=f"default: all: {', '.join(names)}"
    )
    parser.add_argument("--rounds", type=_count, default=5, metavar="N", help="counted rounds; default: 5")
    parser.add_argument(
        "--timeout", type=_seconds, default=300.0, metavar="S", help="seconds a run may take; default: 300"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the tables to FILE too")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to a day")
    return seconds


def _find(parser: argparse.ArgumentParser, folder: Path, name: str) -> Path:
    make = f"python tools/make_models.py --all {folder}"
    if not folder.is_dir():
        parser.error(f"the folder {folder} does not exist; make it with: {make}")
    path = folder / f"{name.removesuffix('.onnx')}.onnx"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.onnx"))) or "no models"
        parser.error(f"{path} does not exist; {folder} holds {known}; make them with: {make}")
    return path.resolve()


def _title(parser: argparse.ArgumentParser, model: Path) -> str:
    try:
        nodes, norms = count_nodes(model)
    except ValueError as error:
        parser.error(f"{model} cannot be read: {error}")
    data = model.with_name(f"{model.name}.data")
    size = sum(path.stat().st_size for path in (model, data) if path.is_file()) / 2**20
    return f"{model.stem}: {size:.1f} MiB, {nodes} nodes, {norms} of them BatchNormalization"


def _look_at(target: Path, result: Result) -> None:
    if not target.is_file():
        result.failure = "failed: it ended well but wrote nothing"
        return
    try:
        result.nodes, result.left = count_nodes(target)
    except ValueError as error:
        result.failure = f"failed: what it wrote cannot be read: {error}"


def _progress(model: Path, result: Result, run: Run, number: int) -> None:
    stage = f"round {number}" if number else "warm-up"
    said = result.failure or f"{run.wall:.2f} s"
    print(f"{model.stem}, {stage}: {result.tool.name}: {said}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the process that runs, too
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("bench.py: interrupted; nothing is left behind")
