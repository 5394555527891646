"""Protocols: strict keys, one-line errors, one level of extends, recipes per method and mode."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_records import DATA, toy_protocol

from benchmarks import protocol as protocols
from benchmarks import yaml_files
from benchmarks.cell import make_cell
from benchmarks.errors import UserError
from benchmarks.tasks import load_protocol

SHIPPED = sorted(path.stem for path in protocols.FOLDER.glob("*.yaml"))


def write(folder: Path, name: str = "mine", **changes: Any) -> Path:
    """The toy protocol with changes, as a file."""
    data = yaml_files.merge(yaml_files.read(DATA / "toy.yaml"), {"name": name} | changes)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def message(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        load_protocol(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_protocol_loads_and_says_what_it_is(name: str) -> None:
    protocol = load_protocol(name)
    assert protocol.name == name
    assert protocol.note, "a table of this protocol has to say what its numbers are about"
    for mode in protocol.recipes:
        for method in protocol.methods:
            protocol.recipe_for(method, mode)


def test_smoke_differs_from_mini_in_size_only() -> None:
    mini, smoke = load_protocol("mini_gtav"), load_protocol("smoke_gtav")
    assert smoke.recipe.iterations < 10
    assert smoke.recipe.model_copy(
        update={"iterations": 0, "checkpoint_every": 0}
    ) == mini.recipe.model_copy(update={"iterations": 0, "checkpoint_every": 0})
    assert (smoke.backbone, smoke.head, smoke.augment) == (mini.backbone, mini.head, mini.augment)
    assert all(domain.limit for domain in (*smoke.validation, *smoke.targets))


def test_unknown_protocol_names_the_closest_one() -> None:
    assert message("mini_gta") == "no protocol 'mini_gta'; did you mean 'mini_gtav'?"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"recipe": {"iteration": 3}}, "unknown key recipe.iteration; did you mean 'iterations'?"),
        ({"heads": {}}, "unknown key heads; did you mean 'head'?"),
        (
            {"targets": [{"domain": "a", "card": "b", "split": "c", "limt": 1}]},
            "unknown key targets.0.limt; did you mean 'limit'?",
        ),
        (
            {"methods": {"lora": {"recipe": {"backbone_l": 1.0}}}},
            "unknown key methods.lora.recipe.backbone_l; did you mean 'backbone_lr'?",
        ),
        ({"recipe": {"iterations": "many"}}, "recipe.iterations: input should be a valid integer"),
        ({"recipe": {"iterations": "20"}}, "recipe.iterations: input should be a valid integer"),
        ({"recipe": {"batch": True}}, "recipe.batch: input should be a valid integer"),
        ({"recipe": {"lr": -1.0}}, "recipe.lr: input should be greater than 0"),
        ({"recipe": {"ema": {"momentum": 2.0, "start": 0}}}, "recipe.ema.momentum: input should"),
        ({"recipe": {"schedule": "multistep"}}, "recipe: milestones belong to"),
        ({"placements": {"all": 1.5}}, "placements.all: 1.5 is neither a block index"),
        ({"default_placement": "al"}, "default_placement 'al' is not a placement; did you mean"),
        ({"selection": "target-oracle"}, "selection: input should be 'last' or 'source-val'"),
        ({"backbone": {"weights": "w.safetensors"}}, "backbone: sha256 is required with weights"),
        ({"name": "other"}, "name: 'other' differs from the file's name"),
    ],
)
def test_wrong_key_or_value_is_one_line_with_file_and_key(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    name = changes.pop("name", "mine")
    path = write(tmp_path, name, **changes).rename(tmp_path / "mine.yaml")
    assert message(path).startswith(f"{path}: {expected}")


def test_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((DATA / "toy.yaml").read_text() + "version: 4\n")
    assert "key 'version' is given twice" in message(path)


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nversion: [1\n")
    assert message(path).startswith(f"{path}: line ")


def test_domain_scored_twice_is_refused(tmp_path: Path) -> None:
    target = {"domain": "gtav_held_out", "card": "gtav", "split": "train"}
    assert "'gtav_held_out' is scored twice" in message(write(tmp_path, targets=[target]))


def test_extends_merges_key_by_key(tmp_path: Path) -> None:
    base = write(tmp_path, "base")
    path = tmp_path / "child.yaml"
    path.write_text(f"extends: {base}\nname: child\nrecipe: {{batch: 7}}\nseeds: [5]\n")
    child, parent = load_protocol(path), load_protocol(base)
    assert child.recipe == parent.recipe.model_copy(update={"batch": 7})
    assert child.seeds == (5,)


def test_second_level_of_extends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(f"extends: {write(tmp_path, 'a')}\nname: b\n")
    (tmp_path / "c.yaml").write_text(f"extends: {tmp_path / 'b.yaml'}\nname: c\n")
    assert "one level is allowed" in message(tmp_path / "c.yaml")


def test_number_with_exponent_but_no_dot_is_a_number() -> None:
    assert yaml_files.parse("[1e-3, 1E+2, 1e5x]", "here") == [0.001, 100.0, "1e5x"]


def test_recipe_goes_from_protocol_over_method_and_mode_to_command_line() -> None:
    protocol = toy_protocol()
    assert protocol.recipe_for("soma", "controlled") == protocol.recipe
    assert protocol.recipe_for("lora", "controlled").backbone_lr == 3e-3
    published = protocol.recipe_for("lora", "as-published")
    assert (published.backbone_lr, published.weight_decay, published.lr) == (3e-3, 0.01, 2e-4)
    assert protocol.changes_for("lora", "as-published").fields == {"rank": 4}
    assert protocol.recipe_for("soma", "as-published").lr == protocol.recipe.lr
    assert protocol.recipe_for("lora", "as-published", {"lr": 0.5}).lr == 0.5


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(UserError, match="no recipe mode 'as-publishd'; did you mean 'as-publ"):
        toy_protocol().recipe_for("lora", "as-publishd")


def test_protocol_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        toy_protocol().version = 9


ORDER = "list the blocks in rising order, each once"


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        ("mini_gtav", {"backbone": {"features": [8, 6, 4, 2]}}, f"[8, 6, 4, 2]: {ORDER}"),
        ("mini_gtav", {"backbone": {"features": [2, 4, 4, 8]}}, f"[2, 4, 4, 8]: {ORDER}"),
        ("mini_sdgod", {"backbone": {"features": [8, 8]}}, f"[8, 8]: {ORDER}"),
        ("mini_gtav", {"backbone": {"features": []}}, "[]: list at least one block"),
        ("soma_gtav", {"head": {"scales": [0.25, 0.5, 1.0, 2.0]}}, "list them fine to coarse"),
        ("mini_sdgod", {"head": {"pyramid": {"scales": [0.5, 1.0, 2.0]}}}, "half of the one"),
    ],
)
def test_list_that_is_empty_or_whose_order_would_not_be_kept_is_refused(
    tmp_path: Path, base: str, changes: dict, expected: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"extends": base, "name": "mine"} | changes))
    text = message(path)
    assert text.startswith(f"{path}: {next(iter(changes))}")
    assert expected in text


@pytest.mark.parametrize(
    ("base", "path", "listed"),
    [
        ("mini_gtav", "augment.short_sides", [64, 96]),
        ("mini_gtav", "input.mean", [0.4, 0.5, 0.6]),
        (
            "mini_gtav",
            "source",
            [{"domain": card, "card": card, "split": "train"} for card in ("gtav", "synthia")],
        ),
        ("mini_sdgod", "head.rpn.anchors", [[8], [16], [32]]),
        ("mini_sdgod", "head.rpn.ratios", [0.5, 1.0, 2.0]),
        ("mini_sdgod", "head.roi.weights", [10.0, 10.0, 5.0, 5.0]),
    ],
)
def test_another_order_is_another_cell(
    tmp_path: Path, base: str, path: str, listed: list[Any]
) -> None:
    digests = set()
    for order in (listed, listed[::-1]):
        changes: Any = order
        for key in reversed(path.split(".")):
            changes = {key: changes}
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump({"extends": base, "name": "mine"} | changes))
        digests.add(make_cell(load_protocol(file), "freeze", seed=0, data={"gtav": "0"}).digest)
    assert len(digests) == 2
