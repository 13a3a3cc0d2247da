"""The README and the code say the same."""

import re

from click.testing import CliRunner

from bnfold.cli import cli, fold_command
from bnfold.refusals import Code
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_code_is_documented_with_its_explanation():
    """The table of codes is the closed list, in its order."""
    rows = re.findall(r"^\| `([a-z][a-z-]+)` \| (.+) \|$", README, re.MULTILINE)
    assert [(code.value, code.explanation) for code in Code] == rows
    assert len({code.value for code in Code}) == len(Code)


def test_every_option_of_fold_is_documented():
    """Each option in the table exists, and each that exists is in the table."""
    table = README.split("| option of `fold` | |")[1].split("\n\n")[0]
    documented = set(re.findall(r"--[a-z][a-z-]*", table))
    existing = {name for p in fold_command.params for name in p.opts if name.startswith("--")}
    short = {name for p in fold_command.params for name in p.opts if re.fullmatch("-[a-z]", name)}
    assert documented | {"--verbose", "--quiet"} == existing
    assert short == set(re.findall(r"`(-[a-z])`", table))


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
