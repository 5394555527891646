"""Text from outside: plain values within bounds, or one line at once, from every command."""

import copy
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from toy_records import DATA

from benchmarks import yaml_files
from benchmarks.__main__ import main
from benchmarks.cell import make_cell
from benchmarks.errors import UserError
from benchmarks.tasks import load_protocol

SECONDS = 10.0  # of processor time; PyYAML reads the longest text that is allowed in 3


def aliases(levels: int) -> str:
    """10^levels texts, written in a few lines."""
    lines = ["a0: &a0 [x]"]
    for i in range(levels):
        lines.append(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]")
    return "\n".join(lines)


TEXTS = {
    "cycle": ("a: &a [*a]", "line 1: the anchor 'a' holds itself"),
    "cycle_of_mappings": ("a: &a {b: {c: *a}}", "line 1: the anchor 'a' holds itself"),
    "cycle_of_merges": ("a: &a {<<: *a}", "line 1: the anchor 'a' holds itself"),
    "aliases": (aliases(12), "is too large once its aliases are written out"),
    "deep_aliases": (
        "\n".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else ''}]" for i in range(90)),
        "line 51: is too large once its aliases are written out",
    ),
    "deep_flow": ("[" * 100_000, "line 1: is nested deeper than 50 levels"),
    "deep_block": ("- " * 90_000, "line 1: is nested deeper than 50 levels"),
    "deep_mappings": ("{a: " * 40_000, "line 1: is nested deeper than 50 levels"),
    "long": ("[" + "1, " * 100_000 + "]", "is longer than 200,000 characters"),
    "list_as_key": ("? [a, b]\n: c", "line 1: a key is a list or a mapping"),
    "mapping_as_key": ("b: 1\n? {a: 1}\n: c", "line 2: a key is a list or a mapping"),
    "repeated_key": ("a: 1\na: 2", "line 2: key 'a' is given twice"),
    "repeated_number": ("{1: a, 0x1: b}", "line 1: key '1' is given twice"),
    "digits": ("9" * 10_000, "line 1: an integer has more than 64 bits"),
    "hexadecimal": ("0x" + "f" * 100_000, "line 1: an integer has more than 64 bits"),
    "not_a_number": (".nan", "line 1: '.nan' is not a finite number"),
    "infinite": ("[-.inf]", "line 1: '-.inf' is not a finite number"),
    "too_large": ("1e999", "line 1: '1e999' is not a finite number"),
    "tag": ("!!timestamp 2026-13-45", "line 1: has the tag 'tag:yaml.org,2002:timestamp'"),
    "code": ("!!python/object/apply:os.getcwd []", "line 1: has the tag"),
    "escape_codes": (r'"\e[31m"', "holds a control character"),
    "surrogate": (r'"\ud800"', "holds a control character"),
    "zero_byte": ("a: \0", "unacceptable character"),
    "two_documents": ("a: 1\n---\nb: 2", "but found another document"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_text_that_cannot_be_meant_is_one_line_at_once(kind: str) -> None:
    text, expected = TEXTS[kind]
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        yaml_files.parse(text, "here")
    assert time.process_time() - start < SECONDS
    assert expected in str(caught.value)
    assert str(caught.value).startswith("here: ")
    assert len(str(caught.value)) < 250


def test_longest_text_is_read_in_seconds() -> None:
    start = time.process_time()
    assert len(yaml_files.parse("[" + "1," * 99_000 + "]", "here")) == 99_000
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1_000, 0x1F, 0b11, -3, +4, 0]", [1000, 31, 3, -3, 4, 0]),
        ("[1., .5, 1e-3, -1.5E+3]", [1.0, 0.5, 0.001, -1500.0]),
        ("[0x_, 010, '1', 00042, 1:30, 1_, _1]", ["0x_", "010", "1", "00042", "1:30", "1_", "_1"]),
        ("[2026-13-45, 2026-01-02]", ["2026-13-45", "2026-01-02"]),
        ("[yes, no, true, ~, null, =]", [True, False, True, None, None, "="]),
        ("a: &a {x: [1, 2]}\nb: {<<: *a, y: *a}", None),
    ],
)
def test_plain_values_are_read_as_they_are_written(text: str, value: Any) -> None:
    if value is None:
        one = {"x": [1, 2]}
        value = {"a": one, "b": one | {"y": one}}
    read = yaml_files.parse(text, "here")
    assert read == value
    if isinstance(value, list):
        assert [type(item) for item in read] == [type(item) for item in value]


