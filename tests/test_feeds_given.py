"""Inputs that users give: files, labels, scripts; and what is kept of a trial that differs."""

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.errors import OutputError, UsageError
from bnfold.verification import VerifyOptions
from bnfold.verification.feeds import InputSpec
from bnfold.verification.feeds.data import read_data
from bnfold.verification.feeds.script import parse_script
from bnfold.verification.judge import verify_pair
from tests.conftest import MODELS, ROOT, conv_bn, model, run, tensor

X = np.random.default_rng(0).normal(size=(2, 3, 9, 9)).astype(np.float32)
DIGITS = MODELS / "digits_resnet.onnx"


def judged(original, folded=None, **options):
    """The run of one provider, for models in memory or in files."""
    pair = [m if isinstance(m, Path) else m.SerializeToString() for m in (original, folded or original)]
    return verify_pair(*pair, VerifyOptions(**options)).runs[0]


def digits(count: int):
    """Images of digits, and their labels."""
    held = np.load(MODELS / "digits_test.npz")
    return held["pixel_values"][:count], held["labels"][:count]


def two_inputs():
    """y = x + z, of any size."""
    proto = model([helper.make_node("Add", ["x", "z"], ["y"])], [], ("N", 3))
    proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3]))
    return proto


def save_set(folder: Path, *values):
    """A folder with input_<n>.pb."""
    folder.mkdir(parents=True)
    for number, value in enumerate(values):
        proto = numpy_helper.from_list(value) if isinstance(value, list) else numpy_helper.from_array(value)
        (folder / f"input_{number}.pb").write_bytes(proto.SerializeToString())


def test_npz_and_npy_are_what_is_fed(tmp_path):
    """By input name, or one array for the only input; shapes come from the data, and nothing is made up."""
    arrays = {"x": np.ones((5, 3), np.float32), "z": np.zeros((5, 3), np.float32)}
    np.savez(tmp_path / "data.npz", **arrays)
    run_ = judged(two_inputs(), input_data=(tmp_path / "data.npz",))
    assert run_.verdict == "equal"
    assert [trial.name for trial in run_.inputs] == ["data.npz"]
    assert run_.shapes == {"x": (5, 3), "z": (5, 3)}
    np.save(tmp_path / "x.npy", X)
    run_ = judged(conv_bn(), input_data=(tmp_path / "x.npy", tmp_path / "x.npy"))
    assert [trial.name for trial in run_.inputs] == ["x.npy", "x.npy"]
    assert run_.trials == 2


def test_data_decides_where_made_up_numbers_cannot(tmp_path):
    """A difference beyond 50 is found on data that goes there."""
    nodes = [helper.make_node("Clip", ["x", "low", "high"], ["y"])]
    original, folded = (model(nodes, [tensor("low", -1e9), tensor("high", most)], (1, 4)) for most in (50, 60))
    assert judged(original, folded).verdict == "equal"
    np.save(tmp_path / "x.npy", np.float32([[1, 2, 3, 100]]))
    assert judged(original, folded, input_data=(tmp_path / "x.npy",)).verdict == "different"


def test_a_fixed_batch_takes_the_samples_in_parts(tmp_path):
    """Six samples for a model of two at once: three trials, each named by its samples."""
    np.save(tmp_path / "x.npy", np.concatenate([X, X + 1, X + 2]))
    run_ = judged(conv_bn(), input_data=(tmp_path / "x.npy",))
    assert [trial.name for trial in run_.inputs] == ["x.npy [0:2]", "x.npy [2:4]", "x.npy [4:6]"]


def test_folders_of_protobufs_are_read_in_order(tmp_path):
    """test_data_set_2 before test_data_set_10, inputs by number; one such folder alone will do."""
    one, two = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    save_set(tmp_path / "test_data_set_2", one, one)
    save_set(tmp_path / "test_data_set_10", two, two)
    run_ = judged(two_inputs(), input_data=(tmp_path,))
    assert [(trial.name, trial.shapes["x"][0]) for trial in run_.inputs] == [
        ("test_data_set_2", 2), ("test_data_set_10", 4),
    ]  # fmt: skip
    assert judged(two_inputs(), input_data=(tmp_path / "test_data_set_10",)).shapes["x"] == (4, 3)


