"""Whole numbers in the range that their use allows: each model runs in onnxruntime, which checks the range itself."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from bnfold.verification import VerifyOptions
from bnfold.verification.feeds.spec import input_spec
from bnfold.verification.feeds.trials import MadeUp
from bnfold.verification.judge import verify_pair
from bnfold.verification.runtime import OrtRunner, load_graph
from tests.conftest import MODELS, model, tensor

CPU = "CPUExecutionProvider"
INT64, FLOAT = TensorProto.INT64, TensorProto.FLOAT
TABLE = tensor("table", np.arange(40.0).reshape(10, 4))
N = helper.make_node


def integers(nodes, held=(), shape=(6,), kind=INT64, out=FLOAT, opset=17, more=()):
    """A model from integers x, and perhaps more inputs (name, type, shape), to y."""
    proto = model(list(nodes), list(held), shape, elem_type=kind, opset=opset)
    proto.graph.output[0].type.tensor_type.elem_type = out
    proto.graph.input.extend(helper.make_tensor_value_info(*entry) for entry in more)
    return proto


def drawn(proto, name="x", trials=6):
    """All that is fed to an input in some trials, each of which runs."""
    data = proto.SerializeToString()
    runner = OrtRunner(data, CPU)
    made = MadeUp(data, runner.inputs, trials, 0, {}, {}, CPU)
    return [made.first_to_run(trial, runner.run)[0].feeds[name] for trial in range(trials)]


def reshape_after(value, *shape):
    """A Reshape, and its target."""
    return N("Reshape", [value, "target"], ["r"]), tensor("target", shape, np.int64)


CHAINS = {
    "Gather": ([N("Gather", ["table", "x"], ["y"])], []),
    "Cast": ([N("Cast", ["x"], ["i"], to=TensorProto.INT32), N("Gather", ["table", "i"], ["y"])], []),
    "Unsqueeze, Concat": (
        [N("Unsqueeze", ["x", "zero"], ["u"]), N("Concat", ["u", "u"], ["c"], axis=0),
         N("Gather", ["table", "c"], ["y"])],
        [tensor("zero", [0], np.int64)],
    ),
    "Reshape": ([reshape_after("x", 2, 3)[0], N("Gather", ["table", "r"], ["y"])], [reshape_after("x", 2, 3)[1]]),
    "float and back": (
        [N("Cast", ["x"], ["f"], to=FLOAT), N("Cast", ["f"], ["i"], to=INT64), N("Gather", ["table", "i"], ["y"])],
        [],
    ),
    "GatherElements": ([N("GatherElements", ["flat", "x"], ["y"])], [tensor("flat", np.arange(10.0))]),
    "a computed table": ([N("Add", ["table", "table"], ["t"]), N("Gather", ["t", "x"], ["y"])], []),
    "a table of computed shape": (
        [N("Shape", ["table"], ["s"]), N("Reshape", ["table", "s"], ["t"]), N("Gather", ["t", "x"], ["y"])],
        [],
    ),
    "another axis": ([N("Gather", ["wide", "x"], ["y"], axis=1)], [tensor("wide", np.ones((2, 10)))]),
    "two tables": (
        [N("Gather", ["table", "x"], ["a"]), N("Gather", ["long", "x"], ["b"]), N("Add", ["a", "b"], ["y"])],
        [tensor("long", np.ones((99, 4)))],
    ),
    "OneHot": ([N("OneHot", ["x", "ten", "ends"], ["y"])], [tensor("ten", 10, np.int64), tensor("ends", [0, 1])]),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_indices_are_drawn_from_the_whole_table(chain):
    """Ten rows: all of 0 to 9 occur, nothing else, whatever lies between the input and the table (FIELD 88)."""
    nodes, held = CHAINS[chain]
    found = np.concatenate(drawn(integers(nodes, [TABLE, *held], shape=(6,)), trials=24))
    assert found.dtype == np.int64
    assert set(found.tolist()) == set(range(10))


def test_a_constant_that_is_added_moves_the_range():
    """Positions that begin behind two reserved rows: 2 is taken away before the table of ten."""
    nodes = [N("Sub", ["x", "two"], ["i"]), N("Gather", ["table", "i"], ["y"])]
    found = np.concatenate(drawn(integers(nodes, [TABLE, tensor("two", 2, np.int64)]), trials=24))
    assert set(found.tolist()) == set(range(2, 12))


def test_an_index_inside_a_branch_or_a_function_counts():
    """The table is inside an If, or a local function."""
    branch = helper.make_graph(
        [N("Gather", ["table", "x"], ["b"])], "branch", [], [helper.make_tensor_value_info("b", FLOAT, None)]
    )
    nodes = [N("If", ["true"], ["y"], then_branch=branch, else_branch=branch)]
    inside = integers(nodes, [TABLE, tensor("true", True, np.bool_)])  # noqa: FBT003 - the tensor's value
    assert np.concatenate(drawn(inside, trials=12)).max() == 9
    called = integers([N("look", ["table", "x"], ["y"], domain="own")], [TABLE])
    body = [N("Gather", ["t", "i"], ["o"])]
    called.functions.append(
        helper.make_function("own", "look", ["t", "i"], ["o"], body, [helper.make_opsetid("", 17)])
    )
    called.opset_import.append(helper.make_opsetid("own", 1))
    assert np.concatenate(drawn(called, trials=12)).max() == 9


def test_an_index_into_a_shape_is_an_axis():
    """Shape of a rank 3 value: its elements are 0 to 2."""
    nodes = [N("Shape", ["z"], ["s"]), N("Gather", ["s", "x"], ["y"])]
    proto = integers(nodes, out=INT64, more=[("z", FLOAT, ["N", 2, 3])])
    assert set(np.concatenate(drawn(proto)).tolist()) == {0, 1, 2}


def test_indices_of_several_axes_stay_inside_the_smallest():
    """GatherND into (10, 4): what the axis of 4 allows."""
    found = np.concatenate(drawn(integers([N("GatherND", ["table", "x"], ["y"])], [TABLE], shape=(6, 2))))
    assert set(found.ravel().tolist()) == {0, 1, 2, 3}


def test_places_that_are_written_to_are_distinct():
    """ScatterND and ScatterElements: no place twice, so that no order of writing decides what comes out."""
    nodes = [N("ScatterND", ["table", "x", "z"], ["y"])]
    for found in drawn(integers(nodes, [TABLE], shape=(6, 1), more=[("z", FLOAT, [6, 4])])):
        assert len(set(found.ravel().tolist())) == 6
    nodes = [N("ScatterElements", ["table", "x", "z"], ["y"], axis=0)]
    for found in drawn(integers(nodes, [TABLE], shape=(3, 4), more=[("z", FLOAT, [3, 4])])):
        assert all(len(set(column)) == 3 for column in found.T.tolist())


def rnn():
    """A GRU over 5 steps with lengths for each of 3 samples."""
    rng = np.random.default_rng(0)
    held = [tensor("w", rng.normal(size=(1, 12, 2))), tensor("r", rng.normal(size=(1, 12, 4)))]
    node = N("GRU", ["z", "w", "r", "", "x"], ["", "y"], hidden_size=4)
    return integers([node], held, (3,), TensorProto.INT32, more=[("z", FLOAT, [5, 3, 2])])


SHAPES = {
    "Reshape": integers([N("Reshape", ["z", "x"], ["y"])], shape=(3,), more=[("z", FLOAT, [2, 3, 4, 5])]),
    "Reshape to more": integers([N("Reshape", ["z", "x"], ["y"])], shape=(5,), more=[("z", FLOAT, ["N", 3])]),
    "Expand": integers([N("Expand", ["z", "x"], ["y"])], shape=(3,), more=[("z", FLOAT, [2, 1, 4])]),
    "Tile": integers([N("Tile", ["z", "x"], ["y"])], shape=(2,), more=[("z", FLOAT, [2, 3])]),
    "Slice": integers([N("Slice", ["z", "b", "x", "b"], ["y"])], [tensor("b", [0], np.int64)], (1,),
                      more=[("z", FLOAT, [9, 3])]),
    "Range": integers([N("Range", ["a", "x", "b"], ["y"])], shape=(), out=INT64,
                      more=[("a", INT64, []), ("b", INT64, [])]),
    "ConstantOfShape": integers([N("ConstantOfShape", ["x"], ["y"])], shape=(3,)),
    "TopK": integers([N("TopK", ["z", "x"], ["y", ""])], shape=(1,), more=[("z", FLOAT, [2, 3])]),
    "Split": integers([N("Split", ["z", "x"], ["y", "w"], axis=1)], shape=(2,), more=[("z", FLOAT, [2, 7])]),
    "Resize": integers([N("Resize", ["z", "", "", "x"], ["y"])], shape=(4,), more=[("z", FLOAT, [1, 2, 5, 5])]),
    "Resize by parts": integers(
        [N("Concat", ["nc", "x"], ["s"], axis=0), N("Resize", ["z", "", "", "s"], ["y"])],
        [tensor("nc", [1, 2], np.int64)], (2,), more=[("z", FLOAT, [1, 2, 5, 5])]),
    "Pad": integers([N("Pad", ["z", "x"], ["y"])], shape=(4,), more=[("z", FLOAT, [2, 3])]),
    "Div": integers([N("Div", ["z", "x"], ["y"])], shape=(3,), out=INT64, more=[("z", INT64, [3])]),
    "lengths": rnn(),
    "ArgMax": integers([N("ArgMax", ["z"], ["m"], axis=1, keepdims=0), N("Equal", ["m", "x"], ["y"])], shape=(8,),
                       out=TensorProto.BOOL, more=[("z", FLOAT, [8, 5])]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_lengths_and_counts_suit_the_operator(name):
    """Each runs in every trial, with outputs that are not empty."""
    proto = SHAPES[name]
    found = verify_pair(proto.SerializeToString(), proto.SerializeToString(), VerifyOptions(trials=4))
    assert found.verdict == "equal", found.reason
    assert all(output.elements for output in found.outputs)


def test_labels_are_compared_with_classes_that_exist():
    """What ArgMax over 5 classes is compared with is 0 to 4."""
    assert set(np.concatenate(drawn(SHAPES["ArgMax"])).tolist()) == {0, 1, 2, 3, 4}


def test_images_of_bytes_and_of_whole_numbers_are_images():
    """uint8 takes all of 0 to 255, and so does an int32 of rank 4 that becomes a float; int8 has both signs."""
    cast = [N("Cast", ["x"], ["y"], to=FLOAT)]
    for kind, low, high in ((TensorProto.UINT8, 0, 255), (TensorProto.INT32, 0, 255), (TensorProto.INT8, -128, 127)):
        found = np.concatenate(drawn(integers(cast, shape=(1, 3, 32, 32), kind=kind)))
        assert (found.min(), found.max()) == (low, high)


def test_a_use_that_is_not_known_gets_zero_or_one():
    """Masks: 0 and 1 are right for what is multiplied or compared, and safe elsewhere."""
    proto = integers([N("Mul", ["x", "x"], ["y"])], out=INT64)
    assert set(np.concatenate(drawn(proto)).tolist()) == {0, 1}


def test_tokens_of_a_real_model_are_its_vocabulary():
    """bert.onnx: every row of its embedding table may be drawn, and no other."""
    path = MODELS / "bert.onnx"
    runner = OrtRunner(path, CPU)
    made = MadeUp(path, runner.inputs, 3, 0, {}, {}, CPU)
    found = np.concatenate([made.first_to_run(trial, runner.run)[0].feeds["input_ids"].ravel() for trial in range(3)])
    proto = load_graph(path)
    gather = next(n for n in proto.graph.node if n.op_type == "Gather" and "input_ids" in n.input)
    rows = next(t for t in proto.graph.initializer if t.name == gather.input[0]).dims[0]
    assert found.min() >= 0
    assert rows - 5 < found.max() < rows


def test_specs_of_inputs_say_what_they_are():
    """Type, sizes and symbols stand in messages as the model declares them."""
    value = helper.make_tensor_value_info("ids", INT64, ["N", 3, None])
    assert str(input_spec(value)) == "'ids' int64 (N, 3, ?)"
