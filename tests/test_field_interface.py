"""Nothing else is touched: inputs at IR 3, foreign tensors, annotations, devices, documentation, unknown fields.

x is (1, 4, 8, 8), a Conv `conv` is 3x3 with pads 1, its map is `bn`, unless the case says otherwise.
"""

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper

import bnfold
from tests.conftest import initializer, ops, tensor
from tests.folding import _with_output_shapes, check, fold, graph, is_valid

X = (1, 4, 8, 8)
W = {"w": (4, 4, 3, 3)}
CONV = "[conv] c = Conv <pads = [1, 1, 1, 1]> (x, w)\n"
BN = "[bn] y = BN <maps = 4> (c)"
FLOAT = TensorProto.FLOAT

# IR 3: every initializer is an input


def branch(name, value):
    """A graph of one node that reads a value of the scope around it."""
    made = helper.make_node("Neg", [value], [name])
    return helper.make_graph([made], name, [], [helper.make_tensor_value_info(name, FLOAT, None)])


def at_ir3(text, x=X, **more):
    """The graph at IR 3 and opset 8, with every initializer among the inputs, before x."""
    proto = graph(text, x, opset=8, ir_version=3, y=(), **more)
    held = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in proto.graph.initializer]
    inputs = [*held, *proto.graph.input]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    shapes = {t.name: list(t.dims) for t in proto.graph.initializer}
    for value in proto.graph.output:
        value.CopyFrom(helper.make_tensor_value_info(value.name, FLOAT, shapes.get(value.name)))
    return _with_output_shapes(proto)  # onnx infers them only where the initializers are among the inputs


