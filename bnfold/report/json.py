"""A report as JSON: the tree as it is, under a versioned schema."""

import dataclasses
import json
import math
from typing import Any

from bnfold.report import Report
from bnfold.report.verdicts import CheckResult, VerifyReport


def render(report: Report | VerifyReport | CheckResult) -> str:
    """The report as indented JSON, keys in the order of the dataclasses; ends with a newline."""
    tree = dataclasses.asdict(report)
    tree = {"schema": tree.pop("schema"), **tree}
    return json.dumps(_plain(tree), indent=2, ensure_ascii=True) + "\n"


def _plain(value: Any) -> Any:
    """JSON has no infinities and NaNs; they become strings."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
