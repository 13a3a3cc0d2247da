"""The report of `bnfold verify` as text for a terminal, by rich."""

from io import StringIO

from rich.box import ASCII2, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bnfold.report.verdicts import VerifyReport
from bnfold.report.words import besides, coverage, in_ulps, meaning, verdict_line
from bnfold.text import plural, printable, size
from bnfold.verification import Information, ProviderRun
from bnfold.verification.compare import OutputComparison
from bnfold.verification.sitecheck import SiteCheck

WIDE = 10_000  # sentences and tables are not broken: a terminal wraps them, a pipe keeps one line each
_MOST = 10  # values and outputs that are shown without -v
_COLUMNS = ("output", "max difference", "mean", "of scale", "ulp", "cosine", "SNR dB", "top-1")


def render(report: VerifyReport, *, color: bool = False, boxes: bool = False, verbose: bool = False) -> str:
    """The report as text: the files, what each provider found, the verdict."""
    stream = StringIO()
    console = Console(
        file=stream, force_terminal=color, no_color=not color, width=WIDE, highlight=False, legacy_windows=False
    )
    for what, file in (("original", report.original), ("folded", report.folded)):
        _line(console, f"{what:<8}  {printable(file.path)}, {size(file.bytes)}, sha256 {file.sha256[:16]}")
    for clause in report.verification.interface:
        _line(console, f"interface: {clause}", "bold red")
    runs = report.verification.runs
    for run in runs:
        _run(console, run, boxes=boxes, verbose=verbose, alone=len(runs) == 1)
    for entry in report.verification.information:
        _information(console, entry)
    style = {0: "bold green", 1: "bold red"}.get(report.exit_code, "bold yellow")
    reason = f": {printable(report.verification.reason, 1200)}" if report.verification.reason else ""
    _line(console, f"{report.verdict}{reason} ({report.seconds:.2f} s)", style)
    return stream.getvalue()


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)


def _run(console: Console, run: ProviderRun, *, boxes: bool, verbose: bool, alone: bool) -> None:
    where = ", ".join(filter(None, [run.provider, printable(run.runtime), printable(run.device)]))
    given = ", ".join(f"{printable(name)}={printable(value)}" for name, value in run.options.items())
    _line(console, where + (f" ({given})" if given else ""), "bold")
    if run.outputs:
        _line(console, f"  {coverage(run)}")
        _sites(console, run.sites, verbose=verbose)
        console.print(_table(run.outputs if verbose else run.outputs[:_MOST], boxes=boxes))
        for output in run.outputs if verbose else run.outputs[:_MOST]:
            clause = ": ".join(filter(None, [in_ulps(output), meaning(output, run)]))
            _line(console, f"  {printable(output.name)}: {clause}")
        if len(run.outputs) > _MOST and not verbose:
            _line(console, f"  and {plural(len(run.outputs) - _MOST, 'more output')} (-v shows them)")
    if not alone or run.verdict == "equal":  # else the last line says it
        _line(console, *verdict_line(run))
    for sentence in besides(run):
        _line(console, f"  {sentence}")


def _sites(console: Console, sites: tuple[SiteCheck, ...], *, verbose: bool) -> None:
    """Those that are wrong or could not be judged; the one that is furthest off, or all, where all are right."""
    odd = [site for site in sites if site.wrong or not site.covered]
    shown = list(sites) if verbose else odd[:_MOST] or sorted(sites, key=lambda s: -s.times)[:1]
    for site in shown:
        word = "WRONG" if site.wrong else "equal" if site.covered else "?    "
        of = "furthest off: " if not odd and not verbose else ""
        _line(console, f"  {word}  {of}{site}", "red" if site.wrong else "")
    if len(odd) > _MOST and not verbose:
        _line(console, f"  and {len(odd) - _MOST} more like these (-v shows them)")


def _table(outputs: tuple[OutputComparison, ...], *, boxes: bool) -> Table:
    table = Table(box=SIMPLE_HEAD if boxes else ASCII2)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "output" else "right", no_wrap=True)
    for output in outputs:
        table.add_row(Text(printable(output.name)), *_cells(output))
    return table


def _cells(output: OutputComparison) -> list[str]:
    if output.problem or not output.elements:
        return ["-"] * (len(_COLUMNS) - 1)
    snr = "-" if output.snr_db is None else "exact" if output.snr_db == float("inf") else f"{output.snr_db:.1f}"
    cosine = "-" if output.cosine is None else f"{output.cosine:.9f}"
    top1 = "-" if output.top1 is None else f"{output.top1:.1%}"
    numbers = [f"{value:.2e}" for value in (output.max_abs, output.mean_abs, output.relative)]
    return [*numbers, f"{output.ulps:.1f}", cosine, snr, top1]


def _information(console: Console, entry: Information) -> None:
    _line(console, f"for information, {entry.title}:", "bold")
    if entry.reason:
        _line(console, f"  not compared: {printable(entry.reason, 600)}")
    for output in entry.outputs[:_MOST]:
        clause = ": ".join(filter(None, [in_ulps(output), meaning(output)]))
        _line(console, f"  {printable(output.name)}: {clause}")
