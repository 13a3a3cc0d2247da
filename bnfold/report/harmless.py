"""Text in which GitHub Actions finds no workflow command; its runner looks for them in all that a step prints.

Source: actions/runner, ActionCommand.cs: `::name ...::` at the start of a line, `##[name ...]` anywhere.
"""

import re

_LINE_COMMAND = re.compile(r"^(\s*)::", re.MULTILINE)


def harmless(text: str) -> str:
    """Text of a report in which the runner finds no command: `::` at the start of a line, or `##[` anywhere."""
    return _LINE_COMMAND.sub(r"\1: :", text).replace("##[", "## [")


def harmless_json(text: str) -> str:
    """The same for JSON, whose strings may hold `##[`: the same value, written otherwise."""
    return text.replace("##[", "#\\u0023[")
