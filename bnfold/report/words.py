"""What the numbers of a verification mean, in words. Names from the models are escaped here."""

from bnfold.text import plural, printable
from bnfold.verification import ProviderRun
from bnfold.verification.compare import OutputComparison


def verdict_line(run: ProviderRun) -> tuple[str, str]:
    """The verdict of one provider as a sentence, and the style to print it in."""
    where = f"{run.provider}, {run.runtime}" if run.runtime else run.provider
    reason = f"; {printable(run.reason, 600)}" if run.reason else ""
    if run.verdict == "not verified":
        return f"not verified ({where}){reason}", "yellow"
    if run.verdict == "different":
        return f"DIFFERENT ({where}){reason}", "bold red"
    worst = max(run.outputs, key=lambda output: output.relative)
    sizes = ", ".join(f"{printable(name)}={size_}" for name, size_ in run.sizes.items())
    chosen = f", with {sizes}" if sizes else ""
    found = f"largest difference {worst.relative:.1e} of the output's scale, {worst.ulps:.1f} ulp"
    limit = worst.tolerance or f"limit {worst.limit:.1e}"
    inputs = plural(run.trials, "input")
    return f"verified equal on {inputs}{chosen} ({where}): {found}: {meaning(worst, run)} ({limit}){reason}", "green"


def meaning(output: OutputComparison, run: ProviderRun | None = None) -> str:
    """What the difference of an output is. `run` is the verdict that it is part of; None where it is none."""
    if output.turned and run is not None and run.verdict == "equal":
        return f"{plural(output.turned, 'element')} decided otherwise, next to where rounding may turn it"
    if output.problem:
        return printable(output.problem, 600)
    if output.relative == 0:
        return "bit for bit the same"
    if output.tolerance:
        return (
            "as close as asked for"
            if output.equal
            else f"{plural(output.exceeded, 'element')} further off than asked"
        )
    if output.relative <= output.limit:
        return "rounding"
    if run is None:
        return "more than rounding usually is"
    if run.verdict == "equal" and run.coverage == "sites":
        return "rounding that the network amplifies, as each changed value is right by itself"
    return "rounding in the original's own run" if run.verdict == "equal" else "more than rounding"


def besides(run: ProviderRun) -> list[str]:
    """What there is to say beside the verdict, a sentence each: accuracy on labels, the file of what differs."""
    said: list[str] = []
    if run.accuracy is not None:
        on, by = run.accuracy, run.accuracy.samples
        said.append(
            f"accuracy of '{printable(on.output)}' on {plural(by, 'label')}: {on.before / by:.2%} before, "
            f"{on.after / by:.2%} after, {plural(on.changed, 'answer')} changed"
        )
    if run.saved:
        said.append(f"inputs and outputs that differ -> {printable(run.saved)}")
    return said


def in_ulps(output: OutputComparison) -> str:
    """The difference of an output in a clause: 0.4 ulp of the output's scale."""
    if output.problem or output.relative == 0:
        return ""
    if not output.max_abs:  # whole numbers and truth values: the share that turned
        return f"{output.relative:.2g} of the elements turned"
    return f"{output.ulps:.2g} ulp of the output's scale"


def coverage(run: ProviderRun) -> str:
    """By what the values were judged, in a sentence."""
    if not run.sites:
        if run.coverage == "sites":
            return "every value that both have is made in the same way"
        return "the two have no values in common but inputs: judged by the outputs alone"
    by = {layer: sum(s.covered and s.layer == layer for s in run.sites) for layer in ("algebra", "values")}
    ran = sum(site.ran for site in run.sites)
    left = sum(not site.covered for site in run.sites)
    parts = [
        f"{by['algebra']} judged by weight and bias" if by["algebra"] else "",
        f"{by['values']} by what both models make of the same numbers" if by["values"] else "",
        f"{left} by the outputs alone" if left else "",
        f"{ran} as both models ran, too" if ran else "",
    ]
    noun = "value is" if len(run.sites) == 1 else "values are"
    return f"{len(run.sites)} {noun} made differently: {', '.join(filter(None, parts))}"