def test_onnx_own_test_data_runs():
    """A folder from onnx's own backend tests is taken as it is."""
    folder = Path(onnx.__file__).parent / "backend/test/data/pytorch-converted/test_BatchNorm2d_eval"
    run_ = judged(folder / "model.onnx", folder / "model.onnx", input_data=(folder,))
    assert (run_.verdict, run_.inputs[0].name) == ("equal", "test_data_set_0")


def test_sequences_and_text_come_from_files(tmp_path):
    """x[0], x[1] in an .npz, a SequenceProto in a folder; text is stored without pickles."""
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [None]))
    node = helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)
    proto = model([node], [], (1,))
    proto.graph.input[0].type.CopyFrom(kind)
    parts = [np.ones(2, np.float32), np.ones(3, np.float32)]
    np.savez(tmp_path / "x.npz", **{"x[1]": parts[1], "x[0]": parts[0]})
    save_set(tmp_path / "test_data_set_0", parts)
    for path in (tmp_path / "x.npz", tmp_path):
        run_ = judged(proto, input_data=(path,))
        assert (run_.verdict, run_.outputs[0].elements) == ("equal", 5)
    text = model([helper.make_node("Identity", ["x"], ["y"])], [], ("N",), elem_type=TensorProto.STRING)
    np.save(tmp_path / "text.npy", np.array(["a", "bc"]))
    assert judged(text, input_data=(tmp_path / "text.npy",)).verdict == "equal"


def test_elements_of_a_sequence_come_in_their_order(tmp_path):
    """x[2] before x[10], in whatever order the file has them."""
    spec = InputSpec("x", np.dtype(np.float32), None, ("sequence",))
    parts = {f"x[{i}]": np.full(1, i, np.float32) for i in reversed(range(12))}
    np.savez(tmp_path / "x.npz", **parts)
    [(name, feeds)] = read_data(tmp_path / "x.npz", [spec])
    assert name == "x.npz"
    assert [int(part[0]) for part in feeds["x"]] == list(range(12))


def test_bfloat16_survives_numpys_files(tmp_path):
    """.npy stores bfloat16 as bytes without a meaning; the model says what they are."""
    proto = model([helper.make_node("Identity", ["x"], ["y"])], [], ("N",), elem_type=TensorProto.BFLOAT16)
    np.save(tmp_path / "x.npy", np.ones(3, ml_dtypes.bfloat16))
    run_ = judged(
        proto, input_data=(tmp_path / "x.npy",), providers=("reference",)
    )  # onnxruntime's Python takes none
    assert (run_.verdict, run_.outputs[0].elements) == ("equal", 3)


BAD = {
    "unknown name": ({"image": X}, "no input 'image'; it has 'x' float32"),
    "missing": ({"image": X, "x": X}, "no input 'image'"),
    "type": ({"x": X.astype(np.float64)}, "of type float64"),
    "shape": ({"x": X[:, :2]}, r"has shape \(2, 2, 9, 9\)"),
    "rank": ({"x": X[0]}, r"has shape \(3, 9, 9\)"),
    "NaN": ({"x": np.full_like(X, np.nan)}, "holds NaN, 486 of 486"),
}


@pytest.mark.parametrize("fault", BAD)
def test_data_that_does_not_fit_says_what_was_expected(tmp_path, fault):
    """Names, types, shapes and NaN are usage errors that name the file, the input, and what it takes."""
    arrays, words = BAD[fault]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UsageError, match=words) as caught:
        judged(conv_bn(), input_data=(tmp_path / "bad.npz",))
    assert "bad.npz" in str(caught.value)


def test_missing_and_empty_inputs_are_named(tmp_path):
    """One input of two; no samples; an .npz without arrays; one array for two inputs."""
    np.savez(tmp_path / "one.npz", x=np.ones((2, 3), np.float32))
    np.savez(tmp_path / "none.npz")
    np.savez(tmp_path / "empty.npz", x=np.ones((0, 3), np.float32), z=np.ones((0, 3), np.float32))
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    faults = {"one.npz": "input 'z' is missing", "none.npz": "no named arrays", "empty.npz": "is empty",
              "x.npy": "use .npz"}  # fmt: skip
    for name, words in faults.items():
        with pytest.raises(UsageError, match=words):
            judged(two_inputs(), input_data=(tmp_path / name,))


class Trap:
    """What a pickle could do."""

    def __reduce__(self):
        """Makes a file when it is loaded."""
        return Path.touch, (Path("trapped"),)


