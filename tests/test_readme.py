"""The README and the code say the same."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import bnfold
from bnfold.cli import check_command, cli, fold_command, verify_command
from bnfold.refusals import Code
from bnfold.report import SiteReport
from bnfold.report.verdicts import CheckResult, FileFacts, ModelCheck, VerifyReport
from bnfold.verification import Fed, Information, ProviderRun, Verification
from bnfold.verification.compare import OutputComparison
from bnfold.verification.feeds.labels import Accuracy
from bnfold.verification.sitecheck import SiteCheck
from tests.conftest import ROOT, conv_bn

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_code_is_documented_with_its_explanation():
    """The table of codes is the closed list, in its order."""
    table = README.split("<!-- codes -->")[1].split("<!-- end codes -->")[0]
    rows = re.findall(r"^\| `([a-z][a-z-]+)` \| (.+) \|$", table, re.MULTILINE)
    assert [(code.value, code.explanation) for code in Code] == rows
    assert len({code.value for code in Code}) == len(Code)


def _table(head: str) -> str:
    return README.split(head)[1].split("\n\n")[0]


def _options(command: click.Command) -> set[str]:
    return {name for p in command.params for name in p.opts if name.startswith("-")}


def test_every_option_of_fold_is_documented():
    """Each option in the table exists, and each that exists is in the table."""
    documented = set(re.findall(r"--[a-z][a-z0-9-]*|(?<=`)-[a-z]", _table("| option of `fold` | |")))
    assert documented | {"--verbose", "--quiet"} == _options(fold_command)


def test_every_option_of_verify_and_check_is_documented():
    """`verify` has what the README says it shares with `fold`; `check` that, what to fold, and its own table."""
    table = _table("| option of `fold` | |")
    shared = set(re.findall(r"--[a-z][a-z0-9-]*|(?<=`)-[a-z]", table[table.index("`--provider") :]))
    shared |= {"--verbose", "--quiet"}
    assert _options(verify_command) == shared | {"--follow-links"}
    own = set(re.findall(r"--[a-z][a-z-]*|(?<=`)-[a-z]", _table("| option of `check` | |")))
    writing = {"-o", "--output", "--in-place", "--force", "--no-verify", "--allow-unverified"}
    writing |= {"--undo-file", "--no-provenance"}
    assert _options(check_command) == (_options(fold_command) - writing) | own


@pytest.mark.parametrize(
    ("row", "tree"),
    [
        ("`bnfold.verify/1`", VerifyReport), ("`original`, `folded`", FileFacts), ("`bnfold.check/1`", CheckResult),
        ("`models`", ModelCheck), ("`verification`", Verification), ("`runs`", ProviderRun),
        ("`runs.inputs`", Fed), ("`accuracy`", Accuracy), ("`runs.sites`, `blame`", SiteCheck),
        ("`outputs`", OutputComparison), ("`information`", Information), ("`models.sites`", SiteReport),
    ],
)  # fmt: skip
def test_the_schemas_are_documented(row: str, tree: Any):
    """The keys that the README lists are those that a report has, in their order."""
    listed = re.search(rf"^\| {re.escape(row)} \| (.+) \|$", README, re.MULTILINE)
    assert listed is not None
    assert re.findall(r"`(\w+)`", listed[1]) == [entry.name for entry in dataclasses.fields(tree)]


def test_the_recipe_for_ci_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The bnfold commands of the workflow, word for word, pass on a folder with two models that are folded."""
    recipe = README.split("<!-- ci -->")[1].split("```")[1]
    commands = re.findall(r"run: bnfold (.+)", recipe)
    assert [command.split()[0] for command in commands] == ["check", "verify"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("before.onnx", "after.onnx"):
        bnfold.fold(conv_bn(), tmp_path / "models" / name)
    for command in commands:
        done = subprocess.run([sys.executable, "-m", "bnfold", *command.split()], check=False, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "check.json").stat().st_size > 0


def test_exit_codes_are_the_same_in_readme_and_help():
    """0, 1, 2, 3, 70 in both."""
    help_text = CliRunner().invoke(cli, ["fold", "--help"]).output
    rows = re.findall(r"^\| (\d+) \|", README, re.MULTILINE)
    assert rows == re.findall(r"^ +(\d+) +\w", help_text, re.MULTILINE) == ["0", "1", "2", "3", "70", "130"]


def test_exactly_two_commands_set_everything_up():
    """One installs and folds, one installs and tests; .ci/run takes them from here."""
    blocks = re.findall(r"<!-- (main-job|tests) -->\n```sh\n(.+)\n```", README)
    assert [name for name, _ in blocks] == ["main-job", "tests"]
    assert "bnfold fold models/digits_resnet.onnx" in blocks[0][1]
    assert blocks[1][1].endswith("-m pytest")
    assert all("pip install" in command for _, command in blocks)
