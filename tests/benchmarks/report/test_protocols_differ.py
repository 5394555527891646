"""In what protocols differ, on a terminal."""

import pytest

from benchmarks.__main__ import main
from benchmarks.report.protocols import differing
from benchmarks.tasks import load_protocol

NAMES = ("paper_gtav", "soma_gtav", "rein_gtav", "mini_gtav")


def test_fields_that_differ_have_every_protocols_value() -> None:
    made = [load_protocol(name) for name in NAMES]
    lines = dict(differing(made))
    assert lines["recipe.backbone_lr"] == [f"{one.recipe.backbone_lr:g}" for one in made]
    assert lines["recipe.iterations"] == [str(one.recipe.iterations) for one in made]
    assert lines["augment.crop"] == [str(one.augment.crop) for one in made]
    assert lines["targets.cityscapes.size"][1:3] == ["1024, 2048", "512, 1024"]
    assert lines["recipe.ema.momentum"] == ["-", str(made[1].recipe.ema.momentum), "-", "-"]
    assert lines["default_placement"][:2] == ["all", "last-two-thirds"]
    assert lines["validation.gtav_held_out"][:3] == ["gtav train 500", "-", "-"]
    assert not [name for name in lines if name.startswith("validation.gtav_held_out.")]
    assert all(len({*values}) > 1 for values in lines.values())
    same = {"name", "title", "task", "metric", "recipe.optimizer"}
    assert not same & {*lines}
    sections = [name.partition(".")[0] for name in lines]
    assert [*dict.fromkeys(sections)] == [
        s for n, s in enumerate(sections) if n == 0 or sections[n - 1] != s
    ]
    assert sections[-1] == "methods"


@pytest.mark.parametrize("changed", ["recipe", "seeds", "targets", "methods"])
def test_every_part_is_compared(changed: str) -> None:
    one = load_protocol("smoke_gtav")
    value = {
        "recipe": one.recipe.model_copy(update={"warmup": 9876}),
        "seeds": (5, 6, 7),
        "targets": one.targets[:-1],
        "methods": {k: v for k, v in one.methods.items() if k != "soma"},
    }[changed]
    other = one.model_copy(update={changed: value})
    ((name, values),) = differing([one, other])
    assert name.startswith(changed)
    assert values[0] != values[1]
    assert differing([one, one]) == []


def test_two_protocols_beside_each_other_fit_a_terminal(capsys: pytest.CaptureFixture) -> None:
    assert main(["show", "paper_gtav", "--against", "soma_gtav"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split()[:3] == ["field", "paper_gtav", str(load_protocol("paper_gtav").version)]
    assert ["recipe.weight_decay_schedule", "constant", "cosine"] in [one.split() for one in lines]
    assert main(["show", "paper_gtav", "--against", "paper_gtav"]) == 0
    assert capsys.readouterr().out == "paper_gtav and paper_gtav: the same settings\n"
    assert main(["show", "paper_gtav", "--against", "soma_gtv"]) == 2
    assert "soma_gtv" in capsys.readouterr().err
    assert main(["show", "paper_gtav", "--against", "soma_gtav", "--config"]) == 2
    assert "takes no other option" in capsys.readouterr().err
