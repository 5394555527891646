"""The checks of methods: each known mistake is found, and named by the line that is about it."""

from collections.abc import Callable

import broken_methods as broken
import pytest
import torch
from paths import SUPPORT

from baselines import METHODS
from benchmarks.__main__ import main
from benchmarks.conformance import check
from benchmarks.conformance.check import KINDS, Finding, build_vit, check_method
from soma import Method

FILE = SUPPORT / "broken_methods.py"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line in this process: exit code, stdout, stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in argv])
        output = capfd.readouterr()
        return code, output.out, output.err

    return call


def failed(method: Method, kind: str = "class token") -> dict[str, str]:
    findings = check_method(method, kind, {"torch.compile"})
    return {found.property: found.measured for found in findings if found.verdict == "fail"}


def test_trains_a_frozen_weight() -> None:
    found = failed(broken.TrainsFrozen())
    name = "blocks.2.norm1.weight"
    assert (
        found["declared parameters learn"] == f"one tensor learns under two names: gain and {name}"
    )
    assert found["frozen tensors rest"] == f"1 moved that are not to learn: {name}"


def test_is_no_identity() -> None:
    found = failed(broken.NotIdentity())
    anew = {"another image size", "fold with other numbers", "fold without biases"}
    assert found.keys() == {"exact start"} | anew
    assert found["exact start"].startswith("the output differs by ")
    assert found["exact start"].endswith("above 1e-04")


def test_dead_pair() -> None:
    found = failed(broken.DeadPair())
    assert found["gradient after one step"].startswith("no gradient reaches 36 of 36: blocks.0.")
    assert found["moves after two"].startswith("36 of 36 have not moved: blocks.0.")
    assert found["gradient in the tasks"] == found["gradient after one step"]
    assert found["25 steps, resumed"] == "25 steps move the loss from 2.044 to 2.044"
    assert len(found) == 4


def test_leaks_through_a_copy() -> None:
    found = failed(broken.LeaksThroughCopy())
    expected = "moving what learns in the copy does not change the copy's output"
    assert found["deep copy"] == expected
    assert "pickle" in found["pickle"]
    assert found.keys() == {"deep copy", "pickle"}


def test_wrong_fold() -> None:
    found = failed(broken.WrongFold())
    others = {"fold with other numbers", "fold without biases", "another image size"}
    assert found.keys() == {"fold"} | others
    assert found["fold"].startswith("the output differs by ")


def test_renames_keys() -> None:
    found = failed(broken.RenamesKeys())
    lost = "blocks.0.attn.proj.weight, blocks.0.attn.proj.bias, blocks.1.attn.proj.weight"
    assert found["pretrained keys"] == f"6 of 54 keys are gone: {lost} and 3 more"


def test_a_tensor_that_nobody_owns() -> None:
    found = failed(broken.HiddenTensor())
    assert (
        found["declared parameters learn"]
        == "1 tensors learn that are no parameters of the backbone"
    )


def test_a_refusal_leaves_the_backbone_alone() -> None:
    (only,) = check_method(broken.HalfRefuses(), "class token")
    expected = "refuses, but has changed blocks.0.shift.value before"
    assert only == Finding(check.FITS, "fail", expected)


def test_a_refusal_is_one_line_with_the_reason() -> None:
    (only,) = check_method(METHODS["vpt"](), "grid in windows")
    assert only.verdict == "n/a"
    assert "does not provide token_sequence" in only.measured


def test_large_fields_are_made_small_and_said_so() -> None:
    first, *others = check_method(broken.Wide(), "class token")
    assert first == Finding(check.FITS, "pass", "made small for it: rank 64 -> 4")
    assert {found.verdict for found in others} == {"pass"}


def test_what_a_method_raises_is_one_line() -> None:
    found = failed(broken.Raises())
    assert found["exact start"] == "RuntimeError: no such shape"
    assert found["deep copy"] == "RuntimeError: no such shape"


def test_the_callers_state_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMA_CACHE", "somewhere")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    check_method(METHODS["freeze"](), KINDS[0])
    assert torch.equal(torch.rand(1), expected)
    assert check.os.environ["SOMA_CACHE"] == "somewhere"


@pytest.mark.parametrize("kind", KINDS)
def test_backbones_are_the_same_on_every_call_and_not_constant(kind: str) -> None:
    first, second = build_vit(kind).state_dict(), build_vit(kind).state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert value.numel() == 1 or value.std() > 0, name


def test_command_passes(command: Command) -> None:
    code, out, err = command("check", "freeze")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line for line in lines if not line.startswith("  ")][:4] == [
        f"freeze on a backbone with {kind}" for kind in KINDS
    ]
    assert (
        "  pass  exact start                the output differs by 0.0e+00 (at most 1e-04)" in lines
    )
    assert "0 fail" in lines[-1]


def test_command_fails_with_the_line_that_says_why(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "KINDS", KINDS[:1])
    code, out, _ = command("check", f"{FILE}:DeadPair")
    assert code == 1
    assert "  fail  gradient after one step    no gradient reaches 36 of 36: blocks.0." in out


def test_command_wants_a_method(command: Command) -> None:
    code, out, err = command("check", "lor")
    assert (code, out) == (2, "")
    assert err == "error: no method 'lor'; did you mean 'lora'?\n"


def test_command_takes_fields(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "KINDS", KINDS[:1])
    monkeypatch.setattr(check, "PROPERTIES", {"rank": lambda test: f"is {test.method.rank}"})
    code, out, err = command("check", "lora", "--set", "method.rank=3", "--set", "method.alpha=2.5")
    assert (code, err) == (0, "")
    assert "rank                       is 3" in out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("recipe.lr=1", "--set recipe.lr=1: check has no recipe; expected method.FIELD=VALUE"),
        ("method.rnk=3", "method lora: no field 'rnk'; did you mean 'rank'?"),
        ("method.rank=0", "method lora: rank 0, alpha 16.0: both must be positive"),
    ],
)
def test_command_refuses_other_settings(setting: str, message: str, command: Command) -> None:
    assert command("check", "lora", "--set", setting) == (2, "", f"error: {message}\n")
