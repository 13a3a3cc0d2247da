"""The command line: what goes where, exit codes, options, colours, and what it does without onnxruntime."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import ModelProto, helper

import bnfold
from bnfold.cli import _run
from tests.conftest import Cli, batchnorm_parameters, conv_bn, model, ops

HEAVY = ("numpy", "onnx", "onnxruntime", "rich", "google.protobuf", "ml_dtypes")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A file net.onnx with one Conv -> BatchNormalization."""
    return put(conv_bn(), tmp_path / "net.onnx")


def put(proto: ModelProto, path: Path) -> Path:
    """Write a model as it is."""
    path.write_bytes(proto.SerializeToString())
    return path


def child(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python ARGS` in a process of its own."""
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def mixed() -> ModelProto:
    """x -> Conv -> BatchNormalization 'bn' -> Relu -> BatchNormalization 'late' -> y: one folds, one is left."""
    proto = conv_bn()
    proto.graph.node[1].output[0] = "z"
    names = [f"late_{name}" for name in ("gamma", "beta", "mean", "var")]
    proto.graph.node.append(helper.make_node("Relu", ["z"], ["r"], name="relu"))
    proto.graph.node.append(helper.make_node("BatchNormalization", ["r", *names], ["y"], name="late"))
    proto.graph.initializer.extend(batchnorm_parameters(4, 1, prefix="late_"))
    return proto


def custom() -> ModelProto:
    """Conv -> BatchNormalization -> an operator that nobody has."""
    proto = conv_bn()
    proto.graph.node[1].output[0] = "z"
    proto.graph.node.append(helper.make_node("Mystery", ["z"], ["y"], name="mystery", domain="my.domain"))
    proto.opset_import.append(helper.make_opsetid("my.domain", 1))
    return proto


# Light


@pytest.mark.parametrize(
    "code",
    [
        "import bnfold",
        "import bnfold.cli",
        "from bnfold.cli import _run; _run(['--help'])",
        "from bnfold.cli import _run; _run(['--version'])",
        "from bnfold.cli import _run; _run(['fold', '--help']); _run(['inspect', '--help'])",
        "from bnfold.cli import _run; _run(['verify', '--help']); _run(['check', '--help'])",
    ],
)
def test_help_and_import_load_nothing_heavy(code: str) -> None:
    """Neither onnx, onnxruntime, numpy nor rich is imported for help, the version or `import bnfold`."""
    done = child("-c", f"{code}\nimport sys\nprint('modules', *sys.modules)")
    assert (done.returncode, done.stderr) == (0, "")
    loaded = set(done.stdout.split("modules ")[1].split())
    assert "bnfold" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_python_m_bnfold(net: Path) -> None:
    """`python -m bnfold` is the same program, called bnfold in its help; it folds and verifies."""
    assert child("-m", "bnfold", "--version").stdout == f"bnfold, version {bnfold.__version__}\n"
    done = child("-m", "bnfold", "fold", net)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verified equal" in done.stdout
    assert "\x1b" not in done.stdout
    assert net.with_name("net.folded.onnx").exists()


# Help and exit codes


def test_help_lists_commands_and_exit_codes(cli: Cli) -> None:
    """--help and -h name every command and every exit code."""
    code, out, err = cli("--help")
    assert (code, err) == (0, "")
    assert cli("-h") == (0, out, "")
    assert {"fold", "inspect", "verify", "check"} <= set(out.split())
    assert re.findall(r"(?m)^ +(\d+) ", out) == ["0", "1", "2", "3", "70", "130"]


def test_help_of_fold_lists_every_option(cli: Cli) -> None:
    """The option names are those of DESIGN.md; each has a description."""
    code, out, _ = cli("fold", "--help")
    assert code == 0
    options = ["--output", "--in-place", "--force", "--freeze-inputs", "--no-verify", "--allow-unverified"]
    options += ["--provider", "--shape", "--dim", "--seed", "--trials", "--threads"]
    options += ["--report", "--format", "--verbose", "--quiet"]
    for option in options:
        assert re.search(rf"{option}\b", out), option
    assert "Usage: bnfold fold [OPTIONS] MODEL" in out


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["fold"],
        ["unfold", "net.onnx"],
        ["fold", "net.onnx", "extra.onnx"],
        ["fold", "net.onnx", "--no-such-option"],
        ["fold", "net.onnx", "--format", "xml"],
        ["fold", "net.onnx", "--trials", "0"],
        ["fold", "net.onnx", "--trials", "many"],
        ["fold", "net.onnx", "--seed", "-1"],
        ["fold", "net.onnx", "--threads", "0"],
        ["fold", "net.onnx", "-o"],
        ["inspect", "net.onnx", "-o", "out.onnx"],
        ["fold", "net.onnx", "--provider", "abacus"],
        ["fold", "net.onnx", "--provider", "cpu", "--provider", "TPUExecutionProvider"],
        ["fold", "absent.onnx"],
        ["inspect", "absent.onnx"],
    ],
)
def test_usage_errors_exit_2(args: list[str], net: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be meant: exit 2, the reason on stderr, nothing on stdout, nothing written."""
    monkeypatch.chdir(net.parent)
    code, out, err = cli(*args)
    assert (code, out) == (2, "")
    assert err.strip()
    assert "Traceback" not in err
    assert list(net.parent.iterdir()) == [net]


@pytest.mark.parametrize("provider", ["abacus", "cpu\x1b[31m", ""])
def test_an_unknown_provider_is_an_error_even_where_nothing_would_run(
    provider: str, tmp_path: Path, cli: Cli
) -> None:
    """A typing error in --provider shows at once: also with --no-verify, and where nothing folds."""
    net = put(mixed(), tmp_path / "net.onnx")
    code, _, err = cli("fold", net, "--provider", provider, "--no-verify")
    assert code == 2
    assert "provider" in err
    assert "\x1b" not in err
    plain = put(model([helper.make_node("Relu", ["x"], ["y"])], []), tmp_path / "plain.onnx")
    assert cli("fold", plain, "--provider", provider)[0] == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_outcomes_exit_0(tmp_path: Path, cli: Cli) -> None:
    """Folded, partly left, nothing to fold, inspected: all 0, the report on stdout, stderr empty."""
    plain = model([helper.make_node("Relu", ["x"], ["y"], name="relu")], [])
    for name, proto, word in (
        ("folds", conv_bn(), "1 of 1 BatchNormalization folded"),
        ("mixed", mixed(), "1 of 2 BatchNormalizations folded, 1 left (1 activation-between)"),
        ("plain", plain, "no BatchNormalization in this model"),
    ):
        path = put(proto, tmp_path / f"{name}.onnx")
        code, out, err = cli("fold", path)
        assert (code, err) == (0, "")
        assert word in out
        assert cli("inspect", path)[0] == 0


def test_inspect_says_one_line_each(tmp_path: Path, cli: Cli) -> None:
    """For each BatchNormalization: its name, its producer, whether it would fold, and else code and sentence."""
    net = put(mixed(), tmp_path / "net.onnx")
    code, out, err = cli("inspect", net)
    assert (code, err) == (0, "")
    fold, left = (line for line in out.splitlines() if line.startswith("  "))
    assert all(word in fold for word in ("fold", "'bn'", "Conv 'conv'"))
    assert all(
        word in left for word in ("left", "'late'", "Relu 'relu'", "activation-between", "bends", "; downstream: ")
    )
    assert list(tmp_path.iterdir()) == [net]


@pytest.mark.usefixtures("wrong_fold")
def test_a_difference_shows_the_report_and_the_error(net: Path, cli: Cli) -> None:
    """Exit 1: the report, as JSON too, stays on stdout; the error is one line on stderr."""
    code, out, err = cli("fold", net, "--format", "json", "--report", net.with_suffix(".txt"))
    assert code == 1
    tree = json.loads(out)
    assert tree["verification"]["verdict"] == "different"
    assert tree["output"] is None
    assert re.fullmatch(r"bnfold: error: the outputs differ: .*\n", err)
    assert "DIFFERENT" in net.with_suffix(".txt").read_text(encoding="utf-8")


# The report


def test_json_is_the_whole_report(tmp_path: Path, cli: Cli) -> None:
    """--format json: one document, with a schema, each site with its code, both models in numbers, the verdict."""
    net = put(mixed(), tmp_path / "net.onnx")
    code, out, err = cli("fold", net, "--format", "json")
    assert (code, err) == (0, "")
    tree = json.loads(out)
    assert next(iter(tree)) == "schema"
    assert tree["schema"] == "bnfold.report/1"
    assert (tree["command"], tree["version"]) == ("fold", bnfold.__version__)
    assert [(site["outcome"], site["code"]) for site in tree["sites"]] == [
        ("folded", None),
        ("left", "activation-between"),
    ]
    assert tree["before"]["operators"] == {"Conv": 1, "BatchNormalization": 2, "Relu": 1}
    assert tree["after"]["operators"] == {"Conv": 1, "BatchNormalization": 1, "Relu": 1}
    assert tree["before"]["bytes"] == net.stat().st_size
    assert tree["after"]["bytes"] == (tmp_path / "net.folded.onnx").stat().st_size
    run = tree["verification"]["runs"][0]
    assert tree["verification"]["verdict"] == run["verdict"] == "equal"
    assert run["provider"] == "CPUExecutionProvider"
    assert run["outputs"][0]["name"] == "y"
    assert 0 <= run["outputs"][0]["relative"] <= run["outputs"][0]["limit"]
    assert tree["output"] == str(tmp_path / "net.folded.onnx")
    assert (tree["opset"], tree["ir_version"]) == (17, 8)


def test_json_of_inspect(tmp_path: Path, cli: Cli) -> None:
    """inspect --format json: the same tree without an outcome of its own; nothing verified, nothing written."""
    net = put(mixed(), tmp_path / "net.onnx")
    tree = json.loads(cli("inspect", net, "--format", "json")[1])
    assert (tree["command"], tree["after"], tree["output"], tree["verification"]) == ("inspect", None, None, None)
    assert [site["code"] for site in tree["sites"]] == [None, "activation-between"]


def test_report_files(tmp_path: Path, cli: Cli) -> None:
    """--report, repeated: .json holds what --format json prints, .txt the text with every site and no colours."""
    net = put(mixed(), tmp_path / "net.onnx")
    reports = [tmp_path / "r.json", tmp_path / "r.txt"]
    for command in ("inspect", "fold"):
        args = [arg for path in reports for arg in ("--report", path)]
        code, out, _ = cli(command, net, *args, "--format", "json")
        assert code == 0
        assert reports[0].read_text(encoding="utf-8") == out
        text = reports[1].read_text(encoding="utf-8")
        assert "'bn'" in text
        assert "'late'" in text
        assert "\x1b" not in text


@pytest.mark.parametrize("name", ["r.xml", "r", "r.json.gz", "absent/r.json", "folder.json"])
def test_reports_that_cannot_be_are_refused_before_any_work(name: str, net: Path, cli: Cli) -> None:
    """Another ending, a folder that is not there, a folder: exit 2 and no model written."""
    net.with_name("folder.json").mkdir()
    before = sorted(net.parent.rglob("*"))
    code, out, err = cli("fold", net, "--report", net.parent / name)
    assert (code, out) == (2, "")
    assert name.partition("/")[0] in err
    assert sorted(net.parent.rglob("*")) == before


def test_a_report_never_replaces_the_model(tmp_path: Path, cli: Cli) -> None:
    """A model that is called net.json: --report net.json is refused, and so is a report over the output."""
    net = put(conv_bn(), tmp_path / "net.json")
    before = net.read_bytes()
    assert cli("inspect", net, "--report", net)[0] == 2
    assert cli("fold", net, "--report", net)[0] == 2
    assert cli("fold", net, "-o", tmp_path / "out.json", "--report", tmp_path / "out.json")[0] == 2
    assert net.read_bytes() == before


def test_quiet_prints_nothing(net: Path, cli: Cli) -> None:
    """-q: no report on stdout in either format; errors still go to stderr, and --report is still written."""
    assert cli("fold", net, "-q", "--report", net.with_suffix(".json")) == (0, "", "")
    assert json.loads(net.with_suffix(".json").read_text(encoding="utf-8"))["sites"]
    assert cli("fold", net, "-q", "--force", "--format", "json") == (0, "", "")
    assert cli("inspect", net, "--quiet") == (0, "", "")
    code, out, err = cli("fold", net, "-q")
    assert (code, out) == (2, "")
    assert "exists" in err


def test_verbose_lists_what_folded(tmp_path: Path, cli: Cli) -> None:
    """Without -v only what is left is listed; with it, what folded and into which node too."""
    net = put(mixed(), tmp_path / "net.onnx")
    plain = cli("fold", net)[1]
    assert "'bn'" not in plain
    assert "'late'" in plain
    verbose = cli("fold", net, "--force", "-v")[1]
    assert re.search(r"fold .*'bn'.* into Conv 'conv'", verbose)
    assert "'late'" in verbose


def test_the_text_tells_counts_sizes_error_and_time(net: Path, cli: Cli) -> None:
    """Before and after: operators, nodes, sizes; the worst error; the seconds; the file written."""
    out = cli("fold", net)[1]
    assert re.search(r"BatchNormalization\W+1\W+0\b", out)
    assert re.search(r"nodes\W+2\W+1\b", out)
    assert re.search(r"size .*\d B", out)
    assert re.search(r"largest difference \d\.\de-\d\d", out) or "bit for bit" in out
    assert re.search(r"net\.folded\.onnx \(\d+\.\d\d s\)", out)


# Colours and terminals


@pytest.mark.parametrize(
    "variables", [{}, {"TERM": "xterm-256color", "COLORTERM": "truecolor"}, {"FORCE_COLOR": "1"}]
)
def test_no_colours_into_a_pipe(
    variables: dict[str, str], net: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """stdout that is no terminal gets no escape sequence, whatever the terminal could do."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for args in (["fold", net, "-v"], ["inspect", net], ["fold", net], ["inspect", net.parent]):
        _, out, err = cli(*args)
        assert out or err
        assert "\x1b" not in out + err


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals are POSIX only")
@pytest.mark.parametrize(
    ("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_on_a_terminal(variables: dict[str, str], coloured: bool, net: Path) -> None:  # noqa: FBT001
    """A terminal gets colours, unless NO_COLOR is set or the terminal is dumb; no name is printed in pieces."""
    import pty

    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")}
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "bnfold", "fold", net, "--no-verify"],
        stdout=slave,
        stderr=subprocess.PIPE,
        env=env | {"TERM": "xterm-256color"} | variables,
    ) as process:
        os.close(slave)
        data = _read_all(master)
        assert process.communicate() == (None, b"")
    assert process.returncode == 0
    assert "written" in data
    assert ("\x1b[" in data) is coloured


def _read_all(descriptor: int) -> str:
    """Read a pseudo-terminal to its end, which Linux reports as an error and macOS as nothing left."""
    pieces = []
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(descriptor)
    return b"".join(pieces).decode()


# Names out of foreign files


EVIL = "e\x1b[31mvil\n[red]\r\x07\u202e\x9b"


def _renamed(proto: ModelProto, old: str) -> ModelProto:
    """The model with one name, of a node or value, made evil wherever it stands."""
    for node in proto.graph.node:
        node.name = EVIL if node.name == old else node.name
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = EVIL if name == old else name
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.name = EVIL if value.name == old else value.name
    return proto


def assert_harmless(text: str) -> None:
    """No control or other unprintable character, except the ends of lines."""
    assert all(line.isprintable() for line in text.split("\n")), repr(text)


@pytest.mark.parametrize("old", ["conv", "bn", "late", "relu", "x", "w", "gamma", "late_var", "c", "z", "y"])
def test_names_come_out_escaped(old: str, tmp_path: Path, cli: Cli) -> None:
    """A name with escape sequences, line ends and markup reaches no terminal as such; the lines stay as many."""
    net = put(_renamed(mixed(), old), tmp_path / "net.onnx")
    for command in (["fold", net, "-v"], ["inspect", net]):
        plain = cli(
            *command[:1], put(mixed(), tmp_path / "plain.onnx"), *command[2:], *["--force"] * ("fold" in command)
        )
        code, out, err = cli(*command)
        assert (code, err) == (0, "")
        assert_harmless(out)
        assert out.count("\n") == plain[1].count("\n")
        if old in ("conv", "bn", "late", "relu"):
            assert r"\x1b[31mvil\n[red]" in out


def test_markup_in_names_is_no_markup(tmp_path: Path, cli: Cli) -> None:
    """rich's own markup in a node's name or operator is printed as it is."""
    proto = mixed()
    proto.graph.node[3].name = "[bold red]late[/bold red]"
    proto.graph.node.append(helper.make_node("[link=x]Op[/]", ["z"], ["q"], domain="[i]d"))
    proto.opset_import.append(helper.make_opsetid("[i]d", 1))
    net = put(proto, tmp_path / "net.onnx")
    out = cli("fold", net, "--no-verify")[1]
    assert "'[bold red]late[/bold red]'" in out
    assert "[i]d::[link=x]Op[/]" in out


def test_names_in_errors_are_escaped(tmp_path: Path, cli: Cli) -> None:
    """Errors about foreign names: one line, nothing unprintable. Tensors, missing values, operators, domains."""
    tensor_ = _renamed(conv_bn(), "w")
    tensor_.graph.initializer[0].raw_data = b"abc"
    missing = conv_bn()
    missing.graph.node[0].input[0] = EVIL
    twice = _renamed(conv_bn(), "c")
    twice.graph.node.append(helper.make_node("Relu", ["x"], [EVIL], name=EVIL))
    operator, domain = custom(), custom()
    operator.graph.node[2].op_type = EVIL
    domain.graph.node[2].domain = domain.opset_import[1].domain = EVIL
    unrunnable = _renamed(conv_bn(x=("N", 3, "H", "W")), "conv")
    unrunnable.graph.node[0].attribute.append(helper.make_attribute("kernel_shape", [9, 9]))
    for proto in (tensor_, missing, twice, operator, domain, unrunnable):
        code, out, err = cli("fold", put(proto, tmp_path / "net.onnx"))
        assert code in (2, 3)
        assert_harmless(out)
        assert_harmless(err)
        assert err.count("\n") == 1


@pytest.mark.usefixtures("wrong_fold")
def test_the_name_of_an_output_that_differs_is_escaped(tmp_path: Path, cli: Cli) -> None:
    """The error of a failed verification names the output, escaped."""
    code, out, err = cli("fold", put(_renamed(conv_bn(), "y"), tmp_path / "net.onnx"))
    assert code == 1
    assert_harmless(out)
    assert_harmless(err)
    assert err.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="such file names are not allowed on Windows")
def test_names_of_files_are_escaped(tmp_path: Path, cli: Cli) -> None:
    """The model's own file name is foreign text too: in the report, in errors, and as no UTF-8 at all."""
    no_text = "\udcff" if sys.platform == "linux" else ""  # macOS takes only UTF-8
    evil = EVIL.replace("\u202e", "").replace("\x9b", no_text)
    net = put(conv_bn(), tmp_path / f"{evil}.onnx")
    for args in (["fold", net], ["fold", net], ["inspect", net], ["fold", tmp_path / f"absent{evil}"]):
        _, out, err = cli(*args)
        assert_harmless(out)
        assert_harmless(err)
        assert "\\x1b" in out + err
    assert json.loads(cli("inspect", net, "--format", "json")[1])["model"]
    assert cli("inspect", net, "-q", "--report", tmp_path / "r.json", "--report", tmp_path / "r.txt")[0] == 0


def test_json_escapes_by_itself(tmp_path: Path, cli: Cli) -> None:
    """JSON is plain ASCII and parses, whatever the names are."""
    net = put(_renamed(mixed(), "bn"), tmp_path / "net.onnx")
    out = cli("fold", net, "--format", "json")[1]
    assert out.isascii()
    assert "\x1b" not in out
    assert "vil" in json.loads(out)["sites"][0]["site"]


# Verification options


def _without_runtime(folder: Path, content: str = "raise ImportError('no onnxruntime here')\n") -> dict[str, str]:
    """An environment in which `import onnxruntime` finds `content`."""
    (folder / "fake" / "onnxruntime").mkdir(parents=True)
    (folder / "fake" / "onnxruntime" / "__init__.py").write_text(content, encoding="utf-8")
    return os.environ | {"PYTHONPATH": str(folder / "fake")}


def test_without_onnxruntime_it_says_what_to_install(net: Path) -> None:
    """onnxruntime absent: exit 3, nothing written, and both ways to install it are named; the report says so too."""
    env = _without_runtime(net.parent)
    before = sorted(net.parent.rglob("*.onnx"))
    done = child("-m", "bnfold", "fold", net, env=env)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    for text in (done.stderr, done.stdout):
        assert "bnfold[cpu]" in text
        assert "bnfold[cuda]" in text
    assert sorted(net.parent.rglob("*.onnx")) == before


def test_without_onnxruntime_no_verify_works(net: Path) -> None:
    """--no-verify needs no onnxruntime; neither does inspect, nor a model with nothing to fold."""
    env = _without_runtime(net.parent)
    script = (
        "import sys; from bnfold.cli import _run; net, plain = sys.argv[1:]; "
        "sys.exit(_run(['fold', net, '--no-verify']) or _run(['inspect', net]) or _run(['fold', plain]))"
    )
    plain = put(model([helper.make_node("Relu", ["x"], ["y"])], []), net.with_name("plain.onnx"))
    done = child("-c", script, net, plain, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert ops(onnx.load(net.with_name("net.folded.onnx"))) == ["Conv"]
    assert plain.with_name("plain.folded.onnx").read_bytes() == plain.read_bytes()


def test_without_onnxruntime_allow_unverified_writes(net: Path) -> None:
    """--allow-unverified: written, exit 0, and the report says that it is not verified, and why."""
    done = child("-m", "bnfold", "fold", net, "--allow-unverified", env=_without_runtime(net.parent))
    assert (done.returncode, done.stderr) == (0, "")
    assert "not verified" in done.stdout
    assert "bnfold[cpu]" in done.stdout
    assert ops(onnx.load(net.with_name("net.folded.onnx"))) == ["Conv"]


def test_a_gutted_onnxruntime_is_a_missing_one(net: Path) -> None:
    """Uninstalling one of onnxruntime and onnxruntime-gpu leaves an empty package behind: exit 3, not a bug."""
    done = child("-m", "bnfold", "fold", net, env=_without_runtime(net.parent, ""))
    assert done.returncode == 3
    assert "bnfold[cpu]" in done.stderr
    assert not net.with_name("net.folded.onnx").exists()


@pytest.mark.parametrize("option", [[], ["--allow-unverified"]])
def test_what_cannot_run_is_not_verified(option: list[str], tmp_path: Path, cli: Cli) -> None:
    """An operator that no runtime here has: exit 3 and nothing written, or written and said so."""
    net = put(custom(), tmp_path / "net.onnx")
    code, out, err = cli("fold", net, *option)
    assert "not verified" in out
    assert "Mystery" in out
    if option:
        assert (code, err) == (0, "")
        assert ops(onnx.load(tmp_path / "net.folded.onnx")) == ["Conv", "Mystery"]
    else:
        assert code == 3
        assert "Mystery" in err
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == [net]


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)
@pytest.mark.parametrize("name", ["cuda", "CUDA", "CUDAExecutionProvider"])
def test_cuda_without_a_gpu_is_not_verified(name: str, net: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """--provider cuda where there is none: exit 3, no fallback to the CPU, nothing written, stdout is the report.

    Captured at the level of file descriptors, because libraries print there when they look for a GPU.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        code = _run(["fold", str(net), "--provider", name, "--format", "json"])
        out, err = capfd.readouterr()
        both = _run(["fold", str(net), "--provider", "cpu", "--provider", name, "--format", "json"])
        tree = json.loads(capfd.readouterr().out)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert (code, both) == (3, 3)
    assert json.loads(out)["verification"]["verdict"] == "not verified"
    assert err.startswith("bnfold: error: could not verify: CUDAExecutionProvider")
    assert "bnfold[cuda]" in err
    assert err.count("\n") == 1
    assert [run["verdict"] for run in tree["verification"]["runs"]] == ["equal", "not verified"]
    assert list(net.parent.iterdir()) == [net]


def test_providers(net: Path, cli: Cli) -> None:
    """cpu, its full name and reference; each runs once, in the order given."""
    args = ["--provider", "reference", "--provider", "cpu", "--provider", "CPUExecutionProvider"]
    code, out, _ = cli("fold", net, *args, "--format", "json")
    assert code == 0
    runs = json.loads(out)["verification"]["runs"]
    assert [(run["provider"], run["verdict"]) for run in runs] == [
        ("reference", "equal"),
        ("CPUExecutionProvider", "equal"),
    ]


@pytest.mark.parametrize(
    ("args", "shape", "chosen"),
    [
        ([], [2, 3, 64, 64], {"N": 2, "H": 64, "x[3]": 64}),
        (["--dim", "N=3"], [3, 3, 64, 64], {"H": 64, "x[3]": 64}),
        (["--dim", "N=3", "--dim", "H=5"], [3, 3, 5, 64], {"x[3]": 64}),
        (["--shape", "x:1,3,7,9"], [1, 3, 7, 9], {}),
        (["--shape", "x:[1, 3, 7, 9]"], [1, 3, 7, 9], {}),
        (["--shape", "x:1x3x7x9", "--dim", "N=4"], [1, 3, 7, 9], {}),
        (["--trials", "2", "--seed", "7", "--threads", "1"], [2, 3, 64, 64], {"N": 2, "H": 64, "x[3]": 64}),
    ],
)
def test_shapes_and_dims(args: list[str], shape: list[int], chosen: dict[str, int], tmp_path: Path, cli: Cli) -> None:
    """--shape gives a whole input, --dim a symbol; what is left free is chosen, and the report says what."""
    net = put(conv_bn(x=("N", 3, "H", None)), tmp_path / "net.onnx")
    code, out, err = cli("fold", net, "--format", "json", *args)
    assert (code, err) == (0, "")
    run = json.loads(out)["verification"]["runs"][0]
    assert run["shapes"] == {"x": shape}
    assert run["sizes"] == chosen
    assert run["trials"] == (2 if "--trials" in args else 3)
    text = cli("fold", net, "--force", *args)[1]
    assert all(f"{name}={size}" in text for name, size in chosen.items())


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--shape", "q:1,3,8,8"], "no such input"),
        (["--shape", "x:1,4,8,8"], "does not fit"),
        (["--shape", "x:1,3,8"], "does not fit"),
        (["--shape", "x:"], "does not fit"),
        (["--shape", "x"], "expected NAME"),
        (["--shape", "1,3,8,8"], "expected NAME"),
        (["--shape", "x:1,3,-8,8"], "expected NAME"),
        (["--shape", "x:1,3,eight,8"], "expected NAME"),
        (["--shape", "x:1,,8"], "expected NAME"),
        (["--shape", "x:1,3,\u00b2,8"], "expected NAME"),
        (["--shape", ":1"], "expected NAME"),
        (["--dim", "Q=2"], "no such dimension; the model has H, N"),
        (["--dim", "N"], "expected SYMBOL"),
        (["--dim", "N="], "expected SYMBOL"),
        (["--dim", "=2"], "expected SYMBOL"),
        (["--dim", "N=0"], "expected SYMBOL"),
        (["--dim", "N=-1"], "expected SYMBOL"),
        (["--dim", "N=two"], "expected SYMBOL"),
        (["--dim", "N=2.0"], "expected SYMBOL"),
        (["--dim", "N=\u00b2"], "expected SYMBOL"),
        (["--dim", "N=99999999999999999999999"], "N"),
        (["--shape", "x:99999999999999999999999,3,8,8"], "x"),
        (["--dim", f"N={'9' * 5000}"], "N"),
    ],
)
def test_shapes_and_dims_that_make_no_sense(args: list[str], word: str, tmp_path: Path, cli: Cli) -> None:
    """Wrong names, forms and sizes: exit 2, one line that says what was expected, nothing written."""
    net = put(conv_bn(x=("N", 3, "H", "H")), tmp_path / "net.onnx")
    code, out, err = cli("fold", net, *args)
    assert (code, out) == (2, "")
    assert word in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [net]


@pytest.mark.parametrize("name", ["input:0", "model/input:0", "my input", "x:1", "x=1"])
def test_names_of_any_kind_take_a_shape(name: str, tmp_path: Path, cli: Cli) -> None:
    """TensorFlow's `input:0`, a space, an equals sign: the sizes stand behind the last colon."""
    proto = conv_bn(x=("N", 3, "H", "H"))
    proto.graph.node[0].input[0] = proto.graph.input[0].name = name
    net = put(proto, tmp_path / "net.onnx")
    code, out, err = cli("fold", net, "--format", "json", "--shape", f"{name}:1,3,8,8")
    assert (code, err) == (0, "")
    assert json.loads(out)["verification"]["runs"][0]["shapes"] == {name: [1, 3, 8, 8]}


def test_an_input_without_a_rank_takes_a_shape(tmp_path: Path, cli: Cli) -> None:
    """An input that declares no shape at all is taken for an image, unless --shape says it, or it is none."""
    proto = conv_bn()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    net = put(proto, tmp_path / "net.onnx")
    code, out, err = cli("fold", net, "--format", "json", "-o", tmp_path / "guessed.onnx")
    assert (code, err) == (0, "")
    assert json.loads(out)["verification"]["runs"][0]["shapes"] == {"x": [2, 3, 64, 64]}
    code, out, err = cli("fold", net, "--format", "json", "--shape", "x:2,3,9,9")
    assert (code, err) == (0, "")
    assert json.loads(out)["verification"]["runs"][0]["shapes"] == {"x": [2, 3, 9, 9]}


def test_an_input_that_is_no_image_asks_for_a_shape(tmp_path: Path, cli: Cli) -> None:
    """Where no size that is tried runs, the message says which options help."""
    proto = conv_bn((4, 3, 3), x=(1, 3, 9))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    net = put(proto, tmp_path / "net.onnx")
    code, _, err = cli("fold", net)
    assert code == 3
    assert "--shape" in err
    assert cli("fold", net, "--shape", "x:1,3,9")[0] == 0


# --freeze-inputs


def test_freeze_inputs(tmp_path: Path, cli: Cli) -> None:
    """Overridable initializers: left, with the flag named; with the flag folded, listed, and no inputs any more."""
    proto = conv_bn()
    for name, shape in (("w", [4, 3, 3, 3]), ("gamma", [4])):
        proto.graph.input.append(helper.make_tensor_value_info(name, 1, shape))
    net = put(proto, tmp_path / "net.onnx")
    for command in (["inspect", net], ["fold", net]):
        code, out, _ = cli(*command)
        assert code == 0
        assert "overridable-initializer" in out
        assert "--freeze-inputs" in out
    assert (tmp_path / "net.folded.onnx").read_bytes() == net.read_bytes()
    assert "1 of 1 BatchNormalization fold" in cli("inspect", net, "--freeze-inputs")[1]
    code, out, err = cli("fold", net, "--freeze-inputs", "--force")
    assert (code, err) == (0, "")
    assert re.search(r"no longer inputs.*: (w, gamma|gamma, w)\n", out)
    assert "verified equal" in out
    assert [value.name for value in onnx.load(tmp_path / "net.folded.onnx").graph.input] == ["x"]


# The last resorts


@pytest.mark.skipif(os.name == "nt", reason="broken pipes are errors of another kind on Windows")
@pytest.mark.parametrize(
    "command", [["inspect"], ["inspect", "--format", "json"], ["fold", "--no-verify"], ["--help"]]
)
def test_a_broken_pipe_is_no_error(command: list[str], net: Path) -> None:
    """`bnfold ... | head` may close the pipe before anything is printed: exit 0, stderr empty, no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    args = [command[0], *([] if command == ["--help"] else [net]), *command[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", *args], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    if command[0] == "fold":
        assert net.with_name("net.folded.onnx").exists()


@pytest.mark.parametrize("text", ["boom", "two\nlines \x1b[31m"])
def test_a_bug_is_one_line_and_70(text: str, net: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception nobody foresaw: exit 70, one line that asks for a report, no traceback."""

    def crash(*_: Any, **__: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr("bnfold.api.fold", crash)
    monkeypatch.delenv("BNFOLD_DEBUG", raising=False)
    code, out, err = cli("fold", net)
    assert (code, out) == (70, "")
    assert "bug in bnfold" in err
    assert "RuntimeError" in err
    assert "BNFOLD_DEBUG=1" in err
    assert_harmless(err)
    assert err.count("\n") == 1
    monkeypatch.setenv("BNFOLD_DEBUG", "1")
    with pytest.raises(RuntimeError):
        cli("fold", net)


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_memory_and_ctrl_c_are_no_bugs(
    error: BaseException, net: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory is exit 2, Ctrl-C is 130; each says so in a line."""

    def stop(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("bnfold.api.fold", stop)
    code, out, err = cli("fold", net)
    word = "out of memory" if isinstance(error, MemoryError) else "interrupted"
    assert (code, out) == (130 if word == "interrupted" else 2, "")
    assert err.strip() == f"bnfold: error: {word}" + ("; nothing was written" if word == "interrupted" else "")


def test_an_interruption_after_the_commit_does_not_deny_it(
    net: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the report is printed: the model is there, so the message must not deny it."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bnfold.report.text.render", stop)
    code, _, err = cli("fold", net)
    assert code == 130
    assert net.with_name("net.folded.onnx").exists()
    assert "nothing was written" not in err


def test_numbers_too_large_for_memory_are_no_bug(tmp_path: Path, cli: Cli) -> None:
    """--dim N=10^12 asks for a petabyte: an error that says so, never 70; nothing written."""
    net = put(conv_bn(x=("N", 3, 8, 8)), tmp_path / "net.onnx")
    code, _, err = cli("fold", net, "--dim", "N=1000000000000")
    assert code in (2, 3)
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [net]


@pytest.mark.skipif(os.name == "nt", reason="a shell closes streams in its own way there")
@pytest.mark.parametrize("stream", [">&-", "2>&-"])
def test_closed_streams_change_no_exit_code(stream: str, net: Path) -> None:
    """Python has no stdout or stderr then; what would be printed goes nowhere, and the work is done."""
    command = f"'{sys.executable}' -m bnfold fold '{net}' --force {stream}"
    assert subprocess.run(["bash", "-c", command], capture_output=True, check=False).returncode == 0
    missing = f"'{sys.executable}' -m bnfold fold nowhere.onnx {stream}"
    assert subprocess.run(["bash", "-c", missing], capture_output=True, check=False).returncode == 2


def test_an_unverified_fold_says_so(net: Path, cli: Cli) -> None:
    """With --no-verify the report does not leave it to the reader to miss a line."""
    assert "were not compared" in cli("fold", net, "--no-verify")[1]
