"""Fold and verify the full-size networks, and compare with what was counted by hand.

    python tools/make_models.py --all DIR
    python tools/full_size.py DIR [--out FILE]

Prints for each: BatchNormalizations, chains, how many fold, how many were expected to (tools/expected_full.toml), the
codes of the rest, the verdict of onnxruntime with the largest difference relative to the output's scale, and seconds
with verification. Ends with 1 where a count differs or a verdict is not `equal`.
"""

import argparse
import datetime as dt
import platform
import sys
import tempfile
import time
import tomllib
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import bnfold

EXPECTED = Path(__file__).parent / "expected_full.toml"


def line(path: Path, expected: dict) -> tuple[str, bool]:
    """One model: the row, and whether all is as expected."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = bnfold.fold(path, Path(folder) / path.name, allow_unverified=True)
    seconds = time.perf_counter() - started
    kinds = Counter(site.kind for site in result.report.sites)
    left = dict(Counter(site.code for site in result.refused))
    found = (kinds["BatchNormalization"], kinds["chain"], len(result.folded), left)
    wanted = (expected["batchnorms"], expected["chains"], expected["folds"], expected.get("left", {}))
    verdict = "nothing to verify"
    if result.verification is not None:
        outputs = [output for run in result.verification.runs for output in run.outputs]
        worst = max((output.relative for output in outputs), default=0.0)
        verdict = f"{result.verification.verdict}, {worst:.1e}"
    codes = ", ".join(f"{count} {code}" for code, count in left.items())
    row = (
        f"{path.stem:20}{found[0]:>6}{found[1]:>8}{found[2]:>8}{wanted[2]:>10}  {verdict:26}{seconds:>6.1f}  {codes}"
    )
    good = found == wanted and (result.verification is None or bool(result.verification))
    return row if good else f"{row}  UNEXPECTED", good


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("bnfold", "onnxruntime", "onnx", "numpy"))
    lines = [
        f"date      {dt.datetime.now(dt.UTC).date()}",
        f"versions  {packages}, Python {platform.python_version()}",
        "",
        f"{'model':20}{'BN':>6}{'chains':>8}{'folded':>8}{'expected':>10}  {'verdict':26}{'s':>6}  left",
    ]
    print("\n".join(lines), flush=True)
    good = True
    for name, expected in tomllib.loads(EXPECTED.read_text(encoding="utf-8")).items():
        row, fine = line(arguments.folder / f"{name}.onnx", expected)
        good = good and fine
        lines.append(row.rstrip())
        print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(not good)


if __name__ == "__main__":
    main()
