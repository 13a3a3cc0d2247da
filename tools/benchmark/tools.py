"""The tools that are compared, each as the command that starts a fresh process.

A tool folds and writes, and does as little else as it lets one choose. Where a tool has a command line and an
API, the faster of the two is taken; the reason stands beside each and is printed under the tables.
"""

import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SOURCE, TARGET = "{source}", "{target}"
BASELINE = "bnfold"

_ONNXSIM = """\
import sys, onnx, onnxsim
model, _ = onnxsim.simplify(onnx.load(sys.argv[1]), skip_constant_folding=True, skip_shape_inference=True)
onnx.save(model, sys.argv[2])
"""
_ONNXSCRIPT = """\
import sys, onnx_ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import fuse_batchnorm_into_conv_rule
onnx_ir.save(rewrite(onnx_ir.load(sys.argv[1]), [fuse_batchnorm_into_conv_rule]), sys.argv[2])
"""
_ONNXOPTIMIZER = """\
import sys, onnx, onnxoptimizer
onnx.save(onnxoptimizer.optimize(onnx.load(sys.argv[1]), ["fuse_bn_into_conv"]), sys.argv[2])
"""
_ONNXRUNTIME = """\
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
options.optimized_model_filepath = sys.argv[2]
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


@dataclass(frozen=True, slots=True)
class Tool:
    """One way to fold a file.

    Attributes:
        name: the row in the table, and what `--tools` takes.
        package: the distribution that has to be installed.
        start: a console script's name, or Python code for `python -c`.
        arguments: what follows, with SOURCE and TARGET in place of the two files.
        why: why this command is the fair one.
    """

    name: str
    package: str
    start: str
    arguments: tuple[str, ...]
    why: str

    @property
    def is_script(self) -> bool:
        """Whether `start` is Python code."""
        return "\n" in self.start

    @property
    def version(self) -> str | None:
        """The installed version; None where the tool is not installed."""
        try:
            found = version(self.package)
        except PackageNotFoundError:
            return None
        return found if self.is_script or self._console_script().exists() else None

    def command(self, source: Path, target: Path) -> list[str]:
        """The command line that folds `source` into `target`."""
        head = [sys.executable, "-c", self.start] if self.is_script else [str(self._console_script())]
        files = {SOURCE: str(source), TARGET: str(target)}
        return [*head, *(files.get(argument, argument) for argument in self.arguments)]

    def shown(self) -> list[str]:
        """The command as it is printed: one line, or the lines of the code."""
        if self.is_script:
            return ["python -c, IN and OUT in sys.argv:", *(f"  {line}" for line in self.start.splitlines())]
        names = {SOURCE: "IN", TARGET: "OUT"}
        return [" ".join([self.start, *(names.get(argument, argument) for argument in self.arguments)])]

    def _console_script(self) -> Path:
        return Path(sys.executable).with_name(self.start)


BOTH = (SOURCE, TARGET)
TOOLS: tuple[Tool, ...] = (
    Tool(BASELINE, "bnfold", "bnfold", ("fold", "--no-verify", SOURCE, "-o", TARGET),
         "folds, writes and flushes to the disk, compares no outputs: what the others do; the row ratios refer to"),
    Tool("bnfold verified", "bnfold", "bnfold", ("fold", SOURCE, "-o", TARGET),
         "the default: both models also run in onnxruntime and their outputs are compared"),
    Tool("onnxruntime", "onnxruntime", _ONNXRUNTIME, BOTH,
         "offline optimisation at the lowest level that folds BatchNormalization"),
    Tool("onnxscript", "onnxscript", _ONNXSCRIPT, BOTH,
         "the one rule, read and written by onnx_ir: no slower than through onnx, faster than optimizer.optimize"),
    Tool("onnxoptimizer", "onnxoptimizer", _ONNXOPTIMIZER, BOTH,
         "the one pass; its command line runs onnx.checker too. It leaves the arithmetic on weights in the graph"),
    Tool("onnxslim", "onnxslim", "onnxslim", (SOURCE, TARGET, "--no-shape-infer"),
         "without shape inference; its other optimisations stay on, as it is no faster with them skipped"),
    Tool("onnxsim", "onnxsim", _ONNXSIM, BOTH,
         "without check, shape inference and constant folding; its command line also counts FLOPs (next row)"),
    Tool("onnxsim (CLI)", "onnxsim", "onnxsim",
         (*BOTH, "--no-certify", "--skip-shape-inference", "--skip-constant-folding"),
         "the same from its command line, which prints a comparison of the two models"),
)  # fmt: skip