def test_endless_file_is_read_to_the_bound_only() -> None:
    with pytest.raises(UserError, match="/dev/zero: is longer than 200,000 characters"):
        yaml_files.read(Path("/dev/zero"))


@pytest.mark.parametrize("command", ["run", "sweep", "table", "set-method", "set-recipe"])
@pytest.mark.parametrize("kind", [kind for kind in TEXTS if kind != "long"])
def test_every_command_reads_text_from_outside_the_same_way(
    command: str, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text, expected = TEXTS[kind]
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    where = ["--data-root", str(tmp_path), "--out", str(tmp_path / "out")]
    argv = {
        "run": ["run", str(file), "lora", *where],
        "sweep": ["sweep", str(file), *where],
        "table": ["table", str(file), "--records", str(tmp_path)],
        "set-method": ["run", str(DATA / "toy.yaml"), "lora", "--set", f"method.alpha={text}"],
        "set-recipe": ["run", str(DATA / "toy.yaml"), "lora", "--set", f"recipe.lr={text}"],
    }[command]
    start = time.process_time()
    assert main(argv) == 2
    assert time.process_time() - start < SECONDS
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["../../x", "..", "a/b", "", "a" * 300, "x\\y", "a.list"])
@pytest.mark.parametrize("key", ["targets.0.domain", "recipes", "placements", "starts_from"])
def test_names_in_the_paths_of_records_lead_nowhere_else(
    key: str, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = yaml_files.read(DATA / "toy.yaml")
    if key == "targets.0.domain":
        data["targets"][0]["domain"] = name
    else:
        data[key] = {
            "recipes": {name: {}},
            "placements": {"all": 0, name: 0.5},
            "starts_from": name,
        }[key]
    file = tmp_path / "toy.yaml"
    file.write_text(json.dumps(data))
    assert main(["run", str(file), "lora", "--out", str(tmp_path / "out")]) == 2
    err = capfd.readouterr().err
    assert f"error: {file}: {key}" in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [file]


def test_extends_in_a_circle_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, base in (("a", "b"), ("b", "a"), ("own", "own")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {tmp_path}/{base}.yaml\nname: {name}\n")
    for name in ("a", "own"):
        assert main(["run", str(tmp_path / f"{name}.yaml"), "lora"]) == 2
        assert "the base extends another file; one level is allowed" in capfd.readouterr().err


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Paths of keys and indices to everything inside a value, and to itself."""
    yield path
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield from places(value[key], (*path, key))


@pytest.mark.parametrize("odd", [None, [], {"a": 1}, [{}], -1, 1e300, "../..", "x" * 3000])
def test_a_value_of_another_kind_anywhere_in_a_protocol_is_one_line_or_a_protocol(
    odd: Any, tmp_path: Path
) -> None:
    whole = yaml_files.read(DATA / "toy.yaml")
    file = tmp_path / "toy.yaml"
    for place in places(whole):
        changed = copy.deepcopy(whole)
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        if place:
            inner[place[-1]] = odd
        file.write_text(json.dumps(changed if place else odd))
        with suppress(UserError):  # any other error fails
            make_cell(load_protocol(file), "lora", seed=0)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000 + ".yaml"])
@pytest.mark.parametrize("command", ["run", "table"])
def test_name_that_no_file_can_have_is_one_line(
    command: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([command, name, *(["lora"] if command == "run" else [])]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert len(err) < 2100


def test_every_yaml_of_the_suite_keeps_far_below_the_bounds() -> None:
    for file in (*ROOT.glob("benchmarks/*/*.yaml"), *ROOT.glob("datasets/*.yaml")):
        assert file.stat().st_size < yaml_files._LONGEST / 10
