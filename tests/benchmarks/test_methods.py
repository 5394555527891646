"""Methods in a user's file: one guard around its code, and one reading of it."""

import pickle
from pathlib import Path

import pytest
from toy_records import DATA, FINGERPRINTS, toy_protocol, toy_table

from benchmarks.__main__ import main
from benchmarks.cell import make_cell
from benchmarks.errors import UserError
from benchmarks.methods import code_of

HEAD = """from dataclasses import dataclass
from typing import Any, ClassVar
from soma.method import Method
"""
CLASS = (
    HEAD
    + """@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    source: ClassVar[str] = "here"
"""
)
POST_INIT = CLASS + "    width: int = 3\n    def __post_init__(self) -> None:\n        "

FILES = {
    "error": ("x = 1\nraise RuntimeError('a\\nb')\n", "line 2: RuntimeError: a b"),
    "deep": (
        "def f():\n    return 1 / 0\n\ndef g():\n    f()\n\ng()\n",
        "line 2: ZeroDivisionError: division by zero",
    ),
    "base_exception": ("raise BaseException('all')\n", "line 1: BaseException: all"),
    "generator_exit": ("raise GeneratorExit\n", "line 1: GeneratorExit"),
    "leaves": ("import sys\nsys.exit(0)\n", "line 2: SystemExit: 0"),
    "asserts": ("assert False, 'never'\n", "line 1: AssertionError: never"),
    "os_error": ("open('/no/such/file')\n", "line 1: FileNotFoundError: [Errno 2] No such file"),
    "recursion": ("def f(): f()\nf()\n", "line 1: RecursionError: maximum recursion depth"),
    "own_exception": (
        "class Odd(Exception):\n    def __str__(self): raise ValueError\n\nraise Odd\n",
        "line 4: Odd: <exception str() failed>",
    ),
    "import": ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named"),
    "syntax": ("x = 1\nclass Mine(:\n", "line 2: SyntaxError: invalid syntax"),
    "zero_bytes": ("x = '\0'\n", ": source code string cannot contain null bytes"),
    "encoding": (b"x = '\xff'\n", "SyntaxError: (unicode error) 'utf-8' codec"),
    "undefined_annotation": (
        "from __future__ import annotations\n" + CLASS + "    width: Widht = 3\n",
        ": NameError: name 'Widht' is not defined",
    ),
    "mutable_default": (
        CLASS + "    widths: list = []\n",
        "line 4: ValueError: mutable default <class 'list'>",
    ),
    "construction": (POST_INIT + "raise KeyError('width')\n", "line 9: KeyError: 'width'"),
    "construction_leaves": (POST_INIT + "exit(0)\n", "line 9: SystemExit: 0"),
    "no_default": (CLASS + "    width: int\n", "missing 1 required keyword-only argument: 'width'"),
    "object": (
        CLASS + "    width: Any = object()\n",
        "field width is of type object; write numbers",
    ),
    "nan": (CLASS + "    width: float = float('nan')\n", "field width = nan is not finite; write"),
    "infinite": (
        CLASS + "    width: tuple = (1.0, float('inf'))\n",
        "field width = [1.0, inf] is not finite",
    ),
    "no_dataclass": (
        CLASS.replace("@dataclass(frozen=True, kw_only=True)\n", "") + "    width: int = 3\n",
        "Mine is no dataclass, so that its own fields would be ignored: write @dataclass",
    ),
    "module_attribute": (
        "def __getattr__(name):\n    raise RuntimeError(name)\n",
        "line 2: RuntimeError: Mine",
    ),
    "other_class": (HEAD + "class Mine: ...\n", "no method class 'Mine'"),
    "instance": (CLASS + "Mine = Mine()\n", "no method class 'Mine'"),
}


@pytest.mark.parametrize("command", ["run", "check", "sweep"])
@pytest.mark.parametrize("kind", FILES)
def test_what_a_users_file_raises_is_one_line(
    kind: str, command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content, expected = FILES[kind]
    file = tmp_path / "mine.py"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    spec, out = f"{file}:Mine", str(tmp_path / "out")
    toy_table(tmp_path)
    argv = {
        "run": ["run", str(DATA / "toy.yaml"), spec, "--data-root", str(tmp_path), "--out", out],
        "check": ["check", spec],
        "sweep": [
            *("sweep", str(tmp_path / "toy_table.yaml"), "--profile", "toy", "--methods", spec),
            *("--data-root", str(tmp_path), "--out", out),
        ],
    }[command]
    assert main(argv) == 2
    printed, err = capfd.readouterr()
    assert printed == ""
    assert err.startswith("error: ")
    assert str(file) in err
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a b.py", "é\x1b.py", "x" * 150 + ".py"])
def test_file_whose_name_fits_into_no_record_is_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(CLASS)
    where = ["--data-root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["run", str(DATA / "toy.yaml"), f"{tmp_path / name}:Mine", *where]) == 2
    err = capfd.readouterr().err
    assert "rename the file" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "check"])
def test_method_that_leaves_while_it_is_attached_is_no_success(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import sys\n" + CLASS + "    def attach(self, vit): sys.exit(0)\n")
    monkeypatch.setattr("benchmarks.cell.fingerprints", lambda *_: FINGERPRINTS)
    monkeypatch.setattr("benchmarks.segmentation.task.check_data", lambda *_: None)
    attaching = lambda cell, *_, **__: cell.make_method().attach(None)  # noqa: E731
    monkeypatch.setattr("benchmarks.run.run_cell", attaching)
    where = ["--data-root", str(tmp_path), "--out", str(tmp_path / "out")]
    argv = {"run": ["run", str(DATA / "toy.yaml"), f"{file}:Mine", *where]}
    assert main(argv.get(command, ["check", f"{file}:Mine"])) == 2
    err = capfd.readouterr().err
    assert err.splitlines()[-1] == f"error: {file} line 8: leaves with SystemExit(0)"


def test_package_that_is_not_installed_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CLASS + "    packages: ClassVar = ('no-such-package',)\n")
    cell = make_cell(toy_protocol(), f"{file}:Mine", seed=0, data={})
    with pytest.raises(UserError, match=r"mine.py: .*No package metadata was.*no-such-package"):
        _ = cell.digest


def test_every_cell_of_a_sweep_runs_the_code_that_was_read_first(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CLASS + "    mark: ClassVar[int] = 1\n")
    spec = f"{file}:Mine"
    first = make_cell(toy_protocol(), spec, seed=0, data={})
    file.write_text(CLASS + "    mark: ClassVar[int] = 2\n")
    second = make_cell(toy_protocol(), spec, seed=1, data={})
    code_of.cache_clear()  # as in a worker process, which reads it now
    other = make_cell(toy_protocol(), spec, seed=0, data={})
    assert other.digest != first.digest
    for cell in (first, second):
        received = pickle.loads(pickle.dumps(cell))
        assert received.make_method().mark == 1
        assert received.resolved["method"] == first.resolved["method"]
    assert other.make_method().mark == 2


def test_two_files_of_one_name_are_two_methods(tmp_path: Path) -> None:
    made = []
    for width in (1, 2):
        file = tmp_path / str(width) / "mine.py"
        file.parent.mkdir()
        text = f"Number = {'int' if width == 1 else 'str'}\n"
        file.write_text("from __future__ import annotations\n" + CLASS + "    x: Number\n" + text)
        made.append(str(file))
    for _ in range(2):
        for file, value in zip(made, (1, "a"), strict=True):
            changes = {"method": {"x": value}}
            cell = make_cell(toy_protocol(), f"{file}:Mine", seed=0, changes=changes)
            assert cell.make_method().x == value
