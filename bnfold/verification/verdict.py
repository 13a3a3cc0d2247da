"""The verdict on one provider, out of what was found there, and the sentence that goes with it."""

from collections.abc import Sequence
from dataclasses import replace

from bnfold.text import printable
from bnfold.verification import Coverage, ProviderRun
from bnfold.verification.arbiter import OwnErrors
from bnfold.verification.compare import OutputComparison
from bnfold.verification.layers import Sites
from bnfold.verification.sitecheck import SiteCheck


def coverage_of(sites: Sites | None, checks: tuple[SiteCheck, ...]) -> Coverage:
    """Whether all that the models make differently could be judged, and they share values at all."""
    whole = sites is not None and sites.shared > 0 and sites.outputs_are_shared
    whole = whole and all(check.covered for check in checks)
    return "sites" if whole else "end to end"


def worse_checks(first: tuple[SiteCheck, ...], second: tuple[SiteCheck, ...]) -> tuple[SiteCheck, ...]:
    """Of each value the check with the larger difference; one that could be judged before one that could not."""
    before = {check.value: check for check in first}
    pairs = [(before.get(check.value, check), check) for check in second]
    return tuple(max(pair, key=lambda check: (check.covered, check.times)) for pair in pairs)


def judged_run(run: ProviderRun) -> ProviderRun:
    """The run with its verdict: wrong sites decide first, then what concerns the outputs as a whole."""
    blamed = [site for site in run.sites if site.wrong]
    if blamed:
        more = f" (and {len(blamed) - 1} more)" if len(blamed) > 1 else ""
        return replace(run, verdict="different", reason=f"{blamed[0]}{more}")
    by_outputs = run.coverage != "sites"
    wrong = [o for o in run.outputs if not o.equal and ((o.problem and not o.turned) or o.tolerance or by_outputs)]
    if wrong:
        return replace(run, verdict="different", reason=_difference(wrong[0]))
    if not any(output.elements or output.turned for output in run.outputs):
        return replace(run, verdict="not verified", reason="all outputs are empty: nothing was compared")
    if not any(output.finite for output in run.outputs):
        reason = "the original's outputs are all NaN or infinite: nothing to compare"
        return replace(run, verdict="not verified", reason=reason)
    notable = filter(None, (_turned(run.outputs), _unjudged(run.sites)))
    return replace(run, verdict="equal", reason="; ".join(notable))


def _unjudged(sites: Sequence[SiteCheck]) -> str:
    """What to say where the outputs had to stand for some values."""
    left = [site for site in sites if not site.covered]
    more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
    return f"judged by the outputs alone: {left[0]}{more}" if left else ""


def _turned(outputs: Sequence[OutputComparison]) -> str:
    """What to say of outputs in which decisions turned."""
    found = [f"{o.turned} of '{printable(o.name)}'" for o in outputs if o.turned]
    return f"decisions that rounding turned: {', '.join(found)}" if found else ""


def _difference(output: OutputComparison) -> str:
    if output.problem:
        return f"output '{printable(output.name)}': {output.problem}"
    if output.tolerance:
        return (
            f"output '{printable(output.name)}': {output.exceeded} of {output.elements} elements are further off "
            f"than asked for ({output.tolerance}); the largest difference is {output.max_abs:.3g}"
        )
    return (
        f"output '{printable(output.name)}' differs by {output.max_abs:.3g}, {output.relative:.3g} of its scale; "
        f"the limit is {output.limit:.3g}"
    )


def without_reason(run: ProviderRun, output: OutputComparison, floor: float) -> ProviderRun:
    """Different: an output is further apart than what was found, or rounding of the weights, could make it."""
    reason = (
        f"output '{printable(output.name)}' differs by {output.relative:.3g} of its scale, although every value that "
        f"could be compared agrees; changes of the weights by one ulp move it by {floor:.3g}"
    )
    return replace(run, verdict="different", reason=reason, coverage="end to end")


def explained(run: ProviderRun, own: OwnErrors | None) -> ProviderRun:
    """The verdict, with a word on outputs that differ by more than their limit although every site agrees."""
    apart = [output for output in run.outputs if not output.equal and not output.turned]
    worst = max(apart, key=lambda output: output.relative)
    reason = (
        f"every changed value agrees in float64; output '{printable(worst.name)}' differs by {worst.relative:.2g} of "
        f"its scale by rounding alone{'' if own is None else f': {own}'}"
    )
    return replace(run, reason=reason)
