"""Writing: where to, never over anything unasked, all or nothing, and the same bytes each time."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

import bnfold
from bnfold.document import Document
from bnfold.errors import OutputError
from bnfold.options import FoldOptions
from bnfold.output import staged
from bnfold.rewrite import rewrite
from bnfold.verification import Verification
from tests.conftest import MODELS, Cli, batchnorm_parameters, conv_bn, model, ops, random_feeds, run

posix = pytest.mark.skipif(os.name == "nt", reason="modes, symbolic links and signals as POSIX has them")


def unfoldable() -> ModelProto:
    """x -> Relu -> BatchNormalization -> y."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("BatchNormalization", ["r", "gamma", "beta", "mean", "var"], ["y"], name="bn"),
    ]
    return model(nodes, batchnorm_parameters(3))


def put(proto: ModelProto, path: Path, *, external: bool = False) -> Path:
    """Write a model, with all its tensors in weights.bin beside it if `external`."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    options: dict[str, Any] = {"location": "weights.bin", "size_threshold": 0} if external else {}
    onnx.save(copy, path, save_as_external_data=external, **options)
    return path


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder by relative name: the bytes of files, None for the rest."""
    return {
        str(entry.relative_to(folder)): entry.read_bytes() if entry.is_file() else None
        for entry in sorted(folder.rglob("*"))
    }


def assert_folded(original: ModelProto, path: Path) -> None:
    """The file has no BatchNormalization and gives what the original gives."""
    assert "BatchNormalization" not in ops(onnx.load(path))
    feeds = random_feeds(original)
    for first, second in zip(run(original, feeds), run(path, feeds), strict=True):
        assert np.abs(first - second).max() <= 2e-6 * np.abs(first).max()


# Where to


@pytest.mark.parametrize(
    ("name", "output"),
    [("net.onnx", "net.folded.onnx"), ("net.v2.onnx", "net.v2.folded.onnx"), ("net", "net.folded.onnx")],
)
def test_the_output_is_named_after_the_model(name: str, output: str, tmp_path: Path, cli: Cli) -> None:
    """Without -o: <name>.folded.onnx beside the model, whatever the current folder is."""
    source = put(conv_bn(), tmp_path / name)
    before = source.read_bytes()
    code, out, err = cli("fold", source)
    assert (code, err) == (0, "")
    assert output in out
    assert sorted(listing(tmp_path)) == sorted([name, output])
    assert source.read_bytes() == before
    assert_folded(conv_bn(), tmp_path / output)


