"""Which operator answers by which rule."""

from collections.abc import Mapping

from bnfold.rules import (
    Rule,
    activation,
    arithmetic,
    concat,
    conv,
    conv_transpose,
    depth_to_space,
    expand,
    gemm,
    matmul,
    normalization,
    pad,
    passthrough,
    pieces,
    pool,
    reduce,
    reshape,
    resize,
    squeeze,
    transpose,
)

ACTIVATION = Rule(activation.pull, activation.push)
POOL = Rule(pool.pull, pool.push)
PRODUCT = Rule(arithmetic.pull_product, arithmetic.push_product)
REDUCE = Rule(reduce.pull, reduce.push)
RESHAPE = Rule(reshape.pull_reshape, reshape.push_reshape)
RESIZE = Rule(resize.pull, resize.push)
SUM = Rule(arithmetic.pull_sum, arithmetic.push_sum)

RULES: Mapping[str, Rule] = {
    "Add": SUM,
    "AveragePool": POOL,
    "Concat": Rule(concat.pull_concat, concat.push_concat),
    "Conv": Rule(conv.pull, conv.push),
    "ConvTranspose": Rule(conv_transpose.pull, conv_transpose.push),
    "DepthToSpace": Rule(depth_to_space.pull_depth_to_space, depth_to_space.push_depth_to_space),
    "Div": PRODUCT,
    "Dropout": Rule(passthrough.pull_dropout, passthrough.push_dropout),
    "Expand": Rule(expand.pull_expand, expand.push_expand),
    "Flatten": RESHAPE,
    "Gather": Rule(pieces.pull_gather, pieces.push_gather),
    "Gemm": Rule(gemm.pull, gemm.push),
    "GlobalAveragePool": POOL,
    "GlobalMaxPool": POOL,
    "GroupNormalization": Rule(normalization.pull_channels),
    "Identity": Rule(passthrough.pull_identity, passthrough.push_identity),
    "InstanceNormalization": Rule(normalization.pull_channels),
    "LayerNormalization": Rule(normalization.pull_layer),
    "LeakyRelu": ACTIVATION,
    "MatMul": Rule(matmul.pull, matmul.push),
    "MaxPool": POOL,
    "Mul": PRODUCT,
    "Neg": Rule(arithmetic.pull_neg, arithmetic.push_neg),
    "PRelu": ACTIVATION,
    "Pad": Rule(pad.pull, pad.push),
    "ReduceMax": REDUCE,
    "ReduceMean": REDUCE,
    "ReduceMin": REDUCE,
    "ReduceSum": REDUCE,
    "Relu": ACTIVATION,
    "Reshape": RESHAPE,
    "Resize": RESIZE,
    "Shape": Rule(push=passthrough.push_shape),
    "Size": Rule(push=passthrough.push_shape),
    "Slice": Rule(pieces.pull_slice, pieces.push_slice),
    "SpaceToDepth": Rule(depth_to_space.pull_space_to_depth, depth_to_space.push_space_to_depth),
    "Split": Rule(pieces.pull_split, pieces.push_split),
    "Squeeze": Rule(squeeze.pull_squeeze, squeeze.push_squeeze),
    "Sub": SUM,
    "Sum": SUM,
    "Tile": Rule(expand.pull_tile, expand.push_tile),
    "Transpose": Rule(transpose.pull_transpose, transpose.push_transpose),
    "Unsqueeze": Rule(squeeze.pull_unsqueeze, squeeze.push_unsqueeze),
    "Upsample": RESIZE,
    "com.microsoft::FusedConv": Rule(conv.pull, conv.push),
    "com.microsoft::FusedGemm": Rule(gemm.pull, gemm.push),
    "com.microsoft::FusedMatMul": Rule(matmul.pull, matmul.push),
}
