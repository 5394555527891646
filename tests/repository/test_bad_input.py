"""What `scripts/bad_input.py` asks of the words of an error line."""

import runpy
from typing import Any

import pytest
from paths import ROOT


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "bad_input.py"))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("--seed -1: a seed lies in 0..9", ""),
        ("--SEED -1: expected a whole number", ""),
        ("--seed: a seed lies in 0..9", "does not say '-1'"),
        ("-1 lies below 0; take another", "does not say '--seed'"),
        ("--seed -1: no", "says no way out"),
        ("--seed -1: NoneType has no length; take another", "says 'NoneType'"),
        ("--seed -1: expected a number (got None)", "says 'None'"),
        ("--seed -1: KeyError: 'seed'; write one", "says 'KeyError'"),
        ("--seed -1: [Errno 2] no such file; give one", "says '[Errno'"),
        ("--seed -1: <class 'int'> expected", 'says "<class"'),
    ],
)
def test_a_line_says_what_where_and_the_way_out(
    line: str, fault: str, script: dict[str, Any]
) -> None:
    kind = script["Kind"]("a seed", lambda _: 2, (("--seed",), ("-1",)))
    told = script["content"](line, kind)
    assert told.startswith(fault.replace('"', "'")) if fault else told == ""


def test_the_code_of_a_user_may_be_quoted(script: dict[str, Any]) -> None:
    line = "own.py line 1: RuntimeError: at import; correct the file"
    for quotes, expected in ((True, ""), (False, "says 'RuntimeError'")):
        kind = script["Kind"]("own", lambda _: 2, (("own.py",),), quotes)
        assert script["content"](line, kind).startswith(expected)
        assert bool(script["content"](line, kind)) is not quotes


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("run mini_gtav lora --seed -1", (("-1",), ("--seed", "seed"))),
        ("check lora --set method.rank=x", (("rank", "x"),)),
        ("export DIR/absent.json DIR/o --to peft", (("/absent.json",),)),
        ("run mini_gtav", ()),
        ("nonsense", (("nonsense",),)),
    ],
)
def test_a_command_line_says_what_its_error_has_to_name(
    line: str, says: tuple, script: dict[str, Any]
) -> None:
    assert script["told"](line) == says
