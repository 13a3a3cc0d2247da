"""Put what other programs printed into README.md, between its markers: the example, the codes, the measurements.

    python tools/update_readme.py

The example is what the README's first command prints; the measurements are the newest files in tools/results/.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

import bnfold
from bnfold.refusals import Code

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tools" / "results"


def example() -> str:
    """The report of the README's first command."""
    (ROOT / "build").mkdir(exist_ok=True)
    command = ["fold", "models/digits_resnet.onnx", "-o", "build/digits_resnet.onnx", "--force"]
    done = subprocess.run([sys.executable, "-m", "bnfold", *command], cwd=ROOT, check=True, capture_output=True)
    return block(done.stdout.decode())


def wrong() -> str:
    """What `bnfold verify` prints of a fold in which one map's bias is off by 1e-4."""
    source, target = ROOT / "models" / "digits_resnet.onnx", ROOT / "build" / "wrong.onnx"
    model = bnfold.fold(source, verify=False).model
    name = next(node.input[2] for node in model.graph.node if node.op_type == "Conv")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    numbers = numpy_helper.to_array(bias).copy()
    numbers[3] += np.float32(1e-4)
    bias.CopyFrom(numpy_helper.from_array(numbers, name))
    onnx.save(model, target)
    command = ["verify", str(source.relative_to(ROOT)), str(target.relative_to(ROOT))]
    done = subprocess.run([sys.executable, "-m", "bnfold", *command], cwd=ROOT, check=False, capture_output=True)
    return block(done.stdout.decode())


def codes() -> str:
    """A line for each refusal code."""
    rows = [f"| `{code.value}` | {code.explanation} |" for code in Code]
    return "\n".join(["| code | meaning |", "|---|---|", *rows])


def newest(kind: str, end: str = "\nmin, median:") -> str:
    """The newest result of a kind, by the date in its name, up to the line that ends what is for the README."""
    text = max(RESULTS.glob(f"{kind}-*.txt")).read_text(encoding="utf-8")
    return block(text.split(end)[0])


def block(text: str) -> str:
    """Text as a fenced block."""
    return f"```text\n{text.strip()}\n```"


def main() -> None:
    """Rewrite README.md."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    parts = {
        "example": example(),
        "codes": codes(),
        "wrong": wrong(),
        "bench": newest("bench"),
        "sites": newest("sites"),
        "accuracy": newest("accuracy"),
        "verify": newest("verify", "\nfolds by other tools that are left out"),
        "cost": newest("cost"),
    }
    for name, content in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
        if count != 1:
            sys.exit(f"README.md has {count} places for {name}")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