def test_o_names_the_output(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """-o takes a path, relative to the current folder, in another folder too, with any ending."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    for target in ("plain.onnx", "../up.onnx", str(tmp_path / "absolute.bin")):
        assert cli("fold", source, "-o", target, "-q") == (0, "", "")
        assert_folded(conv_bn(), Path(target))
    assert sorted(listing(tmp_path)) == ["absolute.bin", "net.onnx", "sub", "sub/plain.onnx", "up.onnx"]


@pytest.mark.parametrize("length", [200, 240, 255])
def test_an_output_may_have_any_name_that_the_file_system_takes(length: int, tmp_path: Path, cli: Cli) -> None:
    """The temporary file's longer name is no reason to refuse a target that would fit."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    target = tmp_path / f"{'n' * (length - 5)}.onnx"
    assert cli("fold", source, "-o", target, "-q") == (0, "", "")
    assert_folded(conv_bn(), target)


def test_an_output_name_that_is_too_long_is_a_usage_error(tmp_path: Path, cli: Cli) -> None:
    """300 characters: exit 2 and one line, not a bug of bnfold."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    code, _, err = cli("fold", source, "-o", tmp_path / ("n" * 300))
    assert code == 2
    assert "too long" in err
    assert err.count("\n") == 1
    assert list(listing(tmp_path)) == ["net.onnx"]


@pytest.mark.parametrize("proto", [pytest.param(conv_bn(), id="folds"), pytest.param(unfoldable(), id="unchanged")])
def test_an_existing_output_needs_force(proto: ModelProto, tmp_path: Path, cli: Cli) -> None:
    """Without --force: exit 2, untouched, and the message names --force and the file. With it: replaced."""
    source = put(proto, tmp_path / "net.onnx")
    target = tmp_path / "net.folded.onnx"
    target.write_bytes(b"mine")
    time_stamp = target.stat().st_mtime_ns
    code, out, err = cli("fold", source)
    assert (code, out) == (2, "")
    assert "--force" in err
    assert target.name in err
    assert (target.read_bytes(), target.stat().st_mtime_ns) == (b"mine", time_stamp)
    with pytest.raises(OutputError, match="exists"):
        bnfold.fold(source, target)
    assert cli("fold", source, "--force")[0] == 0
    assert len(run(target, random_feeds(proto))) == 1


@posix
@pytest.mark.parametrize("proto", [pytest.param(conv_bn(), id="folds"), pytest.param(unfoldable(), id="unchanged")])
def test_a_replaced_output_keeps_its_mode(proto: ModelProto, tmp_path: Path, cli: Cli) -> None:
    """--force over a private file leaves it private."""
    source = put(proto, tmp_path / "net.onnx")
    target = tmp_path / "out.onnx"
    target.write_bytes(b"mine")
    target.chmod(0o600)
    assert cli("fold", source, "-o", target, "--force")[0] == 0
    assert target.stat().st_mode & 0o777 == 0o600


@posix
@pytest.mark.parametrize("proto", [pytest.param(conv_bn(), id="folds"), pytest.param(unfoldable(), id="unchanged")])
def test_a_new_output_has_the_mode_of_any_new_file(proto: ModelProto, tmp_path: Path, cli: Cli) -> None:
    """The umask decides, not the temporary file's own caution."""
    source = put(proto, tmp_path / "net.onnx")
    source.chmod(0o600)
    old = os.umask(0o027)
    try:
        assert cli("fold", source)[0] == 0
    finally:
        os.umask(old)
    assert (tmp_path / "net.folded.onnx").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_o_over_the_input_needs_in_place(force: list[str], tmp_path: Path, cli: Cli) -> None:
    """-o that is the input itself, by any spelling: exit 2, untouched, --force or not; the message says how."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    (tmp_path / "sub").mkdir()
    before = listing(tmp_path)
    for target in (source, tmp_path / "sub" / ".." / "net.onnx"):
        code, _, err = cli("fold", source, "-o", target, *force)
        assert code == 2
        assert "--in-place" in err
        assert listing(tmp_path) == before


@posix
def test_o_over_a_hard_link_or_a_link_to_the_input_is_refused(tmp_path: Path, cli: Cli) -> None:
    """Other names of the input's file are the input."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    os.link(source, tmp_path / "hard.onnx")
    (tmp_path / "soft.onnx").symlink_to(source)
    before = listing(tmp_path)
    for name in ("hard.onnx", "soft.onnx"):
        assert cli("fold", source, "-o", tmp_path / name, "--force")[0] == 2
        assert listing(tmp_path) == before


@posix
def test_in_place_replaces_the_model_and_keeps_its_mode(tmp_path: Path, cli: Cli) -> None:
    """--in-place: the model itself is the folded one, no other file appears, the mode bits stay."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    source.chmod(0o640)
    code, out, err = cli("fold", source, "--in-place")
    assert (code, err) == (0, "")
    assert "written" in out
    assert source.stat().st_mode & 0o777 == 0o640
    assert list(listing(tmp_path)) == ["net.onnx"]
    assert_folded(conv_bn(), source)


@posix
def test_in_place_on_a_symbolic_link_is_refused(tmp_path: Path, cli: Cli) -> None:
    """A rename would replace the link and leave the file behind it: refused, nothing changed."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    link = tmp_path / "link.onnx"
    link.symlink_to(source)
    before = listing(tmp_path)
    code, _, err = cli("fold", link, "--in-place")
    assert code == 2
    assert "symbolic link" in err
    assert link.is_symlink()
    assert listing(tmp_path) == before


@posix
def test_a_model_behind_a_symbolic_link_folds_elsewhere(tmp_path: Path, cli: Cli) -> None:
    """Reading through a link is fine; the default output lies beside the link."""
    (tmp_path / "store").mkdir()
    source = put(conv_bn(), tmp_path / "store" / "blob")
    (tmp_path / "net.onnx").symlink_to(source)
    assert cli("fold", tmp_path / "net.onnx")[0] == 0
    assert_folded(conv_bn(), tmp_path / "net.folded.onnx")


def test_in_place_and_an_output_contradict(tmp_path: Path, cli: Cli) -> None:
    """--in-place with -o, or of a model in memory: refused."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    assert cli("fold", source, "--in-place", "-o", tmp_path / "out.onnx")[0] == 2
    with pytest.raises(OutputError):
        bnfold.fold(conv_bn(), in_place=True)
    assert list(listing(tmp_path)) == ["net.onnx"]


def _folder(path: Path) -> None:
    path.mkdir()


def _full_folder(path: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"")


def _dangling(path: Path) -> None:
    path.symlink_to("absent")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


TARGETS: dict[str, tuple[str, Callable[[Path], object] | None, str]] = {
    "no-folder": ("absent/out.onnx", None, "absent does not exist"),
    "file-as-folder": ("net.onnx/out.onnx", None, "net.onnx"),
    "folder": ("out", _folder, "is a folder"),
    "full-folder": ("out", _full_folder, "is a folder"),
    "dangling-link": ("out.onnx", _dangling, "symbolic link"),
    "pipe": ("out.onnx", _pipe, "not a plain file"),
}


@posix
@pytest.mark.parametrize("case", TARGETS)
@pytest.mark.parametrize("proto", [pytest.param(conv_bn(), id="folds"), pytest.param(unfoldable(), id="unchanged")])
def test_targets_that_cannot_be_are_refused(case: str, proto: ModelProto, tmp_path: Path, cli: Cli) -> None:
    """No folder, a folder, a link, a pipe: exit 2 and one line, with --force too; `save` says the same."""
    name, prepare, word = TARGETS[case]
    source = put(proto, tmp_path / "net.onnx")
    if prepare:
        prepare(tmp_path / name)
    before = listing(tmp_path)
    code, out, err = cli("fold", source, "-o", tmp_path / name, "--force")
    assert (code, out) == (2, "")
    assert word in err
    assert err.count("\n") == 1
    assert listing(tmp_path) == before
    with pytest.raises(OutputError, match=word):
        bnfold.fold(source).save(tmp_path / name, force=True)
    assert listing(tmp_path) == before


# What is written


def test_nothing_to_fold_is_a_byte_copy(tmp_path: Path, cli: Cli) -> None:
    """Exit 0 and the very bytes, even those that no serialiser would write again."""
    data = unfoldable().SerializeToString() + b"\xfa\x3e\x04more"  # an unknown field at the end
    (tmp_path / "net.onnx").write_bytes(data)
    code, out, _ = cli("fold", tmp_path / "net.onnx")
    assert code == 0
    assert "nothing to fold" in out
    assert listing(tmp_path) == {"net.onnx": data, "net.folded.onnx": data}


def test_nothing_to_fold_in_place_touches_nothing(tmp_path: Path, cli: Cli) -> None:
    """In place: neither bytes nor time stamp nor the file itself change."""
    source = put(unfoldable(), tmp_path / "net.onnx")
    before, data = source.stat(), source.read_bytes()
    time.sleep(0.01)
    code, out, _ = cli("fold", source, "--in-place")
    assert code == 0
    assert "untouched" in out
    after = source.stat()
    assert (after.st_mtime_ns, after.st_ino, after.st_size) == (before.st_mtime_ns, before.st_ino, before.st_size)
    assert listing(tmp_path) == {"net.onnx": data}


@pytest.mark.parametrize("name", ["digits_resnet.onnx", "resnet_opset7_ir3.onnx", "densenet.onnx", "repvgg.onnx"])
def test_folding_twice_is_folding_once(name: str, tmp_path: Path) -> None:
    """The folded model, folded again, comes out byte for byte as it went in."""
    bnfold.fold(MODELS / name, tmp_path / "once.onnx", verify=False)
    result = bnfold.fold(tmp_path / "once.onnx", tmp_path / "twice.onnx", verify=False)
    assert not result.folded
    assert (tmp_path / "once.onnx").read_bytes() == (tmp_path / "twice.onnx").read_bytes()
    assert (tmp_path / "once.onnx").read_bytes() != (MODELS / name).read_bytes()


@pytest.mark.parametrize("external", [False, True])
def test_the_same_input_gives_the_same_bytes(external: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter
    """To two places, by the API from a path, and by `save`: the same bytes, data file included."""
    source = put(conv_bn(bias=True), tmp_path / "net.onnx", external=external)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    bnfold.fold(source, tmp_path / "a" / "out.onnx")
    bnfold.fold(source, tmp_path / "b" / "out.onnx", verify=False)
    bnfold.fold(source).save(tmp_path / "c" / "out.onnx")
    assert len(listing(tmp_path / "a")) == 1 + external
    assert listing(tmp_path / "a") == listing(tmp_path / "b") == listing(tmp_path / "c")


def test_hash_seeds_do_not_show_in_the_bytes(tmp_path: Path) -> None:
    """Two processes with different string hashes write the same file."""
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "bnfold", "fold", MODELS / "densenet.onnx", "-o", tmp_path / f"{seed}.onnx"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
        )
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


# Nothing is written on failure


@pytest.mark.usefixtures("wrong_fold")
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("args", [[], ["--in-place"], ["-o", "taken.onnx", "--force"]])
def test_outputs_that_differ_write_nothing(
    external: bool, args: list[str], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch  # noqa: FBT001
) -> None:  # fmt: skip
    """A fold that is wrong is caught: exit 1, the report on stdout, one line on stderr, every file as it was."""
    monkeypatch.chdir(tmp_path)
    source = put(conv_bn(), tmp_path / "net.onnx", external=external)
    (tmp_path / "taken.onnx").write_bytes(b"mine")
    before = listing(tmp_path)
    code, out, err = cli("fold", source, *args)
    assert code == 1
    assert "DIFFERENT" in out
    assert "differ" in err
    assert "'y'" in err
    assert err.count("\n") == 1
    assert listing(tmp_path) == before


@pytest.mark.usefixtures("wrong_fold")
def test_allow_unverified_does_not_excuse_a_difference(tmp_path: Path, cli: Cli) -> None:
    """--allow-unverified is for what cannot be compared; what differs is still not written."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    assert cli("fold", source, "--allow-unverified")[0] == 1
    assert list(listing(tmp_path)) == ["net.onnx"]


@pytest.mark.usefixtures("wrong_fold")
def test_no_verify_writes_what_it_did_not_check(tmp_path: Path, cli: Cli) -> None:
    """The same wrong fold is written with --no-verify: so it was the verification that caught it."""
    source = put(conv_bn(), tmp_path / "net.onnx")
    assert cli("fold", source, "--no-verify")[0] == 0
    assert sorted(listing(tmp_path)) == ["net.folded.onnx", "net.onnx"]


@pytest.mark.parametrize(("verdict", "code"), [("different", 1), ("not verified", 3)])
def test_the_verdict_decides(
    verdict: Any, code: int, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the verification says but `equal`, nothing is written."""
    answer = Verification(verdict, "because", ())
    monkeypatch.setattr("bnfold.verification.whole.verify_pair", lambda *_: answer)
    source = put(conv_bn(), tmp_path / "net.onnx")
    found, _, err = cli("fold", source)
    assert found == code
    assert "because" in err
    assert list(listing(tmp_path)) == ["net.onnx"]


def test_an_error_in_the_verification_leaves_nothing(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash after the temporary file was written takes that file back."""

    def crash(*_: Any) -> None:
        raise RuntimeError("crash")

    monkeypatch.delenv("BNFOLD_DEBUG", raising=False)
    monkeypatch.setattr("bnfold.verification.whole.verify_pair", crash)
    source = put(conv_bn(), tmp_path / "net.onnx", external=True)
    before = listing(tmp_path)
    assert cli("fold", source)[0] == 70
    assert listing(tmp_path) == before


# Every system call that can fail, or that Ctrl-C can hit


CALLS = (
    (os, "open"), (os, "write"), (os, "fsync"), (os, "fchmod"), (os, "link"), (os, "replace"), (os, "rename"),
    (os, "unlink"), (shutil, "copyfile"),
)  # fmt: skip


class _Faults:
    """Lets the n-th of the watched calls raise `error`, `before` it is carried out or after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = str(folder)
        self.at = -1
        self.error: BaseException | None = None
        self.before = True
        self.names: list[str] = []
        for module, name in CALLS:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, self._wrap(name, getattr(module, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if not isinstance(args[0], int) and not os.fspath(args[0]).startswith(self.folder):
                return real(*args, **options)
            self.names.append(name)
            hit = len(self.names) - 1 == self.at and self.error is not None
            if hit and self.before:
                raise self.error  # type: ignore[misc]  # it is not None
            result = real(*args, **options)
            if hit:
                if name == "open":
                    os.close(result)
                raise self.error  # type: ignore[misc]  # it is not None
            return result

        return call

    def arm(self, at: int, error: BaseException, *, before: bool) -> None:
        self.at, self.error, self.before, self.names = at, error, before, []

    def disarm(self) -> list[str]:
        self.error = None
        return self.names


SCENES = {
    "inline": (conv_bn(bias=True), False, "out.onnx"),
    "external": (conv_bn(bias=True), True, "out.onnx"),
    "external-in-place": (conv_bn(bias=True), True, ""),
    "external-over-another": (conv_bn(bias=True), True, "taken.onnx"),
    "copy": (unfoldable(), False, "out.onnx"),
    "external-copy": (unfoldable(), True, "sub/out.onnx"),
}


def _scene(scene: str, folder: Path) -> tuple[ModelProto, Path, dict[str, Any]]:
    proto, external, output = SCENES[scene]
    (folder / "sub").mkdir(parents=True)
    source = put(proto, folder / "net.onnx", external=external)
    if output == "taken.onnx":
        put(conv_bn(seed=5), folder / output)
    return proto, source, {"output": folder / output, "force": True} if output else {"in_place": True}


def _assert_all_or_nothing(
    proto: ModelProto, options: dict[str, Any], source: Path, before: dict[str, Any], *, committed: bool
) -> None:
    folder = source.parent
    after = listing(folder)
    if not committed and after == before:
        return
    target = options.get("output", source)
    assert [name for name in after if "tmp" in name] == []
    replaced = {target.name, "weights.bin"} if target == source else {target.name}
    assert {k: v for k, v in before.items() if k not in replaced}.items() <= after.items()
    assert target.read_bytes() != before.get(target.name), "the target is as before, but something was left behind"
    feeds = random_feeds(proto)
    assert np.allclose(run(target, feeds)[0], run(proto, feeds)[0], rtol=1e-5, atol=1e-5)


@posix
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("fault", ["ctrl-c-before", "ctrl-c-after", "disk-full", "input-output-error"])
def test_all_or_nothing_at_every_system_call(
    scene: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C just before or after, or an error of, any one call: all is as it was, or the whole model is in place."""
    faults = _Faults(monkeypatch, tmp_path)
    failures: dict[str, str] = {}
    count = hits = 0
    while True:
        proto, source, options = _scene(scene, tmp_path / str(count))
        before = listing(source.parent)
        error: BaseException = KeyboardInterrupt()
        if not fault.startswith("ctrl-c"):
            code = errno.ENOSPC if fault == "disk-full" else errno.EIO
            error = OSError(code, os.strerror(code))
        faults.arm(count, error, before=fault != "ctrl-c-after")
        committed = False
        try:
            bnfold.fold(source, verify=False, **options)
            committed = True
        except (KeyboardInterrupt, OutputError):
            hits += 1
        except Exception as other:  # noqa: BLE001 - collected, so that a failure shows all of them
            failures[f"{count} {faults.names[-1]}"] = f"raises {type(other).__name__}: {other}"
        names = faults.disarm()
        try:
            _assert_all_or_nothing(proto, options, source, before, committed=committed)
        except Exception as wrong:  # noqa: BLE001 - the same
            failures[f"{count} {names[min(count, len(names) - 1)]}"] = str(wrong)[:300]
        except AssertionError as wrong:
            failures[f"{count} {names[min(count, len(names) - 1)]}"] = str(wrong)[:300]
        if len(names) <= count:
            break
        count += 1
    assert failures == {}
    assert hits >= 2


# A real full disk, real signals: in processes of their own


LIMITED = (
    "import resource, sys; limit = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); "
    "from bnfold.cli import main; main(sys.argv[2:])"
)


def _padded(proto: ModelProto, size: int) -> ModelProto:
    """The model with a doc string of `size` characters, which stays in the .onnx whatever is external."""
    proto.doc_string = "d" * size
    return proto


@pytest.mark.skipif(os.name == "nt", reason="the resource module (RLIMIT_FSIZE) is POSIX only")
@pytest.mark.parametrize(
    ("proto", "external", "limit"),
    [
        pytest.param(_padded(conv_bn(), 50_000), False, 20_000, id="inline"),
        pytest.param(conv_bn((64, 32, 3, 3)), True, 20_000, id="data-does-not-fit"),
        pytest.param(_padded(conv_bn(), 50_000), True, 20_000, id="data-fits-but-the-model-does-not"),
        pytest.param(_padded(unfoldable(), 50_000), False, 20_000, id="copy"),
    ],
)
def test_a_full_disk_leaves_nothing(proto: ModelProto, external: bool, limit: int, tmp_path: Path) -> None:  # noqa: FBT001
    """The system refuses to write on: exit 2, one line that says why, and every file as it was."""
    source = put(proto, tmp_path / "net.onnx", external=external)
    (tmp_path / "taken.onnx").write_bytes(b"mine")
    before = listing(tmp_path)
    output = ["--force", "-o", tmp_path / "taken.onnx"]
    done = subprocess.run(
        [sys.executable, "-B", "-c", LIMITED, str(limit), "fold", source, "--no-verify", *output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bnfold: error: cannot write")
    assert "too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert listing(tmp_path) == before


# A background job of a shell starts with SIGINT ignored, and Python leaves it so: give the child the usual handler.
INTERRUPTIBLE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from bnfold.cli import main; main(sys.argv[1:])"
)


@contextlib.contextmanager
def _busy(source: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A bnfold that has written its temporary file and verifies it for minutes to come."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "fold", str(source), "--trials", "1000000", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 30
        while not list(source.parent.glob(f".{source.name if args else 'net.folded.onnx'}.*.bnfold-tmp")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.communicate()


@posix
@pytest.mark.parametrize(
    ("number", "external", "args"),
    [
        pytest.param(signal.SIGINT, True, [], id="ctrl-c"),
        pytest.param(signal.SIGINT, False, ["--in-place"], id="ctrl-c-in-place"),
        pytest.param(signal.SIGTERM, True, ["--in-place"], id="terminated-in-place"),
        pytest.param(signal.SIGTERM, False, [], id="terminated"),
    ],
)
def test_signals_take_everything_back(
    number: signal.Signals, external: bool, args: list[str], tmp_path: Path  # noqa: FBT001
) -> None:  # fmt: skip
    """SIGINT and SIGTERM while it verifies: exit 130, a line without traceback, and the folder as it was."""
    source = put(conv_bn(), tmp_path / "net.onnx", external=external)
    before = listing(tmp_path)
    with _busy(source, *args) as process:
        assert listing(tmp_path) != before
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "bnfold: error: interrupted; nothing was written"
    assert listing(tmp_path) == before


@posix
def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    """SIGKILL cannot be answered: a temporary file may stay, the model does not change, and a new run works."""
    source = put(conv_bn(), tmp_path / "net.onnx", external=True)
    before = listing(tmp_path)
    with _busy(source, "--in-place") as process:
        process.kill()
        process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert before.items() <= listing(tmp_path).items()
    bnfold.fold(source, in_place=True)
    assert_folded(conv_bn(), source)


def externalised(folder: Path) -> Path:
    """A model whose weight lies in m.data, with a fold to make."""
    proto = conv_bn((32, 3, 3, 3))
    path = folder / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=0)
    return path


def test_data_that_another_run_committed_is_not_taken_back(tmp_path: Path) -> None:
    """Two runs write the same data; the one that gives up leaves the data of the one that finished."""
    source, target = externalised(tmp_path), tmp_path / "out.onnx"
    document = Document.open(source)
    rewrite(document, FoldOptions(), command="fold")
    with staged(document, target, unchanged=False):
        assert len(list(tmp_path.glob(".out.onnx.*.bnfold-tmp.data"))) == 1
        bnfold.fold(source, target, verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.data", "m.onnx", "out.onnx", "out.onnx.data"]
    onnx.load(target)


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --force nothing is replaced, not even what was not there when the work began."""
    source, target = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(conv_bn(), source)
    monkeypatch.setattr("bnfold.api.Finish._verify", lambda *_: target.write_bytes(b"somebody else's"))
    with pytest.raises(bnfold.BnfoldError, match="meanwhile"):
        bnfold.fold(source, target)
    assert target.read_bytes() == b"somebody else's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "out.onnx"]


def test_an_input_that_changes_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, the file that is replaced must be the one that was read."""
    source = tmp_path / "m.onnx"
    onnx.save(conv_bn(), source)
    newer = conv_bn(seed=9).SerializeToString()
    monkeypatch.setattr("bnfold.api.Finish._verify", lambda *_: source.write_bytes(newer))
    with pytest.raises(bnfold.BnfoldError, match="meanwhile"):
        bnfold.fold(source, in_place=True)
    assert source.read_bytes() == newer
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_an_interrupt_between_the_two_names_keeps_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --force the target is linked, then the temporary name goes; Ctrl-C in between is after the commit."""
    source, target = externalised(tmp_path), tmp_path / "out.onnx"
    unlink = Path.unlink

    def interrupted(self: Path, *args: Any, **kwargs: Any) -> None:
        if target.exists():
            monkeypatch.setattr(Path, "unlink", unlink)
            raise KeyboardInterrupt
        unlink(self, *args, **kwargs)

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bnfold.fold(source, target, verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.data", "m.onnx", "out.onnx", "out.onnx.data"]
    assert ops(onnx.load(target)) == ["Conv"]
