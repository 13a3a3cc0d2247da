"""Why a site stays: the closed list of codes, one line of explanation and of help each.

A refusal is a value. It is never logged and never swallowed: it ends as a line of the report.
"""

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """The closed list. The value is what users see in reports and match on in CI."""

    TRAINING_MODE = "training-mode"
    PARAMS_NOT_CONSTANT = "params-not-constant"
    WEIGHTS_NOT_CONSTANT = "weights-not-constant"
    OVERRIDABLE_INITIALIZER = "overridable-initializer"
    QUANTIZED_WEIGHT = "quantized-weight"
    SPARSE_WEIGHT = "sparse-weight"
    NO_PRODUCER = "no-producer"
    PRODUCER_SHARED = "producer-shared"
    PRODUCER_IS_OUTPUT = "producer-is-output"
    CAPTURED_BY_SUBGRAPH = "captured-by-subgraph"
    PRODUCER_CANNOT_ABSORB = "producer-cannot-absorb"
    CONSUMER_CANNOT_ABSORB = "consumer-cannot-absorb"
    CONSUMER_IS_OUTPUT = "consumer-is-output"
    SHIFT_MEETS_PADDING = "shift-meets-padding"
    NEGATIVE_SCALE = "negative-scale"
    BEHIND_NORMALIZATION = "behind-normalization"
    OUTSIDE_SOURCES = "outside-sources"
    RANGE_RISK = "range-risk"
    UNKNOWN_SHAPE = "unknown-shape"
    ACTIVATION_BETWEEN = "activation-between"
    CAST_BETWEEN = "cast-between"
    QUANTIZE_BETWEEN = "quantize-between"
    TRAINING_DROPOUT_BETWEEN = "training-dropout-between"
    NOT_PER_MAP = "not-per-map"
    BAD_VARIANCE = "bad-variance"
    NON_FINITE = "non-finite"
    OVERFLOW = "overflow"
    UNDERFLOW = "underflow"
    SHAPE_MISMATCH = "shape-mismatch"
    WOULD_GROW = "would-grow"
    UNSUPPORTED_TYPE = "unsupported-type"
    UNKNOWN_VERSION = "unknown-version"
    IN_SUBGRAPH = "in-subgraph"
    IN_FUNCTION = "in-function"

    @property
    def explanation(self) -> str:
        """One line on what the code means."""
        return _TEXT[self][0]

    @property
    def help(self) -> str:
        """What the user can do about it; empty where nothing helps."""
        return _TEXT[self][1]


