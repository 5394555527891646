"""The protocols of the real data sets, against what the official configurations say."""

import csv
import math
import re

import pytest
import torch
from paths import DATA
from torch import nn

from benchmarks import protocol as protocols
from benchmarks.cell import make_cell
from benchmarks.optim import make_optimizer, resolve_decay_schedule, set_rates
from benchmarks.protocol import Protocol
from benchmarks.report import spec as table_spec
from benchmarks.segmentation.heads import pixel_segmenter
from benchmarks.tasks import load_protocol
from benchmarks.yaml_files import differences

SHIPPED = sorted(path.stem for path in protocols.FOLDER.glob("*.yaml"))
PAPER = [name for name in SHIPPED if name.startswith(("paper_", "soma_", "rein_"))]
TABLES = sorted(path.stem for path in table_spec.FOLDER.glob("*.yaml"))
ROWS = list(csv.DictReader((DATA / "schedules.csv").open()))
SCHEDULES = {
    "dgss_gtav_512": "soma_gtav",
    "dgss_cityscapes_to_bm_512": "soma_c2bm",
    "dgss_cityscapes_to_acdc_1024": "soma_acdc_1024",
    "dgss_gsu_c16_1024": "soma_c16_1024",
    "sdgod": "soma_sdgod",
}
# Typed from the configurations: images per step over all GPUs, steps, first step of the average,
# steps between validations, side of a crop, stride of the windows, rates of head and backbone.
PUBLISHED = {
    "soma_gtav": (4, 40_000, 12_000, 4_000, 512, 341, 1e-4, 5e-5),
    "soma_gs": (4, 40_000, None, 4_000, 512, 341, 1e-4, 5e-5),
    "soma_gsu": (4, 40_000, None, 4_000, 512, 341, 1e-4, 5e-5),
    "soma_gsu_1024": (4, 40_000, 16_000, 4_000, 1024, 683, 1e-4, 5e-5),
    "soma_c16_1024": (8, 4_000, None, 400, 1024, 683, 1e-5, 5e-6),
    "soma_c2bm": (8, 40_000, 20_000, 4_000, 512, 341, 1e-4, 5e-5),
    "soma_acdc_1024": (8, 40_000, 20_000, 4_000, 1024, 683, 1e-4, 5e-5),
    "soma_acdc_512": (8, 40_000, 20_000, 4_000, 512, 341, 1e-4, 5e-5),
    "rein_gtav": (4, 40_000, None, 10_000, 512, 341, 1e-4, 1e-4),
    "rein_acdc": (8, 40_000, None, 10_000, 1024, 683, 6e-5, 6e-5),
}


