"""The one exception that a user may see."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix, in one line: what is wrong, where, and how to fix it.

    The command line prints it to stderr without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        """Collapse the message to one readable line, whatever a library or a file put into it."""
        line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
        # The way out stands at the end.
        super().__init__(line if len(line) <= 2000 else f"{line[:1200]} ... {line[-700:]}")


class MachineError(UserError):
    """The machine gave up, not the cell: memory, a killed process. The same command resumes."""


def closest(name: str, known: Iterable[str]) -> str:
    """End of an error line for an unknown name.

    Returns "; did you mean 'x'?" when a known name is close, else "; known: a, b, c".
    """
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; known: {', '.join(names) or 'none'}"
