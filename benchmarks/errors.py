"""The one exception that a user may see."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix, in one line: what is wrong, where, and how to fix it.

    The command line prints it to stderr without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        """Collapse the message to a single line, whatever a library put into it."""
        super().__init__(" ".join(message.split()))


def closest(name: str, known: Iterable[str]) -> str:
    """End of an error line for an unknown name.

    Returns "; did you mean 'x'?" when a known name is close, else "; known: a, b, c".
    """
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; known: {', '.join(names) or 'none'}"
