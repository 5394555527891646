import contextlib
import csv
import math

import pytest
import torch
from paths import DATA
from timm.layers import RmsNorm
from tiny_worlds import tiny_protocol
from torch import nn

from benchmarks.optim import (
    EMA,
    AdamW,
    annealed,
    learning_rate_share,
    make_optimizer,
    multistep,
    require_holds_trainable,
    resolve_decay_schedule,
    set_rates,
    warm_up,
)
from benchmarks.protocol import Recipe
from benchmarks.segmentation import task as segmentation


def recipe(**changes):
    given = {"iterations": 40000, "batch": 4, "lr": 1e-4, "backbone_lr": 5e-5, "weight_decay": 0.05}
    return Recipe(**(given | {"weight_decay_schedule": "cosine"} | changes))


# The official configs, and what they say about learning rate, warm-up and length.
CONFIGS = {
    "dgss_gtav_512": recipe(),
    "dgss_cityscapes_to_bm_512": recipe(warmup=1500, warmup_start=1e-2),
    "dgss_cityscapes_to_acdc_1024": recipe(warmup=10000, warmup_start=1e-6),
    "dgss_gsu_c16_1024": recipe(iterations=4000, lr=1e-5, backbone_lr=5e-6),
    "sdgod": recipe(lr=2e-4, backbone_lr=1e-4),
}
ROWS = list(csv.DictReader((DATA / "schedules.csv").open()))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4))
        self.backbone.mag = nn.Parameter(torch.ones(4))
        self.backbone.lora_a = nn.Parameter(torch.arange(4.0))
        self.norm = nn.GroupNorm(2, 4)
        self.queries = nn.Embedding(5, 4)
        self.rms = RmsNorm(4)
        # names of a user's parameters that only end like those of Mask2Former's head
        self.backbone.level_embed = nn.Parameter(torch.zeros(3, 4))
        self.backbone.queries_features = nn.Linear(4, 4, bias=False)
        self.out = nn.Linear(4, 2)


RULES = {"backbone.mag": "none", "backbone.lora_a": "to_init"}


def names_by_group(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        group["name"]: [names[id(parameter)] for parameter in group["params"]]
        for group in optimizer.param_groups
    }


def share(config, iteration):
    if config != "sdgod":
        return learning_rate_share(CONFIGS[config], iteration)
    if iteration < 1500:
        return warm_up(iteration, 1500, 1e-2)
    return multistep(iteration, (25500, 33500))


@pytest.mark.parametrize("config", CONFIGS)
def test_schedules_are_those_that_mmengine_computed(config):
    rows = [row for row in ROWS if row["config"] == config]
    assert len(rows) >= 19
    ours = CONFIGS[config]
    base = {
        "wd_backbone": 0.01 if config == "sdgod" else 0.05,
        "wd_head": 0.05,
        "wd_no_decay_group": 0.0,
    }
    for row in rows:
        n = int(row["iteration"])
        got = {
            "lr_backbone": ours.backbone_lr * share(config, n),
            "lr_head": ours.lr * share(config, n),
        }
        for name, start in base.items():
            got[name] = annealed(start, 1e-5, n, ours.iterations)
        for name, value in got.items():
            # 1e-20: mmengine reaches the no-decay column by subtracting from 1e-5, and the rounding
            # of 1e-5 is 1.7e-21; only the very first of those values are small enough to show it.
            assert math.isclose(value, float(row[name]), rel_tol=1e-9, abs_tol=1e-20), (n, name)


def test_set_rates_gives_every_group_its_own():
    model, ours = Net(), CONFIGS["dgss_gtav_512"]
    optimizer = make_optimizer(model, ours, RULES)
    row = next(
        row for row in ROWS if row["config"] == "dgss_gtav_512" and row["iteration"] == "11000"
    )
    set_rates(optimizer, ours, 11000)
    for group in optimizer.param_groups:
        part, rule = group["name"].split()
        decay = row["wd_no_decay_group" if rule == "none" else f"wd_{part}"]
        assert group["lr"] == pytest.approx(float(row[f"lr_{part}"]), rel=1e-9)
        assert group["weight_decay"] == pytest.approx(float(decay), rel=1e-9)


def test_constant_decay_stays_and_method_resolves():
    model = Net()
    by_method = recipe(weight_decay_schedule="method")
    assert resolve_decay_schedule(by_method, True).weight_decay_schedule == "cosine"
    assert resolve_decay_schedule(by_method, False).weight_decay_schedule == "constant"
    assert resolve_decay_schedule(recipe(), False) == recipe()
    constant = resolve_decay_schedule(by_method, False)
    optimizer = make_optimizer(model, constant, {})
    set_rates(optimizer, constant, 39999)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_short_runs_have_finite_rates(iterations, warmup):
    ours = recipe(iterations=iterations, warmup=warmup)
    assert all(0 <= learning_rate_share(ours, n) <= 1 for n in range(iterations))


