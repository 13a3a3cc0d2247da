"""The whole verification of two models: interface, values, what was asked for, and what is good to know beside it."""

from dataclasses import replace

from bnfold.document import Document
from bnfold.verification import Progress, ProviderRun, Verification, VerifyOptions, combine
from bnfold.verification.feeds.trials import Trial
from bnfold.verification.judge import verify_pair
from bnfold.verification.providers import Provider
from bnfold.verification.runtime import Model


def verify_whole(
    original: Model,
    folded: Model,
    options: VerifyOptions,
    progress: Progress | None = None,
    *,
    documents: tuple[Document, Document] | None = None,
) -> Verification:
    """Compare two models on every requested provider; with both as documents, their interfaces too.

    Raises:
        UsageError: a shape, size or tolerance that fits no input or output.
    """
    fed: dict[Provider, Trial] = {}
    verification = verify_pair(original, folded, options, progress, fed, documents)
    if options.require_sites:
        verification = _requiring_sites(verification)
    if documents is not None:
        verification = _with_interface(verification, documents)
    if options.thorough:
        from bnfold.verification.information import gather

        found = tuple(gather(original, folded, options, verification.runs, fed))
        verification = replace(verification, information=found)
    return verification


def _requiring_sites(verification: Verification) -> Verification:
    return combine(tuple(map(_by_sites_alone, verification.runs)))


def _by_sites_alone(run: ProviderRun) -> ProviderRun:
    if run.verdict != "equal" or run.coverage == "sites":
        return run
    left = next((site for site in run.sites if not site.covered), None)
    why = "the models have no values in common" if left is None else str(left)
    reason = f"not every changed value could be judged by itself, as --require-sites asks: {why}"
    return replace(run, verdict="not verified", reason=reason)


def _with_interface(verification: Verification, documents: tuple[Document, Document]) -> Verification:
    from bnfold.verification.interface import interface_differences

    found = interface_differences(*documents)
    if not found:
        return verification
    return replace(verification, verdict="different", reason="; ".join(found), interface=found)