PLAIN = "o = Conv (x, w)\n"
IR3 = {
    # text, tensors, what else graph() takes, options
    "new bias": (CONV + BN, W, {}, {}),
    "copy of a shared weight": (CONV + BN + "\no = Conv (x, w)", W, {"outputs": ("y", "o")}, {}),
    "weight is an output": (CONV + BN, W, {"outputs": ("y", "w")}, {}),
    "parameter is an output": (CONV + BN, W, {"outputs": ("y", "y.g")}, {}),
    "Constant node": (
        "k = Constant <value = float[4] {1, 2, 3, 4}> ()\nc = Conv <pads = [1, 1, 1, 1]> (x, w, k)\n" + BN,
        W, {}, {}),
    "MatMul becomes a Gemm": ("c = MatMul (x, w)\n" + BN, {"w": (4, 4)}, {"x": (3, 4)}, {}),
    "MatMul gets an Add": (
        "c = MatMul (x, w)\nm = Mul (c, k)\ny = Add (m, k)", {"w": (4, 4), "k": (4,)}, {"x": (2, 3, 4)},
        {"sources": "all"}),
    "C of a Gemm": ("c = Gemm (x, w, k)\n" + BN, {"w": (4, 4), "k": np.array(2.0)}, {"x": (3, 4)}, {}),
    "downstream": ("[bn] n = BN <maps = 4> (x)\n[conv] y = Conv (n, w)", W, {}, {}),
    "one Add left": ("[bn] n = BN <maps = 4> (x)\n[conv] y = Conv <pads = [1, 1, 1, 1]> (n, w)", W, {},
                     {"partial": True}),
    "clone": (CONV + BN + "\nz = Relu (c)", W, {"outputs": ("y", "z")}, {"clone_shared": True}),
    "sibling": (CONV + "[bn] d = BN <maps = 4> (x)\ny = Add (c, d)", W, {}, {}),
    "merged": (
        CONV + "[bn] d = BN <maps = 4> (c)\ne = Conv (x, u)\ny = Add (d, e)", W | {"u": (4, 4, 1, 1)}, {},
        {"merge_branches": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", IR3)
def test_ir3_stays_valid_at_ir3(case):
    """New initializers are inputs too, removed ones leave, what is fed stays where it was; it runs, and the same."""
    text, tensors, more, options = IR3[case]
    proto = at_ir3(text, **({"x": X} | more), **tensors)
    assert is_valid(proto)
    found = check(proto, folded=2 if case == "merged" else 1, limit=4e-6, **options).model
    assert (found.ir_version, list(found.opset_import)) == (3, list(proto.opset_import))
    assert is_valid(found)
    names = [value.name for value in found.graph.input]
    held = {t.name: t for t in found.graph.initializer}
    assert set(names) == {"x", *held}
    assert len(names) == len(set(names))
    for value in found.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert value.name == "x" or shape == list(held[value.name].dims)
    before = [value.name for value in proto.graph.input]
    assert [name for name in names if name in before] == [name for name in before if name in names]


def test_ir3_weight_captured_by_a_branch():
    """The branch reads the old W, which stays an input; the folded copy becomes one."""
    proto = graph(CONV + BN, X, opset=8, ir_version=3, outputs=("y", "z"), y=X, flag=np.array([1]), **W)
    proto.graph.initializer[0].CopyFrom(tensor("flag", True, np.bool_))  # noqa: FBT003 - a tensor's value
    branches = {"then_branch": branch("a", "w"), "else_branch": branch("b", "w")}
    proto.graph.node.append(helper.make_node("If", ["flag"], ["z"], **branches))
    proto.graph.output[1].CopyFrom(helper.make_tensor_value_info("z", FLOAT, W["w"]))
    for held in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(held.name, held.data_type, list(held.dims)))
    found = check(proto, limit=4e-6).model
    names = {value.name for value in found.graph.input}
    assert names == {"x", *(t.name for t in found.graph.initializer)}
    assert {"w", "w_folded"} <= names


# Tensors that are none of ours


def foreign_tensors():
    """One of each element type there is, a future one, strings, a tensor in segments, empty ones."""
    kinds = [number for number in TensorProto.DataType.values() if number not in (0, TensorProto.STRING)]
    found = [TensorProto(name=f"f{n}", data_type=n, dims=[2], raw_data=bytes(range(32))) for n in [*kinds, 99]]
    found.append(TensorProto(name="text", data_type=TensorProto.STRING, dims=[2], string_data=[b"a\0\xff", b""]))
    found.append(TensorProto(name="typed", data_type=TensorProto.FLOAT, dims=[2], float_data=[1.5, -0.0]))
    found.append(TensorProto(name="empty", data_type=TensorProto.DOUBLE, dims=[0, 3]))
    found.append(TensorProto(name="part", data_type=FLOAT, dims=[2], float_data=[1, 2], doc_string="a part"))
    found[-1].segment.begin, found[-1].segment.end = 4, 6
    for held in found:
        held.metadata_props.add(key="made by", value=held.name)
    return found


def test_foreign_tensors_keep_every_byte(tmp_path):
    """As initializers, Constants, in branches and in functions: whatever their type, a fold leaves them alone."""
    proto = graph(CONV + BN, X, ir_version=10, opset=21, **W)
    for held in foreign_tensors():
        proto.graph.initializer.append(held)
        proto.graph.node.append(helper.make_node("Constant", [], [f"{held.name} made"], value=held))
    inner = helper.make_graph([], "inner", [], [], foreign_tensors())
    proto.graph.node.append(helper.make_node("Strange", ["x"], ["s"], domain="org.strange", inner=inner))
    nodes = [helper.make_node("Constant", [], [f"{held.name} made"], value=held) for held in foreign_tensors()]
    imports = [helper.make_opsetid("", 21)]
    proto.functions.append(helper.make_function("org.strange", "Kept", [], [], nodes, imports))
    onnx.save(proto, tmp_path / "in.onnx")
    assert len(bnfold.fold(tmp_path / "in.onnx", tmp_path / "out.onnx", verify=False).folded) == 1
    found = onnx.load(tmp_path / "out.onnx")
    names = {held.name for held in foreign_tensors()}
    assert [t for t in found.graph.initializer if t.name in names] == foreign_tensors()
    assert list(found.graph.node)[1:] == list(proto.graph.node)[2:]
    assert found.functions == proto.functions


@pytest.mark.parametrize("name", ["w", "y.v"])
def test_a_type_of_the_future_is_unsupported(name):
    """A weight or parameter of element type 99 is left with a code, and so is the model, byte for byte."""
    proto = graph(CONV + BN, X, y=X, **W)
    next(t for t in proto.graph.initializer if t.name == name).data_type = 99
    (site,) = check(proto, folded=0, left=["unsupported-type"], runs=False).refused
    assert name in site.message


@pytest.mark.parametrize("name", ["w", "y.v"])
def test_a_tensor_in_segments_is_no_constant_to_fold(name):
    """A weight or parameter that says it is but a part of one is left: nobody knows the rest (onnx reads none)."""
    proto = graph(CONV + BN, X, y=X, **W)
    held = next(t for t in proto.graph.initializer if t.name == name)
    held.segment.begin, held.segment.end = 0, 2
    result = fold(proto)
    assert not result.folded
    assert result.model == proto


def test_an_attribute_of_the_future_stays():
    """Attribute type 77, which protobuf keeps as an unknown field, on a node that stays: every byte of it."""
    attribute = AttributeProto(name="future", doc_string="from tomorrow")
    attribute.MergeFromString(b"\xa0\x01\x4d\xfa\x7f\x03abc")  # type = 77; field 2047
    proto = graph(CONV + BN + "\nz = Relu (y)", X, outputs=("z",), **W)
    for node in (proto.graph.node[0], proto.graph.node[2]):
        node.attribute.append(attribute)
    found = fold(proto).model
    assert ops(found) == ["Conv", "Relu"]
    kept = attribute.SerializeToString()
    assert [node.attribute[-1].SerializeToString() for node in found.graph.node] == [kept, kept]


# Annotations, training steps and devices


def test_annotations_in_branches_pin_what_they_name():
    """An annotation inside a branch names gamma of the main graph as its scale: gamma stays, with its numbers."""
    proto = graph(CONV + BN, X, outputs=("y", "z"), y=X, flag=np.array([1]), **W)
    proto.graph.initializer[0].CopyFrom(tensor("flag", True, np.bool_))  # noqa: FBT003 - a tensor's value
    one = branch("a", "x")
    entry = one.quantization_annotation.add(tensor_name="a")
    entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="y.g")
    node = helper.make_node("If", ["flag"], ["z"], then_branch=one, else_branch=branch("b", "x"))
    proto.graph.node.append(node)
    found = fold(proto).model
    assert ops(found) == ["Conv", "If"]
    assert found.graph.node[1] == node
    assert initializer(found, "y.g").tolist() == initializer(proto, "y.g").tolist()


@pytest.mark.parametrize("where", ["annotation", "parameter", "device"])
def test_a_name_that_only_an_annotation_knows_is_taken(where):
    """What is said of a `w_folded` that is not there must not become a statement about the new tensor."""
    proto = graph(CONV + BN, X, ir_version=11, opset=23, **W)
    if where == "device":
        entry = proto.graph.node[0].device_configurations.add(configuration_id="gpus")
        entry.sharding_spec.add(tensor_name="w_folded", device=[0, 1])
    else:
        entry = proto.graph.quantization_annotation.add(tensor_name="w_folded" if where == "annotation" else "x")
        entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w_folded")
    found = fold(proto).model
    assert ops(found) == ["Conv"]
    assert "w_folded" not in {t.name for t in found.graph.initializer}


def spread(proto):
    """The model on two devices: each node says how each of its tensors is split."""
    entry = proto.configuration.add(name="gpus", num_devices=2)
    entry.device.extend(["gpu:0", "gpu:1"])
    for stage, node in enumerate(proto.graph.node):
        held = node.device_configurations.add(configuration_id="gpus", pipeline_stage=stage)
        for name in (*node.input, *node.output):
            spec = held.sharding_spec.add(tensor_name=name, device=[0, 1])
            spec.sharded_dim.add(axis=0).simple_sharding.add(num_shards=2)
    return proto


DEVICES = {
    "pull": (CONV + BN, W, {}, {}),
    "carried": (CONV + "r = Identity (c)\n[bn] y = BN <maps = 4> (r)", W, {}, {}),
    "push": ("[bn] n = BN <maps = 4> (x)\n[conv] y = Conv (n, w)", W, {}, {}),
    "partial": ("[bn] n = BN <maps = 4> (x)\n[conv] y = Conv <pads = [1, 1, 1, 1]> (n, w)", W, {}, {"partial": True}),
    "gemm": ("c = MatMul (x, w)\n" + BN, {"w": (4, 4)}, {"x": (3, 4)}, {}),
    "clone": (CONV + BN + "\nz = Relu (c)", W, {"outputs": ("y", "z")}, {"clone_shared": True}),
}


@pytest.mark.parametrize("case", DEVICES)
def test_device_configurations_follow_new_names(case):
    """Each sharding names an input or output of its own node, none is lost where the tensor is only renamed."""
    text, tensors, more, options = DEVICES[case]
    proto = spread(graph(text, **({"x": X} | more), ir_version=11, opset=23, **tensors))
    result = fold(proto, **options)
    assert len(result.folded) == 1
    assert result.model.configuration == proto.configuration
    absorbers = [node for node in result.model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert all(node.device_configurations for node in absorbers)
    for node in result.model.graph.node:
        names = [spec.tensor_name for held in node.device_configurations for spec in held.sharding_spec]
        assert set(names) <= {*node.input, *node.output}, node.op_type
        assert node not in absorbers or {node.input[0], node.input[1], node.output[0]} <= set(names)


def test_device_configurations_elsewhere_stay():
    """The configurations of the model and of the nodes that a fold passes by: as they were."""
    proto = spread(
        graph(CONV + BN + "\nr = Relu (y)\nz = Abs (x)", X, ir_version=11, opset=23, outputs=("r", "z"), **W)
    )
    found = fold(proto).model
    assert ops(found) == ["Conv", "Relu", "Abs"]
    assert found.configuration == proto.configuration
    assert list(found.graph.node)[1:] == list(proto.graph.node)[2:]