_TEXT: dict[Code, tuple[str, str]] = {
    Code.TRAINING_MODE: (
        "the BatchNormalization normalises with the statistics of the batch, so it is no fixed affine map",
        "export in inference mode (model.eval(); running statistics tracked)",
    ),
    Code.PARAMS_NOT_CONSTANT: (
        "a parameter of the map (gamma, beta, mean, var, a factor) is computed at run time or is a model input",
        "export with the parameters as initializers",
    ),
    Code.WEIGHTS_NOT_CONSTANT: (
        "the weight or bias that would take the map in is computed at run time or is a model input",
        "export with the weights as initializers, or run constant folding first",
    ),
    Code.OVERRIDABLE_INITIALIZER: (
        "the initializer is also a model input (IR >= 4), so a caller may replace its value",
        "--freeze-inputs folds it after all and removes it from the model's inputs",
    ),
    Code.QUANTIZED_WEIGHT: (
        "the weight comes out of a DequantizeLinear whose scale and integers cannot take the map in",
        "fold before quantising",
    ),
    Code.SPARSE_WEIGHT: (
        "the weight or parameter is a sparse initializer",
        "store it as a dense initializer",
    ),
    Code.NO_PRODUCER: (
        "its input is a model input or a constant: nothing lies upstream",
        "",
    ),
    Code.PRODUCER_SHARED: (
        "a value upstream is also used elsewhere, where it must stay as it is",
        "--clone-shared folds into a copy, where that value comes straight out of a Conv, Gemm or the like",
    ),
    Code.PRODUCER_IS_OUTPUT: (
        "a value upstream is an output of the model, where it must stay as it is",
        "drop that output if it is not needed, or --clone-shared",
    ),
    Code.CAPTURED_BY_SUBGRAPH: (
        "a value on the way is also read inside a nested graph, or made in another one",
        "",
    ),
    Code.PRODUCER_CANNOT_ABSORB: (
        "what lies upstream has no constants that could take the map in",
        "",
    ),
    Code.CONSUMER_CANNOT_ABSORB: (
        "what lies downstream, or one of several readers, has no constants that could take the map in",
        "",
    ),
    Code.CONSUMER_IS_OUTPUT: (
        "the result is an output of the model, where it must stay as it is",
        "",
    ),
    Code.SHIFT_MEETS_PADDING: (
        "the map stands before a padded operator: at the border its shift would be missing",
        "--partial moves the scale into the weights and leaves one Add",
    ),
    Code.NEGATIVE_SCALE: (
        "a negative scale cannot pass a maximum or a rectifier that lies between",
        "",
    ),
    Code.BEHIND_NORMALIZATION: (
        "it stands behind an InstanceNormalization, GroupNormalization or LayerNormalization that cannot take it in",
        "",
    ),
    Code.OUTSIDE_SOURCES: (
        "the fold would be exact, but is not among those that were asked for",
        "--sources all folds it",
    ),
    Code.RANGE_RISK: (
        "in float16 or bfloat16 a value on the way could overflow that did not before",
        "--assume-range folds it after all",
    ),
    Code.UNKNOWN_SHAPE: (
        "a shape on the way is not known, so that the feature maps cannot be followed",
        "export with static shapes, or run shape inference first",
    ),
    Code.ACTIVATION_BETWEEN: (
        "a nonlinear function lies between the map and what could take it in",
        "",
    ),
    Code.CAST_BETWEEN: (
        "a Cast lies between: its rounding would move",
        "convert the model's precision after folding",
    ),
    Code.QUANTIZE_BETWEEN: (
        "QuantizeLinear or DequantizeLinear lies between: its rounding would move",
        "fold before quantising",
    ),
    Code.TRAINING_DROPOUT_BETWEEN: (
        "a Dropout that is active, or whose mask is used, lies between",
        "export in inference mode (model.eval())",
    ),
    Code.NOT_PER_MAP: (
        "the map is not one pair of numbers for each channel of what would take it in: it varies along other axes",
        "",
    ),
    Code.BAD_VARIANCE: (
        "var + epsilon is zero, negative, or cancels to almost nothing",
        "repair the running variance (re-estimate the statistics)",
    ),
    Code.NON_FINITE: (
        "a parameter or weight is NaN or infinite",
        "repair the parameters (re-estimate the statistics)",
    ),
    Code.OVERFLOW: (
        "a folded weight or bias is too large for the weight's type",
        "fold the float32 model, or re-train that map; in float16 the map cannot be stored",
    ),
    Code.UNDERFLOW: (
        "the folded weights of a map are too small for the weight's type and would lose precision",
        "fold the float32 model, or prune that map",
    ),
    Code.SHAPE_MISMATCH: (
        "the lengths of parameters and weights do not fit together: the model is invalid here",
        "check the export",
    ),
    Code.WOULD_GROW: (
        "a constant would have to be stored larger than it is, such as a weight that nodes generate",
        "",
    ),
    Code.UNSUPPORTED_TYPE: (
        "the weight or a parameter is of a type that bnfold does not compute with",
        "",
    ),
    Code.UNKNOWN_VERSION: (
        "the operator's version is not stated, or is newer than bnfold knows",
        "update bnfold, or export with an older opset",
    ),
    Code.IN_SUBGRAPH: (
        "it lies inside a graph of a custom operator, which bnfold does not look into",
        "",
    ),
    Code.IN_FUNCTION: (
        "a local function lies between, or the calls of the function that it lies in do not agree",
        "inline the functions first (onnx.inliner)",
    ),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason why one site stays.

    Attributes:
        code: from the closed list.
        message: a sentence with the names of the nodes and values at issue.
        node: the node that stands in the way, as a label; None where it is the site itself.
        quiet: there is nothing to be won, so that by default the site is not worth a line.
    """

    code: Code
    message: str
    node: str | None = None
    quiet: bool = False
