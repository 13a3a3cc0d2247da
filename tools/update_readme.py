"""Put what other programs printed into README.md, between its markers: the example, the codes, the measurements.

    python tools/update_readme.py

The example is what the README's first command prints; the measurements are the newest files in tools/results/.
"""

import re
import subprocess
import sys
from pathlib import Path

from bnfold.refusals import Code

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tools" / "results"


def example() -> str:
    """The report of the README's first command."""
    (ROOT / "build").mkdir(exist_ok=True)
    command = ["fold", "models/digits_resnet.onnx", "-o", "build/digits_resnet.onnx", "--force"]
    done = subprocess.run([sys.executable, "-m", "bnfold", *command], cwd=ROOT, check=True, capture_output=True)
    return block(done.stdout.decode())


def codes() -> str:
    """A line for each refusal code."""
    rows = [f"| `{code.value}` | {code.explanation} |" for code in Code]
    return "\n".join(["| code | meaning |", "|---|---|", *rows])


def newest(kind: str) -> str:
    """The newest result of a kind, by the date in its name."""
    text = max(RESULTS.glob(f"{kind}-*.txt")).read_text(encoding="utf-8")
    return block(text.split("\nmin, median:")[0])


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
        "bench": newest("bench"),
        "sites": newest("sites"),
        "accuracy": newest("accuracy"),
    }
    for name, content in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, content=content: match[1] + content + match[2], text)
        if count != 1:
            sys.exit(f"README.md has {count} places for {name}")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
