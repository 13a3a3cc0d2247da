"""Which operator answers by which rule: the module, and what follows `pull_` and `push_` in it.

A module is imported when its operator is first met: most graphs hold a few of them.
"""

import functools
import importlib

from bnfold.rules import NO_RULE, Rule

RULES: dict[str, tuple[str, str]] = {
    "Add": ("arithmetic", "sum"),
    "AveragePool": ("pool", ""),
    "Concat": ("concat", "concat"),
    "Conv": ("conv", ""),
    "ConvTranspose": ("conv_transpose", ""),
    "DepthToSpace": ("depth_to_space", "depth_to_space"),
    "Div": ("arithmetic", "product"),
    "Dropout": ("passthrough", "dropout"),
    "Expand": ("expand", "expand"),
    "Flatten": ("reshape", "reshape"),
    "Gather": ("pieces", "gather"),
    "Gemm": ("gemm", ""),
    "GlobalAveragePool": ("pool", ""),
    "GlobalMaxPool": ("pool", ""),
    "GroupNormalization": ("normalization", "channels"),
    "Identity": ("passthrough", "identity"),
    "InstanceNormalization": ("normalization", "channels"),
    "LayerNormalization": ("normalization", "layer"),
    "LeakyRelu": ("activation", ""),
    "MatMul": ("matmul", ""),
    "MaxPool": ("pool", ""),
    "Mul": ("arithmetic", "product"),
    "Neg": ("arithmetic", "neg"),
    "PRelu": ("activation", ""),
    "Pad": ("pad", ""),
    "ReduceMax": ("reduce", ""),
    "ReduceMean": ("reduce", ""),
    "ReduceMin": ("reduce", ""),
    "ReduceSum": ("reduce", ""),
    "Relu": ("activation", ""),
    "Reshape": ("reshape", "reshape"),
    "Resize": ("resize", ""),
    "Shape": ("passthrough", "shape"),
    "Size": ("passthrough", "shape"),
    "Slice": ("pieces", "slice"),
    "SpaceToDepth": ("depth_to_space", "space_to_depth"),
    "Split": ("pieces", "split"),
    "Squeeze": ("squeeze", "squeeze"),
    "Sub": ("arithmetic", "sum"),
    "Sum": ("arithmetic", "sum"),
    "Tile": ("expand", "tile"),
    "Transpose": ("transpose", "transpose"),
    "Unsqueeze": ("squeeze", "unsqueeze"),
    "Upsample": ("resize", ""),
    "com.microsoft::FusedConv": ("conv", ""),
    "com.microsoft::FusedGemm": ("gemm", ""),
    "com.microsoft::FusedMatMul": ("matmul", ""),
}


@functools.cache
def rule_of(op: str) -> Rule:
    """The rule of an operator; one without answers where there is none."""
    if op not in RULES:
        return NO_RULE
    name, what = RULES[op]
    module = importlib.import_module(f"bnfold.rules.{name}")
    suffix = f"_{what}" if what else ""
    return Rule(getattr(module, f"pull{suffix}", None), getattr(module, f"push{suffix}", None))
