"""The report of `bnfold check` as text for a terminal, by rich: a table with a line for each model, then reasons."""

from collections import Counter
from io import StringIO

from rich.box import ASCII2, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bnfold.report.verdicts import CheckResult, ModelCheck
from bnfold.report.verify_text import WIDE
from bnfold.text import plural, printable

_STYLES = {"passed": "green", "not verified": "yellow"}


def render(result: CheckResult, *, color: bool = False, boxes: bool = False, verbose: bool = False) -> str:
    """The report as text; `verbose` lists every site too."""
    stream = StringIO()
    console = Console(
        file=stream, force_terminal=color, no_color=not color, width=WIDE, highlight=False, legacy_windows=False
    )
    console.print(_table(result.models, boxes=boxes))
    for model in result.models:
        for reason in model.reasons:
            console.print(Text(f"{printable(model.model)}: {printable(reason, 1200)}"), soft_wrap=True)
        for site in model.sites if verbose else ():
            what = f"into {site.into}" if site.outcome == "folded" else f"{site.code}: {site.message}"
            word = "would fold" if site.outcome == "folded" else "stays"
            console.print(Text(f"  {printable(model.model)}: {word}: {site.site}: {what}"), soft_wrap=True)
    style = "bold green" if result else "bold red"
    console.print(Text(f"{summary(result)} ({result.seconds:.1f} s)", style=style), soft_wrap=True)
    return stream.getvalue()


def summary(result: CheckResult) -> str:
    """How many models ended how: `3 models: 2 passed, 1 failed`."""
    counts = Counter(model.outcome for model in result.models)
    listed = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return f"{plural(len(result.models), 'model')}: {listed}"


def codes(model: ModelCheck) -> str:
    """How many sites stay for which reason: `3 activation-between, 1 no-producer`."""
    return ", ".join(f"{count} {code}" for code, count in sorted(model.codes.items(), key=lambda item: -item[1]))


def difference(model: ModelCheck) -> str:
    """The largest difference that folding makes, of the output's scale; what else there is to say."""
    worst = None if model.verification is None else model.verification.worst
    if worst is not None:
        return worst.problem or f"{worst.relative:.1e}"
    return "not compared" if model.verification is not None else ""


def _table(models: tuple[ModelCheck, ...], *, boxes: bool) -> Table:
    table = Table(box=SIMPLE_HEAD if boxes else ASCII2)
    for name in ("model", "verdict", "foldable", "stay", "difference", "codes"):
        table.add_column(name, justify="right" if name in ("foldable", "stay") else "left", no_wrap=True)
    for model in models:
        verdict = Text(model.outcome, style=_STYLES.get(model.outcome, "red"))
        counts = (str(model.foldable), str(model.left)) if model.sha256 else ("", "")
        cells = (Text(printable(difference(model))), Text(codes(model)))
        table.add_row(Text(printable(model.model)), verdict, *counts, *cells)
    return table