def test_pickles_are_refused_and_do_not_run(tmp_path, monkeypatch):
    """Objects in .npy and .npz and bare pickles: a usage error, and nothing of theirs was executed."""
    monkeypatch.chdir(tmp_path)
    np.save("object.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez("object.npz", x=np.array([Trap()], dtype=object))
    Path("bare.npz").write_bytes(pickle.dumps(Trap()))
    Path("bare.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("object.npy", "object.npz", "bare.npz", "bare.npy"):
        with pytest.raises(UsageError, match="pickle"):
            judged(conv_bn(), input_data=(Path(name),))
    assert not Path("trapped").exists()


def test_broken_files_are_usage_errors(tmp_path):
    """Cut anywhere, or with bytes changed: an error that names the file, never another exception."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=X)
    whole = buffer.getvalue()
    path = tmp_path / "x.npz"
    rng = np.random.default_rng(0)
    for size in [0, 1, 4, 30, 100, len(whole) // 2, len(whole) - 1, *rng.integers(1, len(whole), 8).tolist()]:
        path.write_bytes(whole[:size])
        with pytest.raises(UsageError, match=r"x\.npz"):
            judged(conv_bn(), input_data=(path,))
    save_set(tmp_path / "set", X)
    (tmp_path / "set" / "input_0.pb").write_bytes(numpy_helper.from_array(X).SerializeToString()[:-7])
    with pytest.raises(UsageError, match=r"input_0\.pb"):
        judged(conv_bn(), input_data=(tmp_path / "set",))


def test_paths_that_hold_no_data_are_usage_errors(tmp_path):
    """A missing file, another kind of file, an empty folder, too many inputs."""
    (tmp_path / "x.txt").write_text("1")
    (tmp_path / "none").mkdir()
    save_set(tmp_path / "many", X, X)
    with pytest.raises(UsageError, match="no such file"):
        VerifyOptions(input_data=(tmp_path / "nowhere.npz",))
    with pytest.raises(UsageError, match="--dim are for made-up inputs"):
        VerifyOptions(input_data=(tmp_path / "x.txt",), dims={"N": 2})
    for name, words in {"x.txt": "expected .npz", "none": "input_", "many": "2 files"}.items():
        with pytest.raises(UsageError, match=words):
            judged(conv_bn(), input_data=(tmp_path / name,))


def test_accuracy_of_both_models_is_reported_beside_the_verdict(tmp_path):
    """90 digits: counts as computed here by hand, equal for an honest fold, and no part of the verdict."""
    images, labels = digits(90)
    np.save(tmp_path / "x.npy", images)
    lines = "index,label\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels[:60]))
    (tmp_path / "labels.csv").write_text(lines)
    folded = bnfold.fold(DIGITS, verify=False).model
    run_ = judged(DIGITS, folded, input_data=(tmp_path / "x.npy", tmp_path / "labels.csv"))
    scores = run(DIGITS, {"pixel_values": images})[0]
    right = int((scores.argmax(axis=1)[:60] == labels[:60]).sum())
    assert run_.verdict == "equal"
    found = run_.accuracy
    assert (found.samples, found.before, found.after, found.changed) == (60, right, right, 0)
    assert right > 50
    assert found.output == "logits"


def test_accuracy_shows_what_a_wrong_fold_costs(tmp_path):
    """A last layer that is turned around answers wrongly: the verdict has the difference, the counts the cost."""
    images, labels = digits(64)
    np.save(tmp_path / "x.npy", images)
    (tmp_path / "labels.csv").write_text("".join(f"{label}\n" for label in labels))
    wrong = onnx.load(DIGITS)
    last = next(t for t in wrong.graph.initializer if t.name == wrong.graph.node[-1].input[1])
    last.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(last), last.name))
    run_ = judged(DIGITS, wrong, input_data=(tmp_path / "x.npy", tmp_path / "labels.csv"))
    assert run_.verdict == "different"
    assert run_.accuracy.after < run_.accuracy.before
    assert run_.accuracy.changed > 32


def test_labels_may_name_the_samples_as_files(tmp_path):
    """file,label: the files beside the CSV are the data, in batches; with a fixed batch the last is filled up."""
    images, labels = digits(5)
    for number, image in enumerate(images):
        np.save(tmp_path / f"{number}.npy", image if number % 2 else image[None])
    rows = "file,label\n" + "".join(f"{i}.npy, {label}\n" for i, label in enumerate(labels))
    (tmp_path / "labels.csv").write_text(rows, encoding="utf-8-sig")
    run_ = judged(DIGITS, input_data=(tmp_path / "labels.csv",))
    assert (run_.trials, run_.accuracy.samples) == (1, 5)
    fixed = onnx.load(DIGITS)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    run_ = judged(fixed, input_data=(tmp_path / "labels.csv",))
    assert (run_.trials, run_.accuracy.samples) == (3, 5)


CSV_FAULTS = {
    "text": ("0,cat\n1,dog\n", "'dog' is no class number"),
    "nothing": ("index,label\n", "expected rows"),
    "columns": ("0,1,2\n", "expected rows"),
    "twice": ("0,1\n0,2\n", "'0' is there twice"),
    "beyond": ("0,1\n7,1\n", "sample 7, but there are 2"),
    "no file": ("a.npy,1\n", r"a\.npy.*cannot read it"),
    "image": ("a.png,1\n", "samples are .npy files"),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_labels_that_make_no_sense_are_usage_errors(tmp_path, fault):
    """Each says what is wrong with which row."""
    text, words = CSV_FAULTS[fault]
    images, _ = digits(2)
    np.save(tmp_path / "x.npy", images)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UsageError, match=words):
        judged(DIGITS, input_data=(tmp_path / "x.npy", tmp_path / "labels.csv"))


def test_labels_need_an_output_of_classes(tmp_path):
    """Feature maps are no class scores: said, not guessed."""
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "labels.csv").write_text("0,1\n")
    with pytest.raises(UsageError, match="no output looks like classes"):
        judged(conv_bn(), input_data=(tmp_path / "x.npy", tmp_path / "labels.csv"))


def script(tmp_path: Path, text: str, function: str = "data"):
    """A script file, parsed as the option is."""
    path = tmp_path / "script.py"
    path.write_text(text)
    return parse_script(f"{path}:{function}")


def test_a_script_gives_one_set_or_many(tmp_path, capsys, monkeypatch):
    """A dict, a list, a generator, one that never ends; modules beside it are found; prints do not reach stdout."""
    (tmp_path / "beside_the_script.py").write_text("BATCH = 4\n")
    head = "import numpy as np\nfrom beside_the_script import BATCH\nprint('loaded')\n"
    one = "dict(x=np.ones((BATCH, 3), 'f'), z=np.ones((BATCH, 3), 'f'))"
    for body, count in ((f"return {one}", 1), (f"return [{one}] * 2", 2), (f"for _ in range(3): yield {one}", 3)):
        text = f"{head}def data():\n    print('called')\n    {body}\n"
        run_ = judged(two_inputs(), data_script=script(tmp_path, text))
        assert (run_.verdict, run_.trials, run_.shapes["x"]) == ("equal", count, (4, 3))
        assert run_.inputs[0].name == "script.py:data [0]"
    assert capsys.readouterr().out == ""
    assert str(tmp_path) not in sys.path
    monkeypatch.setattr("bnfold.verification.feeds.script.MOST_SETS", 7)
    endless = f"{head}def data():\n    while True: yield {one}\n"
    assert judged(two_inputs(), data_script=script(tmp_path, endless)).trials == 7


SCRIPT_FAULTS = {
    "syntax": ("def data(:\n", "line 1: SyntaxError"),
    "import": ("\nimport no_such_module\n", "line 2: ModuleNotFoundError"),
    "no function": ("other = 1\n", "no function 'data'"),
    "arguments": ("def data(x):\n    return x\n", "TypeError"),
    "fails": ("def data():\n    a = 1\n    return a / 0\n", "line 3: ZeroDivisionError: division by zero"),
    "fails later": ("def data():\n    yield {}\n    raise KeyError('k')\n", "line 3: KeyError"),
    "exits": ("import sys\ndef data():\n    sys.exit(0)\n", "line 3: SystemExit"),
    "a number": ("def data():\n    return 3\n", "int, not dicts of arrays"),
    "arrays": ("import numpy as np\ndef data():\n    return np.ones((2, 3))\n", "ndarray, not dicts"),
    "nothing": ("def data():\n    return []\n", "gave no inputs"),
    "lists": (
        "def data():\n    return {'x': [1.0], 'z': [1.0]}\n",
        "set 0: input 'x' float32.*numpy array, not list",
    ),
}


@pytest.mark.parametrize("fault", SCRIPT_FAULTS)
def test_what_is_wrong_with_a_script_is_said_with_its_line(tmp_path, fault):
    """A usage error with the script, the line and Python's words; the user's code ends nothing."""
    text, words = SCRIPT_FAULTS[fault]
    with pytest.raises(UsageError, match=words) as caught:
        judged(two_inputs(), data_script=script(tmp_path, text))
    assert "script.py:data" in str(caught.value)


def test_the_option_of_a_script_parses(tmp_path):
    """file.py:function; anything else, or a file that is not there, is a usage error."""
    (tmp_path / "a.py").touch()
    found = parse_script(f"{tmp_path}/a.py:f")
    assert (found.path, found.function) == (tmp_path / "a.py", "f")
    for text in ("a.py", "a.txt:f", f"{tmp_path}/a.py:", f"{tmp_path}/a.py:f()", f"{tmp_path}/b.py:f"):
        with pytest.raises(UsageError, match="--data-script"):
            parse_script(text)


def wrong_model():
    """A fold with one bias off by one."""
    folded = bnfold.fold(conv_bn(), verify=False).model
    held = next(t for t in folded.graph.initializer if t.name == "w_bias")
    held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) + np.float32([0, 1, 0, 0]), "w_bias"))
    return folded


def test_what_differs_is_saved_and_can_be_fed_again(tmp_path):
    """The first failing trial, inputs and both outputs, in one file; fed again it differs again."""
    folder = tmp_path / "failing" / "here"
    run_ = judged(conv_bn(), wrong_model(), save_failing=folder)
    assert run_.verdict == "different"
    assert [path.name for path in folder.iterdir()] == ["failing-cpu-trial0.npz"]
    assert run_.saved == str(folder / "failing-cpu-trial0.npz")
    with np.load(run_.saved) as saved:
        arrays = dict(saved)
    assert sorted(arrays) == ["folded/y", "inputs/x", "original/y"]
    np.testing.assert_array_equal(arrays["original/y"], run(conv_bn(), {"x": arrays["inputs/x"]})[0])
    np.testing.assert_array_equal(arrays["folded/y"], run(wrong_model(), {"x": arrays["inputs/x"]})[0])
    again = judged(conv_bn(), wrong_model(), input_data=(Path(run_.saved),))
    assert (again.verdict, again.trials) == ("different", 1)


def test_only_the_trial_that_differs_is_saved(tmp_path):
    """The third set of a script is the first one beyond 50, where the models part."""
    nodes = [helper.make_node("Clip", ["x", "low", "high"], ["y"])]
    original, folded = (model(nodes, [tensor("low", -1e9), tensor("high", most)], (1, 4)) for most in (50, 60))
    text = "import numpy as np\ndef data():\n    for i in range(4): yield {'x': np.full((1, 4), 30 * i, 'f')}\n"
    run_ = judged(original, folded, data_script=script(tmp_path, text), save_failing=tmp_path / "out")
    assert Path(run_.saved).name == "failing-cpu-trial2.npz"
    assert np.load(run_.saved)["inputs/x"].tolist() == [[60] * 4]


def test_nothing_is_saved_where_nothing_differs(tmp_path):
    """Equal: no file, and no name of one."""
    run_ = judged(conv_bn(), save_failing=tmp_path)
    assert run_.saved == ""
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_known_before_any_work(tmp_path):
    """A file where the folder should be."""
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="--save-failing"):
        judged(conv_bn(), wrong_model(), save_failing=tmp_path / "file")


def test_a_full_disk_leaves_no_half_file(tmp_path):
    """With a limit on the size of files, in a process of its own: an error that says so, and nothing is left."""
    code = """
import resource, signal, sys, onnx
from pathlib import Path
from bnfold.errors import OutputError
from bnfold.verification import VerifyOptions
from bnfold.verification.judge import verify_pair
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
try:
    verify_pair(Path(sys.argv[1]), Path(sys.argv[2]), VerifyOptions(save_failing=Path(sys.argv[3])))
except OutputError as error:
    print(error)
"""
    onnx.save(conv_bn(), tmp_path / "a.onnx")
    onnx.save(wrong_model(), tmp_path / "b.onnx")
    arguments = [tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False,
                          env=environment)  # fmt: skip
    assert "cannot write" in done.stdout, done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_folding_takes_the_options_too(tmp_path, cli, save):
    """Verification of a fold is the same code: its JSON report still is one, on made-up inputs."""
    path = save(conv_bn())
    code, out, _ = cli("fold", path, "-o", tmp_path / "o.onnx", "--format", "json")
    assert code == 0
    assert json.loads(out)["verification"]["verdict"] == "equal"
