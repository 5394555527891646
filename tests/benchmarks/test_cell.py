"""Cells: what is part of the digest, --set, methods by name and by file."""

from pathlib import Path
from typing import Any

import pytest
from toy_records import toy_protocol

from benchmarks.cell import Cell, combinations, make_cell, parse_changes, settings_of
from benchmarks.errors import UserError
from benchmarks.methods import code_of, make_method
from benchmarks.yaml_files import Strict, added_field, validate

METHOD_FILE = '''
from dataclasses import dataclass
from typing import ClassVar
from soma.method import Method

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    """A method."""
    source: ClassVar[str] = "here"
    width: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width > 9:
            raise ValueError("width is at most 9")

def attach_nothing() -> None: ...
'''


def cell(method: str = "lora", settings: tuple[str, ...] = (), **changes: Any) -> Cell:
    arguments = {"seed": 0, "data": {"gtav": "aa"}} | changes
    protocol = arguments.pop("protocol", toy_protocol())
    return make_cell(protocol, method, changes=parse_changes(settings), **arguments)


def test_same_cell_has_the_same_digest_and_path() -> None:
    assert cell().digest == cell().digest
    assert len(cell().digest) == 64
    assert cell().path == Path("toy/all/lora/seed0.json")


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"placement": "last-two-thirds"},
        {"mode": "as-published"},
        {"data": {"gtav": "bb"}},
        {"method": "freeze"},
        {"settings": ("recipe.batch=2",)},
        {"settings": ("method.rank=3",)},
        {"protocol": toy_protocol().model_copy(update={"version": 4})},
    ],
)
def test_digest_changes_with_everything_that_decides_numbers(changed: dict[str, Any]) -> None:
    assert cell(**changed).digest != cell().digest


@pytest.mark.parametrize(
    "field",
    [{"title": "other"}, {"note": "other"}, {"seeds": (7,)}, {"data_root": "else"}],
)
def test_digest_does_not_change_with_words(field: dict[str, Any]) -> None:
    protocol = toy_protocol().model_copy(update=field)
    assert cell(protocol=protocol).digest == cell().digest


def test_digest_knows_weights_by_hash_and_not_by_path() -> None:
    def digest(path: str, sha256: str) -> str:
        protocol = toy_protocol()
        weights = protocol.backbone.model_copy(update={"weights": path, "sha256": sha256})
        return cell(protocol=protocol.model_copy(update={"backbone": weights})).digest

    assert digest("/a/w.safetensors", "0" * 64) == digest("b/v.safetensors", "0" * 64)
    assert digest("/a/w.safetensors", "0" * 64) != digest("/a/w.safetensors", "1" * 64)


def test_loader_processes_and_checkpoints_are_not_part_of_the_digest() -> None:
    plain = cell()
    recipe = plain.protocol.recipe.model_copy(update={"loader_workers": 2, "checkpoint_every": 1})
    protocol = toy_protocol().model_copy(update={"recipe": recipe})
    lora = {"lora": protocol.methods["lora"]}
    assert cell(protocol=protocol.model_copy(update={"methods": lora})).digest == plain.digest


def test_a_field_that_came_later_is_not_in_the_digest_at_its_default() -> None:
    class Part(Strict):
        width: int = 3
        depth: int = added_field(2)

    assert Part().model_dump() == {"width": 3}
    assert Part(depth=4).model_dump() == {"width": 3, "depth": 4}


def test_placement_gives_the_start_block_to_every_method() -> None:
    for method in ("full", "lora", "soma"):
        assert cell(method, placement="last-two-thirds").make_method().start_block == pytest.approx(
            1 / 3
        )
        assert cell(method).make_method().start_block == 0


def test_cell_carries_the_resolved_recipe_and_fields() -> None:
    made = cell("lora", ("recipe.iterations=5", "method.alpha=6"))
    assert made.protocol.recipe.iterations == 5
    assert made.protocol.recipe.backbone_lr == 3e-3
    assert (made.make_method().rank, made.make_method().alpha) == (2, 6)


def test_changes_by_set_show_in_label_and_path() -> None:
    one, other = cell("lora", ("method.rank=3",)), cell("lora", ("method.rank=4",))
    assert one.label.startswith("lora+")
    assert len(one.label) == len("lora+") + 8
    assert one.path != other.path
    assert cell(mode="as-published").path == Path("toy/all+as-published/lora/seed0.json")


def test_a_change_to_what_the_protocol_says_anyway_is_none() -> None:
    same = cell("lora", ("method.rank=2", "recipe.backbone_lr=3e-3"))
    assert (same.label, same.digest) == ("lora", cell("lora").digest)
    both = cell("lora", ("method.rank=3", "recipe.backbone_lr=3e-3"))
    assert both.label == cell("lora", ("method.rank=3",)).label


