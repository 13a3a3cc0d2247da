"""Before a padded Conv: the scale goes into the weights, one Add stays (`--partial`).

before:  n = BatchNormalization (x, ...)        y = Conv <pads = [1, 1, 1, 1]> (n, W)
after:   n' = Add (x, t / s)                    y = Conv <pads = [1, 1, 1, 1]> (n', s W)

s x + t = s (x + t / s), and a padded zero is zero before and after the scale. A map of scale 0 has no t / s.
"""

import numpy as np

from bnfold.edits import Edit, Plan, TurnIntoAdd
from bnfold.find import Site, Source
from bnfold.graph import GraphFacts
from bnfold.nodes import label
from bnfold.options import FoldOptions
from bnfold.plan.push import push
from bnfold.plan.walk import HALF, add_tensor, ends
from bnfold.refusals import Code, Refusal


def partial(facts: GraphFacts, site: Site, source: Source, options: FoldOptions) -> Plan | Refusal:
    """The plan that leaves one Add, or why there is none."""
    start, end = ends(facts, site)
    last, at = site.nodes[-1], label(facts.nodes[site.nodes[-1]])
    affine = source.affine
    if facts.opset() < 7 or (affine.scale == 1).all() or affine.only_scales:
        return Refusal(Code.SHIFT_MEETS_PADDING, f"nothing of {at} but a shift would move")
    with np.errstate(all="ignore"):
        shift = np.where(affine.shift == 0, 0.0, affine.shift / affine.scale)
    if not np.isfinite(shift).all():
        return Refusal(Code.SHIFT_MEETS_PADDING, f"a map of {at} has scale 0, and its shift cannot be divided by it")
    plan = push(facts, site, source.scaling(), options)
    if isinstance(plan, Refusal):
        return plan
    dtype = facts.constants.value_type(start)
    if dtype in HALF and not options.assume_range:
        return Refusal(Code.RANGE_RISK, f"in {dtype} the Add that {at} would become could overflow", at)
    tensor = add_tensor(facts, site, affine, shift, dtype)
    if isinstance(tensor, Refusal):
        return tensor
    add: Edit = TurnIntoAdd(last, start, tensor, f"{end}_shift")
    notes = (*plan.notes, f"{at} is an Add now: the shift would not reach the padding")
    return Plan(
        "partial", site.nodes[:-1], (*plan.edits, add), carried=(end, *plan.carried), absorbers=plan.absorbers,
        frozen=plan.frozen, notes=notes,
    )  # fmt: skip