def test_groups_follow_module_types_and_the_method():
    model = Net()
    model.backbone[2].weight.requires_grad_(False)
    assert names_by_group(model, make_optimizer(model, recipe(), RULES)) == {
        "backbone none": ["backbone.mag", "backbone.1.weight", "backbone.1.bias"],
        "backbone to_init": ["backbone.lora_a"],
        "backbone to_zero": [
            *("backbone.level_embed", "backbone.0.weight", "backbone.0.bias", "backbone.2.bias"),
            "backbone.queries_features.weight",
        ],
        "head none": ["norm.weight", "norm.bias", "queries.weight", "rms.weight"],
        "head to_zero": ["out.weight", "out.bias"],
    }


@pytest.mark.parametrize("queries", [True, False])
@pytest.mark.parametrize("levels", [True, False])
def test_queries_and_levels_of_mask2former_decay_where_the_recipe_says_so(queries, levels):
    model = segmentation.build(tiny_protocol())
    ours = recipe(decay_query_features=queries, decay_level_encoding=levels)
    groups = names_by_group(model, make_optimizer(model, ours, {}))
    embeddings = {
        "head.transformer.queries_features.weight": queries,
        "head.pixel_decoder.level_embed": levels,
        "head.transformer.queries_embedder.weight": False,
        "head.transformer.level_embed.weight": False,
    }
    for name, decays in embeddings.items():
        assert (name in groups["head to_zero"], name in groups["head none"]) == (decays, not decays)
    bare = {name for name in groups["head none"] if "norm" not in name} - set(embeddings)
    owners = {model.get_submodule(name.rpartition(".")[0]) for name in bare}
    assert all(isinstance(owner, nn.GroupNorm) for owner in owners)


def test_the_optimizer_holds_exactly_the_trainable_set():
    model = Net()
    optimizer = make_optimizer(model, recipe(), RULES)
    model.out.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="exactly the trainable"):
        require_holds_trainable(optimizer, model)
    model.out.bias.requires_grad_(True)
    model.extra = nn.Linear(2, 2)  # a method that attaches after the optimizer was built
    with pytest.raises(RuntimeError, match="exactly the trainable"):
        require_holds_trainable(optimizer, model)


def test_an_unknown_decay_rule_is_refused():
    with pytest.raises(ValueError, match="to_ones"):
        make_optimizer(Net(), recipe(), {"backbone.mag": "to_ones"})


def one_step(rule, gradient):
    """The parameter of a net after one step from 2, its start being 5 where there is one."""
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.a = nn.Parameter(torch.tensor([5.0], dtype=torch.float64))
    optimizer = make_optimizer(model, recipe(), {"backbone.a": rule})
    set_rates(optimizer, recipe(backbone_lr=0.1), 0)
    optimizer.param_groups[0]["lr"] = 0.1
    with torch.no_grad():
        model.backbone.a.fill_(2.0)
    model.backbone.a.grad = torch.full_like(model.backbone.a, gradient)
    optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == (0.0 if rule == "none" else 0.05)
    return model.backbone.a.item()


def test_the_three_kinds_of_decay():
    # lr 0.1, decay 0.05; Adam's first step with gradient 1 is -lr.
    assert one_step("none", 0.0) == 2.0
    assert one_step("to_zero", 0.0) == pytest.approx(2 * (1 - 0.1 * 0.05), rel=1e-12)
    assert one_step("to_init", 0.0) == pytest.approx(2 + (5 - 2) * 0.1 * 0.05, rel=1e-12)
    assert one_step("to_init", 1.0) == pytest.approx(2 + (5 - 2) * 0.1 * 0.05 - 0.1, rel=1e-7)


def test_the_starting_values_travel_with_the_state_of_the_optimizer():
    first, second = Net(), Net()
    saved = make_optimizer(first, recipe(), RULES).state_dict()
    with torch.no_grad():
        second.backbone.lora_a.fill_(9.0)
    optimizer = make_optimizer(second, recipe(), RULES)
    optimizer.load_state_dict(saved)
    (group,) = [group for group in optimizer.param_groups if group["name"] == "backbone to_init"]
    assert isinstance(optimizer, AdamW)
    assert torch.equal(group["start"][0], torch.arange(4.0))


def test_the_average_follows_the_weights_first_and_averages_then():
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    average = EMA([weight], momentum=0.25, start=2)
    seen = []
    for done in range(1, 5):
        with torch.no_grad():
            weight.add_(1)
        average.update(done)
        seen.append(average.values[0].item())
    assert seen == [1, 2, 2.25, 2.6875]  # 2 + (3 - 2) / 4, then 2.25 + (4 - 2.25) / 4
    with average.swapped_in():
        assert weight.item() == 2.6875
    assert weight.item() == 4
    assert average.values[0].item() == 2.6875


def test_the_average_comes_back_after_an_error():
    weight = nn.Parameter(torch.ones(1))
    average = EMA([weight], momentum=0.5, start=0)
    average.load([torch.zeros(1)])
    with contextlib.suppress(KeyError), average.swapped_in():
        assert weight.item() == 0
        raise KeyError
    assert weight.item() == 1
