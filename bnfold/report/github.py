"""Reports for GitHub Actions: annotations and the step summary.

Names in a model and of files are foreign text: they are escaped, so that none ends an annotation early, starts a
command of its own, or becomes markup.
Source: GitHub, "Workflow commands for GitHub Actions"; actions/runner, ActionCommand.cs.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from bnfold.report.check_text import codes, difference, summary
from bnfold.report.verdicts import CheckResult, ModelCheck
from bnfold.text import printable

LARGEST_SUMMARY = 900_000  # bytes; GitHub drops a summary over 1 MiB


def annotations(result: CheckResult) -> Iterator[str]:
    """A line `::error file=...,title=...::reason` for each model that did not pass."""
    for model in result.models:
        if model.exit_code:
            reasons = "; ".join(printable(reason, 1200) for reason in model.reasons) or model.outcome
            title = _property(f"bnfold check: {model.outcome}")
            yield f"::error file={_property(_in_workspace(model.model))},title={title}::{_data(reasons)}"


def step_summary(result: CheckResult) -> str:
    """The table of models in GitHub's Markdown, those that did not pass first; cut before GitHub's limit."""
    lines = [
        f"### bnfold check: {summary(result)}",
        "",
        "| model | verdict | foldable | stay | difference | codes | reasons |",
        "|---|---|--:|--:|---|---|---|",
    ]
    room = LARGEST_SUMMARY - sum(map(len, lines))
    models = sorted(result.models, key=lambda model: model.exit_code == 0)
    for count, model in enumerate(models):
        row = _row(model)
        room -= len(row.encode()) + 1
        if room < 0:
            lines.append(f"\n... and {len(models) - count} more")
            break
        lines.append(row)
    return "\n".join(lines) + "\n\n"


def _row(model: ModelCheck) -> str:
    mark = "✅" if not model.exit_code else "❌"
    reasons = "; ".join(printable(reason, 1200) for reason in model.reasons)
    cells = (
        _cell(printable(model.model)), f"{mark} {model.outcome}", str(model.foldable), str(model.left),
        _cell(printable(difference(model))), _cell(codes(model)), _cell(reasons),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Plain text in Markdown: each ASCII character that may mean something there as a numeric entity."""
    return re.sub(r"[!-,.:-@\[-`{-~]", lambda match: f"&#{ord(match[0])};", text)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A").replace("##[", "## [")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _in_workspace(model: str) -> str:
    """The path as GitHub wants it: relative to the workspace, if it lies there."""
    workspace = os.environ.get("GITHUB_WORKSPACE")
    path = Path(model)
    if not workspace or not path.is_absolute() or not path.is_relative_to(workspace):
        return printable(model)
    return printable(str(path.relative_to(workspace)))