class Net(nn.Module):
    """One parameter of each group that the official configurations tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.queries_embedder = nn.Embedding(3, 2)
        self.out = nn.Linear(2, 2)


@pytest.mark.parametrize("name", SHIPPED)
def test_header_says_source_command_cost_and_what_to_expect(name: str) -> None:
    lines = (protocols.FOLDER / f"{name}.yaml").read_text().splitlines()
    header = lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]
    found = [match[1] for line in header if (match := re.match(r"# (\w+): +\S", line))]
    assert found[:4] == ["Source", "Command", "Cost", "Expected"]
    official = name.startswith(("soma_", "rein_")) or name == "paper_sdgod"
    assert found[4:] == (["Differs"] if official else [])


@pytest.mark.parametrize("config", SCHEDULES)
def test_every_group_follows_the_schedule_that_mmengine_computed(config: str) -> None:
    protocol = load_protocol(SCHEDULES[config])
    recipe = resolve_decay_schedule(protocol.recipe_for("soma", "controlled"), True)
    optimizer = make_optimizer(Net(), recipe, {})
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert set(groups) == {f"{p} {r}" for p in ("backbone", "head") for r in ("to_zero", "none")}
    rows = [row for row in ROWS if row["config"] == config]
    assert len(rows) >= 19
    for row in rows:
        set_rates(optimizer, recipe, int(row["iteration"]))
        for name, group in groups.items():
            part, rule = name.split()
            decay = row["wd_no_decay_group" if rule == "none" else f"wd_{part}"]
            pairs = (group["lr"], row[f"lr_{part}"]), (group["weight_decay"], decay)
            for ours, theirs in pairs:
                # 1e-20: see test_recipe, the rounding of mmengine's recurrence near zero
                assert math.isclose(ours, float(theirs), rel_tol=1e-9, abs_tol=1e-20), (name, row)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_of_a_configuration(name: str) -> None:
    protocol = load_protocol(name)
    recipe, augment = protocol.recipe, protocol.augment
    start, every = recipe.ema.start if recipe.ema else None, recipe.evaluate_at[0]
    found = (recipe.batch, recipe.iterations, start, every, augment.crop, protocol.window.stride)
    assert (*found, recipe.lr, recipe.backbone_lr) == PUBLISHED[name]
    assert recipe.evaluate_at == tuple(range(every, recipe.iterations, every))
    assert protocol.window.size == augment.crop == protocol.backbone.args["img_size"]
    assert recipe.weight_decay == 0.05
    soma = name.startswith("soma")
    assert recipe.weight_decay_schedule == ("cosine" if soma else "constant")
    assert recipe.decay_query_features != soma
    assert not protocol.recipe_for("freeze", "controlled").decay_query_features
    assert recipe.decay_level_encoding
    assert protocol.default_placement == ("last-two-thirds" if soma else "all")
    assert recipe.clip is None
    assert (protocol.head.initialisation, protocol.head.count_unlabelled) == ("mmdet", True)


def test_domains_scored_are_those_of_the_configuration() -> None:
    """Rein's evaluates Cityscapes beside ACDC, which no average holds; SoMA's does not."""
    conditions = ["acdc_fog", "acdc_night", "acdc_rain", "acdc_snow"]
    for name in PUBLISHED:
        scored = [domain.domain for domain in load_protocol(name).scored_domains]
        if "acdc" in name:
            assert scored == ["cityscapes"] * name.startswith("rein") + conditions
        else:
            own = [] if name == "soma_c2bm" else ["cityscapes"]
            assert scored == [*own, "bdd100k", "mapillary"]


def test_frozen_and_full_rows_follow_their_own_configurations() -> None:
    protocol = load_protocol("soma_gtav")
    for method, rate in (("freeze", 5e-5), ("full", 1e-6)):
        recipe = protocol.recipe_for(method, "controlled")
        assert (recipe.ema, recipe.weight_decay_schedule) == (None, "constant")
        assert (recipe.lr, recipe.backbone_lr, recipe.weight_decay) == (1e-4, rate, 0.05)
    assert protocol.recipe_for("soma-release", "controlled") == protocol.recipe


def test_sizes_of_training_images() -> None:
    for name in PUBLISHED:
        augment = load_protocol(name).augment
        if name in ("soma_gsu_1024", "soma_c16_1024"):
            assert (augment.short_sides, augment.factor) == ((1024,), (0.5, 2.0))
            assert augment.long_side_max == 2048
            continue
        crop = 1024 if "acdc" in name else 512
        assert augment.short_sides == tuple(int(crop * x * 0.1) for x in range(5, 21))
        assert augment.long_side_max == 4 * crop
        assert augment.factor == (1.0, 1.0)


def test_sizes_of_test_images() -> None:
    def sizes(name: str) -> dict:
        return {domain.domain: domain.size for domain in load_protocol(name).targets}

    high, low, bdd = (1024, 2048), (512, 1024), (720, 1280)
    assert sizes("soma_gtav") == {"cityscapes": high, "bdd100k": bdd, "mapillary": high}
    assert sizes("soma_gsu_1024") == {"cityscapes": high, "bdd100k": high, "mapillary": high}
    assert sizes("rein_gtav") == {"cityscapes": low, "bdd100k": bdd, "mapillary": low}
    assert set(sizes("rein_acdc").values()) == {(1080, 1920)}


def test_controlled_protocols_score_both_resolutions() -> None:
    for name in ("paper_gtav", "paper_gtav_fpn", "paper_gtav_linear", "paper_gs", "paper_gsu"):
        protocol = load_protocol(name)
        assert {domain.domain: domain.size for domain in protocol.extra} == {
            "cityscapes_low": (512, 1024),
            "mapillary_low": (512, 1024),
        }
        assert {protocol.role(domain) for domain in protocol.extra} == {"extra"}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("paper_gtav_fpn", "head, recipe.decay_level_encoding"),
        ("paper_gtav_linear", "backbone.features, head, recipe.decay_level_encoding and 2 more"),
    ],
)
def test_other_heads_differ_from_paper_gtav_in_what_belongs_to_a_head(name: str, keys: str) -> None:
    ours, theirs = load_protocol(name), load_protocol("paper_gtav")
    apart = {"name", "version", "profile", "title", "note", "recipes"}
    dumps = [protocol.model_dump(exclude=apart) for protocol in (ours, theirs)]
    kinds = [dump.pop("head").get("kind") for dump in dumps]
    assert kinds == [ours.head.kind, None]
    for dump, kind in zip(dumps, kinds, strict=True):
        dump["head"] = kind
    assert differences(*dumps) == keys
    assert (ours.recipe.lr, ours.recipe.warmup) == {
        "paper_gtav_fpn": (theirs.recipe.lr, theirs.recipe.warmup),
        "paper_gtav_linear": (1e-3, 1500),
    }[name]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # 4 x (1024 x 256 + 2 x 256) to reduce; seven stages from 256 or 128, with norms; 19 classes
        ("paper_gtav_fpn", 4 * 262_656 + 4 * 295_168 + 3 * 147_712 + 19 * 129),
        ("paper_gtav_linear", 2 * 1024 + 19 * 1025),
    ],
)
def test_other_heads_at_full_size(name: str, parameters: int) -> None:
    """On the maps that a crop of 512 pixels has."""
    protocol, vit = load_protocol(name), nn.Module()
    vit.embed_dim, vit.blocks = 1024, range(24)
    features = protocol.backbone.features
    head = pixel_segmenter(vit, features, protocol.head, 19).head.eval()
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters
    with torch.no_grad():
        logits = head([torch.randn(1, 1024, 32, 32)] * len(features))
    assert logits.shape == (1, 19, *((128, 128) if name.endswith("fpn") else (32, 32)))


@pytest.mark.parametrize("name", PAPER)
def test_mapillary_is_halved_as_in_both_repositories(name: str) -> None:
    for domain in (*load_protocol(name).targets, *load_protocol(name).extra):
        assert (domain.halve == "jpeg") == (domain.card == "mapillary")


def resolved(protocol: Protocol, method: str, mode: str) -> dict:
    return make_cell(protocol, method, seed=protocol.seeds[0], mode=mode, data={}).resolved


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_every_profile_resolves(table: str) -> None:
    spec = table_spec.load_table(table)
    assert {"mini", "smoke", "paper"} <= set(spec.protocols)
    for profile in spec.protocols:
        protocol = spec.protocol(profile)
        rows = {*spec.methods, *(spec.published.methods if spec.published else ())}
        for mode in protocol.recipes:
            for method in rows:
                assert resolved(protocol, method, mode)["recipe_mode"] == mode


def test_as_published_each_row_has_its_own_recipe_and_source() -> None:
    protocol = load_protocol("paper_gtav")
    spec = table_spec.load_table("table1")
    for method in {*spec.methods, *spec.published.methods}:
        assert protocol.changes_for(method, "as-published").source, method
    soma = resolved(protocol, "soma", "as-published")
    assert soma["method"]["fields"]["start_block"] == 8
    assert soma["recipe"] == resolved(load_protocol("soma_gtav"), "soma", "controlled")[
        "recipe"
    ] | {"evaluate_at": []}
    lora = resolved(protocol, "lora", "as-published")
    assert (lora["method"]["fields"]["rank"], lora["method"]["fields"]["start_block"]) == (8, 0)
    assert lora["recipe"]["ema"] is None
    assert resolved(protocol, "lora", "controlled")["method"]["fields"]["rank"] == 16


@pytest.mark.parametrize("name", ["gs", "gsu", "c2bm", "acdc"])
def test_smoke_has_the_domains_of_mini(name: str) -> None:
    mini, smoke = load_protocol(f"mini_{name}"), load_protocol(f"smoke_{name}")
    assert smoke.source == mini.source
    for ours, theirs in zip(
        (*smoke.validation, *smoke.targets), (*mini.validation, *mini.targets), strict=True
    ):
        assert ours == theirs.model_copy(update={"limit": 4})
