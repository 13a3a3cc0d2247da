"""A report as text for a terminal, by rich. Names from the model are escaped before they get here."""

from collections import Counter
from io import StringIO

from rich.box import ASCII2, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bnfold.report import ModelFacts, Report, SiteReport
from bnfold.report.words import besides, verdict_line
from bnfold.text import plural, printable, size

KINDS = ("BatchNormalization", "chain", "branch")
_MOST_NOTES = 4
_WIDE = 10_000  # sentences are not broken: a terminal wraps them, a pipe keeps one line a site


def render(report: Report, *, color: bool = False, boxes: bool = False, verbose: bool = False) -> str:
    """The report as text: a heading, a table of what changed, the sites, the verdict.

    `boxes` draws the table with line characters, for terminals that have them.
    """
    stream = StringIO()
    console = Console(
        file=stream,
        force_terminal=color,
        no_color=not color,
        width=100,
        highlight=False,
        legacy_windows=False,
    )
    _line(console, _heading(report), "bold")
    if report.command == "inspect":
        _sites(console, report.sites)
        _line(console, _counts(report))
    else:
        _fold(console, report, boxes=boxes, verbose=verbose)
    return stream.getvalue()


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True, width=_WIDE)


def _heading(report: Report) -> str:
    name = printable(report.model) if report.model else "model in memory"
    weight = f", {size(report.before.bytes)}" if report.before.bytes else ""
    return f"{name}: opset {report.opset}, IR {report.ir_version}, {plural(report.before.nodes, 'node')}{weight}"


def _counts(report: Report) -> str:
    total = len(report.sites)
    if not total:
        return "no BatchNormalization in this model"
    verb = "fold" if report.command == "inspect" else "folded"
    kinds = Counter(site.kind for site in report.sites)
    named = " and ".join(plural(kinds[kind], kind) for kind in KINDS if kinds[kind])
    text = f"{len(report.folded)} of {named} {verb}, {len(report.left)} left"
    codes = Counter(site.code for site in report.left)
    listed = ", ".join(f"{count} {code}" for code, count in sorted(codes.items(), key=lambda item: -item[1]))
    return f"{text} ({listed})" if listed else text


def _fold(console: Console, report: Report, *, boxes: bool, verbose: bool) -> None:
    if report.after is not None and report.folded:
        console.print(_changes(report.before, report.after, boxes=boxes))
    _line(console, _counts(report))
    _sites(console, report.sites if verbose else report.left)
    notes = [note for site in report.folded for note in site.notes]
    shown = notes if verbose or len(notes) <= _MOST_NOTES else notes[: _MOST_NOTES - 1]
    for note in shown:
        _line(console, f"note: {note}", "yellow")
    if len(notes) > len(shown):
        _line(console, f"note: and {len(notes) - len(shown)} more like these (-v shows them)", "yellow")
    for old, new in report.renamed:
        _line(console, f"renamed: {printable(old)} -> {printable(new)} (its contents changed)")
    if report.frozen:
        _line(console, f"no longer inputs of the model: {', '.join(map(printable, report.frozen))}", "yellow")
    _files(console, report)
    if report.verification is None and report.folded:
        _line(console, "the outputs were not compared (verification is off)", "yellow")
    if report.verification is not None:
        for run in report.verification.runs:
            _line(console, *verdict_line(run))
            for sentence in besides(run):
                _line(console, sentence)
    written = f" -> {printable(report.output)}" if report.output else ""
    undo = f", undo file {printable(report.undo)}" if report.undo else ""
    _line(console, f"{report.status}{written}{undo} ({report.seconds:.2f} s)", "bold")


def _files(console: Console, report: Report) -> None:
    for note in report.notes:
        _line(console, f"note: {note}", "yellow")
    if report.removed:
        names = ", ".join(map(printable, report.removed))
        _line(console, f"removed: {names} (data of the model that was replaced; nothing else names it)")
    if report.superseded:
        names = ", ".join(map(printable, report.superseded))
        _line(console, f"no longer used by this model: {names} (remove it if nothing else needs it)", "yellow")


def _changes(before: ModelFacts, after: ModelFacts, *, boxes: bool) -> Table:
    table = Table(box=SIMPLE_HEAD if boxes else ASCII2)
    for name, justify in (("", "left"), ("before", "right"), ("after", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # the literals are right
    for op in sorted(before.operators.keys() | after.operators.keys()):
        old, new = before.operators.get(op, 0), after.operators.get(op, 0)
        style = "" if old == new else "green"
        table.add_row(Text(printable(op)), str(old), str(new), style=style)
    table.add_section()
    table.add_row("nodes", str(before.nodes), str(after.nodes))
    table.add_row("initializers", str(before.initializers), str(after.initializers))
    if before.bytes and after.bytes:
        table.add_row("size", size(before.bytes), size(after.bytes))
    return table


def _sites(console: Console, sites: tuple[SiteReport, ...]) -> None:
    for site in sites:
        after = f" after {site.producer}" if site.producer else ""
        after += f" in {site.place}" if site.place else ""
        if site.outcome == "folded":
            _line(console, f"  fold  {site.site}{after}: into {site.into}")
            continue
        help_ = f" [{site.help}]" if site.help else ""
        _line(console, f"  left  {site.site}{after}: {site.code}: {site.message}{help_}")
