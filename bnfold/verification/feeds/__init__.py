"""Inputs to compare two models on: made up, or given as files or by a script.

`spec` is what a model says about its inputs, `sizes` chooses their free dimensions, `uses` finds in which range
whole numbers have to be, `statistics` how large floats have to be for a BatchNormalization to see what it was
trained on, `branches` what lets every branch of an If run (`conditions` says what decides), `made` draws the numbers.
`data`, `script` and `labels` read what users give, `check` holds it against the model. `trials` puts it all in order,
and `failing` keeps what two models differ on.
"""

from bnfold.verification.feeds.made import KINDS, make_feeds, nudge, nudged
from bnfold.verification.feeds.sizes import ATTEMPTS, Sizes, choose_shapes, parse_dim, parse_shape
from bnfold.verification.feeds.spec import Feeds, InputSpec, input_spec

__all__ = [
    "ATTEMPTS",
    "KINDS",
    "Feeds",
    "InputSpec",
    "Sizes",
    "choose_shapes",
    "input_spec",
    "make_feeds",
    "nudge",
    "nudged",
    "parse_dim",
    "parse_shape",
]
