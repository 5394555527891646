"""Dependencies point one way, torch <- soma <- baselines <- benchmarks; what the tree may hold."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

OURS = {"soma", "baselines", "benchmarks", "tests"}
ALLOWED = {
    "soma": {"soma"},
    "baselines": {"soma", "baselines"},
    "benchmarks": {"soma", "baselines", "benchmarks"},
}
THIRD_PARTY = {"soma": {"torch", "safetensors"}, "baselines": {"torch"}}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_only_point_down(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        upward = (imported(file) & OURS) - ALLOWED[package]
        assert not upward, f"{file.relative_to(ROOT)} imports {upward}"


@pytest.mark.parametrize("package", THIRD_PARTY)
def test_library_needs_nothing_but_torch(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        extra = imported(file) - OURS - set(sys.stdlib_module_names) - THIRD_PARTY[package]
        assert not extra, f"{file.relative_to(ROOT)} imports {extra}"


def test_one_file_imports_detectron2() -> None:
    files = [f.name for f in (ROOT / "benchmarks").rglob("*.py") if "detectron2" in imported(f)]
    assert files == ["detectron2_engine.py"]


def test_baselines_do_not_import_each_other() -> None:
    for file in (ROOT / "baselines").glob("*.py"):
        if file.name == "__init__.py":
            continue
        assert "baselines" not in imported(file), file.name


def test_no_python_in_datasets() -> None:
    assert not list((ROOT / "datasets").rglob("*.py"))


def test_benchmarks_names_no_method() -> None:
    from baselines import METHODS

    names = {name for name in METHODS if name not in ("full", "freeze")}  # both are English words
    for file in (ROOT / "benchmarks").rglob("*.py"):
        strings = {
            node.value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not strings & names, f"{file.relative_to(ROOT)} names {strings & names}"


def test_tables_and_lists_need_no_torch() -> None:
    code = (
        "import sys, benchmarks.__main__, benchmarks.report.table, benchmarks.record, "
        "benchmarks.protocol, benchmarks.report.statistics; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
