"""Public docstrings name errors and shapes: the count finds what is lacking."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

EXAMPLE = '''
def silent(): pass

def refuses(path):
    """Read."""
    _look(path)

def _look(path):
    if not path:
        raise ValueError("no path")

def recovers(path):
    """Read, or not."""
    try:
        _look(path)
    except ValueError:
        return None

def passes_on(path):
    """Read."""
    try:
        _look(path)
    except ValueError:
        print(path)
        raise

def unshaped(image: Tensor) -> None:
    """Show."""

def shaped(image: Tensor) -> None:
    """Show (B, C, H, W)."""

def elsewhere(image: Tensor) -> None:
    """See `Task.show`."""

class Pair:
    """Two.

    Attributes:
        left, right: both.
    """

    left: dict[str, Tensor]
    right: int

    def __post_init__(self):
        raise KeyError

    def told(self):
        """Look.

        Raises:
            ValueError: there is no path.
        """
        self._own()
        _look("")

    def declared(self):
        """Look; `_REFUSED` holds what is caught."""
        try:
            self._own()
        except _REFUSED:
            return None

    def _own(self): # no line of comments
        # One line of comments.
        raise OSError
'''


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("count", ROOT / "scripts/count_docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_docstrings_lack_is_listed(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("soma", "tests"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "example.py").write_text(EXAMPLE)
    told = tmp_path / "scripts"
    told.mkdir()
    (told / "__init__.py").write_text(
        '"""Images are (B, C, H, W); `ValueError`, `OSError`, KeyError."""'
    )
    (told / "example.py").write_text(EXAMPLE)
    assert script.main(tmp_path) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    package = [line.split(" ", 1)[1] for line in lines if line.startswith("scripts")]
    assert package == ["silent lacks a docstring", "Pair lacks a line per name: left, right"]
    lines = [line for line in lines if not line.startswith("scripts")]
    assert [line.split(": ", 1)[1] for line in lines] == [
        "silent lacks a docstring",
        "refuses lacks Raises: ValueError",
        "passes_on lacks Raises: ValueError",
        "unshaped lacks a shape",
        "Pair lacks a line per name: left, right; Raises: KeyError",
        "told lacks Raises: OSError",
    ]
    assert lines[1].startswith("soma/example.py:4:")
    assert last == "8 of 20 lack something; full-line comments: 1.5% of 135 lines"


def test_no_public_docstring_lacks_anything(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(ROOT) == 0, capsys.readouterr().out