def test_several_values_of_a_setting_are_several_cells() -> None:
    asked = ["method.rank=4, 8", "recipe.lr=1e-3,1e-4", "method.targets=[q,k]"]
    made = [(c["method"], c["recipe"]) for c in combinations(asked)]
    assert made == [
        ({"rank": rank, "targets": ["q", "k"]}, {"lr": lr})
        for rank in (4, 8)
        for lr in (1e-3, 1e-4)
    ]
    for whole in ('method.options={"a": 1, "b": [2, 3]}', "method.name='a,b'", 'method.name="a,b"'):
        assert combinations([whole]) == [parse_changes([whole])]
    assert len(combinations(["data.gtav.exclude=[a, b]"])) == len(combinations([])) == 1


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (
            "lr=1",
            "--set lr=1: expected recipe.FIELD=VALUE, method.FIELD=VALUE or data.",
        ),
        ("recipe.lr", "--set recipe.lr: expected"),
        ("recipe.lrr=1", "unknown key lrr; did you mean 'lr'?"),
        ("recipe.lr=fast", "lr: input should be a valid number"),
        ("method.rang=1", "method lora: no field 'rang'; did you mean 'rank'?"),
        ("method.rank=two", "method lora: field rank = 'two': Input should be a valid integer"),
        ("method.rank=true", "method lora: field rank = True: Input should be a valid integer"),
        ("method.start_block=1", "the placement decides it"),
        ("recipe.lr=[1", "--set recipe.lr=[1:"),
        ("data.gtav.limit=1", "or data.DOMAIN.exclude=NAMES"),
        ("data.exclude=[a]", "or data.DOMAIN.exclude=NAMES"),
        ("data.gtav.exclude=[1]", "expected [NAME, ...], in quotes what reads as a number"),
        ("data.gtav.exclude={a: b}", "expected [NAME, ...]"),
        ("data.gtav.exclude=none.txt", "none.txt: no such file of names to exclude"),
        ("data.bdd.exclude=[a]", "toy: no domain 'bdd'; did you mean 'bdd100k'?"),
    ],
)
def test_wrong_set_is_one_line(setting: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        cell("lora", (setting,))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_method_or_placement_names_the_closest() -> None:
    with pytest.raises(UserError, match="no method 'lor'; did you mean 'lora'"):
        cell("lor")
    with pytest.raises(UserError, match="no placement 'last_two_thirds'; did you mean 'last-two"):
        cell(placement="last_two_thirds")


def test_method_from_a_file_is_part_of_the_digest_with_its_code(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(METHOD_FILE)
    made = cell(f"{file}:Mine", ("method.width=4",))
    assert made.make_method().width == 4
    assert made.label.startswith("own.Mine+")
    assert str(tmp_path) not in str(made.resolved)
    before = made.digest
    file.write_text(METHOD_FILE + "# edited\n")
    assert cell(f"{file}:Mine", ("method.width=4",)).digest == before
    code_of.cache_clear()  # as in another process
    assert cell(f"{file}:Mine", ("method.width=4",)).digest != before


@pytest.mark.parametrize(
    ("spec", "fields", "expected"),
    [
        ("none.py:Mine", {}, "no file none.py; expected path/to/file.py:Class"),
        ("own.py:Min", {}, "own.py: no method class 'Min'; did you mean 'Mine'?"),
        ("own.py:attach_nothing", {}, "no method class 'attach_nothing'"),
        ("own.py:Mine", {"width": 10}, "width is at most 9"),
        ("broken.py:Mine", {}, "broken.py line 1: ModuleNotFoundError: No module named"),
    ],
)
def test_wrong_method_file_is_one_line(
    spec: str, fields: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(METHOD_FILE)
    Path("broken.py").write_text("import no_such_module_here\n")
    with pytest.raises(UserError) as caught:
        make_method(spec, fields)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_left_out_are_the_protocols_part_of_every_row(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("# x: has no label\nb\n\na.png\na\n")
    plain = cell()
    made = cell("lora", (f"data.bdd100k.exclude={names}",))
    assert made.label == "lora"
    assert made.path == plain.path
    assert made.digest != plain.digest
    excluded = {each.domain: each.exclude for each in made.protocol.scored_domains}
    assert excluded == {"gtav_held_out": (), "cityscapes": (), "bdd100k": ("a", "a.png", "b")}
    assert cell("lora", ("data.bdd100k.exclude=[b, a.png, a]",)).digest == made.digest
    assert settings_of(made.resolved["protocol"]) == plain.resolved["protocol"]


def test_images_left_out_of_a_source_are_left_out_of_what_is_held_out_from_it() -> None:
    protocol = cell("lora", ("data.gtav.exclude=['0001']",)).protocol
    assert protocol.source[0].exclude == protocol.validation[0].exclude == ("0001",)
    apart = protocol.source[0].model_copy(update={"exclude": ()})
    values = protocol.model_dump(mode="json", exclude_unset=True)
    values["source"] = [apart.model_dump(mode="json")]
    with pytest.raises(UserError, match="'gtav_held_out': exclude differs"):
        validate(type(protocol), values, "toy")
