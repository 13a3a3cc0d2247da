"""Random operators draw the same numbers on both sides; libraries of custom operators are loaded into both."""

import shutil
import subprocess

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import bnfold
from bnfold.errors import UsageError
from bnfold.verification import VerifyOptions
from bnfold.verification.judge import verify_pair
from bnfold.verification.reference import ReferenceRunner
from bnfold.verification.runtime import OrtRunner
from bnfold.verification.seeds import pin
from tests.conftest import conv_bn, model, random_feeds, tensor

CPU = "CPUExecutionProvider"
TRUE = tensor("true", True, np.bool_)  # noqa: FBT003 - the tensor's value


def behind(*nodes, out=TensorProto.FLOAT, held=()):
    """Conv and BatchNormalization to y, and nodes from there to r."""
    proto = conv_bn()
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(held)
    proto.graph.output[0].name = "r"
    proto.graph.output[0].type.tensor_type.elem_type = out
    return proto


def in_a_loop():
    """Two turns of a Loop, each adding other noise."""
    body = helper.make_graph(
        [helper.make_node("RandomNormalLike", ["v"], ["noise"]), helper.make_node("Add", ["v", "noise"], ["louder"]),
         helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("louder", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return behind(
        helper.make_node("Loop", ["two", "true", "y"], ["r"], body=body), held=[TRUE, tensor("two", 2, np.int64)]
    )


def in_a_function():
    """Noise inside a local function that is called twice."""
    proto = behind(
        helper.make_node("noisy", ["y"], ["q"], domain="own"), helper.make_node("noisy", ["q"], ["r"], domain="own")
    )
    nodes = [helper.make_node("RandomUniformLike", ["a"], ["u"]), helper.make_node("Mul", ["a", "u"], ["b"])]
    proto.functions.append(helper.make_function("own", "noisy", ["a"], ["b"], nodes, [helper.make_opsetid("", 17)]))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    return proto


def random_models():
    """One for each random operator."""
    node = helper.make_node
    half = tensor("half", 0.5)
    return {
        "RandomNormal": behind(node("RandomNormal", [], ["n"], shape=[9]),
                               node("GlobalAveragePool", ["y"], ["p"]), node("Add", ["p", "n"], ["r"])),
        "RandomUniform": behind(node("RandomUniform", [], ["n"], shape=[9]),
                                node("GlobalAveragePool", ["y"], ["p"]), node("Mul", ["p", "n"], ["r"])),
        "RandomNormalLike": behind(node("RandomNormalLike", ["y"], ["n"]), node("Add", ["y", "n"], ["r"])),
        "RandomUniformLike": behind(node("RandomUniformLike", ["y"], ["n"]), node("Add", ["y", "n"], ["r"])),
        "Bernoulli": behind(node("Sigmoid", ["y"], ["s"]), node("Bernoulli", ["s"], ["r"])),
        "Multinomial": behind(node("Flatten", ["y"], ["f"]), node("Multinomial", ["f"], ["r"], sample_size=9),
                              out=TensorProto.INT32),
        "Dropout": behind(node("Dropout", ["y", "half", "true"], ["r"]), held=[half, TRUE]),
        "Loop": in_a_loop(),
        "function": in_a_function(),
    }  # fmt: skip


@pytest.mark.parametrize("name", random_models())
def test_random_numbers_are_the_same_on_both_sides(name):
    """A fold shifts the places of nodes, and a session goes on drawing: equal nonetheless, each time (FIELD 93)."""
    original = random_models()[name]
    before = original.SerializeToString()
    result = bnfold.fold(original, trials=2)
    assert result.verification.verdict == "equal", result.verification.reason
    assert result.verification.runs[0].provider == CPU
    assert original.SerializeToString() == before
    assert not any(entry.name == "seed" for node in result.model.graph.node for entry in node.attribute)


def test_a_wrong_fold_behind_noise_is_still_found():
    """The noise is the same, so what is left is the fault."""
    original = random_models()["RandomNormalLike"]
    folded = bnfold.fold(original, verify=False).model
    held = next(t for t in folded.graph.initializer if t.name == "w_bias")
    held.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(held) + np.float32(0.01), "w_bias"))
    found = verify_pair(original.SerializeToString(), folded.SerializeToString(), VerifyOptions())
    assert found.verdict == "different"


def test_operators_with_different_outputs_draw_different_numbers():
    """Two operators in one model do not get one seed, and a seed that is there stays."""
    nodes = [helper.make_node("RandomNormalLike", ["x"], [name]) for name in "ab"]
    proto = model([*nodes, helper.make_node("Sub", ["a", "b"], ["y"])], [], (1, 50))
    found = OrtRunner(proto.SerializeToString(), CPU).run(random_feeds(proto))[0]
    assert np.abs(found).max() > 0.1
    proto.graph.node[0].attribute.append(helper.make_attribute("seed", 3.0))
    copy = ModelProto.FromString(proto.SerializeToString())
    assert pin(copy)
    assert copy.graph.node[0] == proto.graph.node[0]
    assert [entry.name for entry in copy.graph.node[1].attribute] == ["seed"]


def test_models_without_random_operators_keep_their_session():
    """Inference Dropout is not random; such a model runs as it is, in one session."""
    proto = conv_bn()
    proto.graph.node.append(helper.make_node("Dropout", ["y"], ["r"]))
    copy = ModelProto.FromString(proto.SerializeToString())
    assert not pin(copy)
    assert copy == proto
    runner = OrtRunner(proto.SerializeToString(), CPU)
    session = runner._session
    for _ in range(2):
        runner.run(random_feeds(proto))
    assert runner._session is session


@pytest.mark.parametrize("name", ["RandomNormalLike", "Loop", "function"])
def test_every_run_of_a_random_model_is_the_same(name):
    """In onnxruntime and in the reference evaluator: the same inputs, the same outputs."""
    proto = random_models()[name]
    feeds = random_feeds(proto)
    for runner in (OrtRunner(proto.SerializeToString(), CPU), ReferenceRunner(proto.SerializeToString())):
        first, second = runner.run(feeds)[0], runner.run(feeds)[0]
        np.testing.assert_array_equal(first, second)


def test_random_models_in_files_with_external_data_stay_as_they_are(tmp_path):
    """Seeds are on a copy that reads the weights from where they lie; not a byte on disk changes."""
    path = tmp_path / "model.onnx"
    onnx.save(random_models()["Dropout"], path, save_as_external_data=True, location="w.data", size_threshold=0)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    result = bnfold.fold(path, tmp_path / "folded.onnx")
    assert result.verification.verdict == "equal"
    assert {file: file.read_bytes() for file in before} == before
    folded = onnx.load(tmp_path / "folded.onnx", load_external_data=False)
    assert not any(entry.name == "seed" for node in folded.graph.node for entry in node.attribute)


def test_a_custom_operator_library_that_is_not_there_is_a_usage_error(tmp_path):
    """Missing: known before any work. No library: onnxruntime's own words, with the file's name."""
    with pytest.raises(UsageError, match=r"--custom-op-library .*no such file"):
        VerifyOptions(custom_op_libraries=(tmp_path / "none.so",))
    (tmp_path / "text.so").write_text("this is no library")
    data = conv_bn().SerializeToString()
    with pytest.raises(UsageError, match=r"--custom-op-library .*text\.so: it does not load"):
        verify_pair(data, data, VerifyOptions(custom_op_libraries=(tmp_path / "text.so",)))


SOURCE = """
#include <stdio.h>
void *RegisterCustomOps(void *options, const void *api) {
    FILE *file = fopen(LOG, "a");
    fputs("registered\\n", file);
    fclose(file);
    return 0;
}
"""


def library_of_nothing(folder):
    """A library without operators, which notes in a file that it was asked for them; and that file."""
    (folder / "ops.c").write_text(SOURCE)
    library, log = folder / "ops.so", folder / "log"
    command = ["cc", "-shared", "-fPIC", f'-DLOG="{log}"', "-o", library, folder / "ops.c"]
    subprocess.run(command, check=True)
    return library, log


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, to make a library")
def test_a_custom_operator_library_is_registered_for_both_models(tmp_path):
    """A library made here is asked for its operators by each session: both models', and that of the statistics."""
    library, log = library_of_nothing(tmp_path)
    data = conv_bn().SerializeToString()
    found = verify_pair(data, data, VerifyOptions(custom_op_libraries=(library,)))
    assert found.verdict == "equal"
    assert log.read_text() == "registered\n" * 3
