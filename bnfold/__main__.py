"""`python -m bnfold`, and the command `bnfold`: answers Ctrl-C before anything large is imported."""

import sys
from typing import NoReturn

from bnfold import interrupts
from bnfold.errors import EXIT_INTERRUPTED


def main() -> NoReturn:
    """Run the command line; see `bnfold.cli`."""
    interrupts.listen()
    try:
        with interrupts.held_back():
            from bnfold import cli
    except KeyboardInterrupt:
        sys.stderr.write("bnfold: error: interrupted; nothing was written\n")
        sys.exit(EXIT_INTERRUPTED)
    cli.main()


if __name__ == "__main__":
    main()
