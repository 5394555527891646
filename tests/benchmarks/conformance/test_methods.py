"""Wrong methods are caught by the property that is about their mistake; published ones pass."""

import published_methods as published
import pytest
import wrong_methods

from benchmarks.conformance.check import KINDS, PROPERTIES, check_method
from soma import Method

PUBLISHED = (
    published.LoRAXS,
    published.SSF,
    published.Convpass,
    published.RepAdapter,
    published.VeRA,
    published.Butterfly,
)
SLOW = {"torch.compile", "25 steps, resumed"}


@pytest.mark.parametrize("kind", wrong_methods.WRONG, ids=lambda kind: kind.__name__)
def test_a_wrong_method_is_caught(kind: type[Method]) -> None:
    name = wrong_methods.WRONG[kind]
    first, finding = check_method(kind(), "class token", PROPERTIES.keys() - {name})
    assert first.verdict == "pass", first
    assert (finding.property, finding.verdict) == (name, "fail"), finding


@pytest.mark.parametrize("kind", KINDS[2:])
def test_what_the_wrong_methods_derive_from_is_right(kind: str) -> None:
    findings = check_method(wrong_methods.Hooked(), kind, SLOW)
    assert [finding for finding in findings if finding.verdict == "fail"] == []


def test_a_slope_in_float32_is_measured_coarsely() -> None:
    skip = PROPERTIES.keys() - {"slope along the gradient"}
    _, finding = check_method(wrong_methods.ComputesInFloat32(), "class token", skip)
    assert finding.verdict == "pass"
    assert "(at most 3e-02)" in finding.measured


def test_blindness_to_a_shift_of_the_keys_is_measured() -> None:
    skip = PROPERTIES.keys() - {"gradient in the tasks"}
    words = "3 shift all keys alike, attention is blind to that"
    _, finding = check_method(published.SSF(), "class token", skip)
    assert finding.measured.endswith(words)
    _, finding = check_method(published.SSF(), "rotary and SwiGLU", skip)  # a rotation sees it
    assert (finding.verdict, words in finding.measured) == ("pass", False)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("index", range(len(PUBLISHED)), ids=lambda i: PUBLISHED[i].__name__)
def test_a_published_method_passes(index: int, place: int) -> None:
    """On two kinds of backbone, in turn; all properties on one of them."""
    kind = KINDS[(index + 2 * place) % len(KINDS)]
    findings = check_method(PUBLISHED[index](), kind, SLOW if place else ())
    assert [finding for finding in findings if finding.verdict == "fail"] == []
    assert findings[0].verdict == "pass"
