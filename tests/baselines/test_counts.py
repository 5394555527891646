"""Trainable parameters on ViT-L: the integers of published tables and of the definitions."""

import copy

import pytest
import timm
import torch
from torch import nn

from baselines import METHODS
from soma import adapt, merge_qkv, split_qkv

LAST_TWO_THIRDS = 8  # first adapted block of 24


@pytest.fixture(scope="module")
def vit_large() -> nn.Module:
    """DINOv2-L on the meta device: shapes without memory."""
    with torch.device("meta"):
        vit = timm.create_model("vit_large_patch14_dinov2.lvd142m", pretrained=False)
    return vit


@pytest.mark.parametrize("mask_token", [False, True])
@pytest.mark.parametrize(
    ("method", "fields", "count", "counts_mask_token"),
    [
        ("freeze", {}, 0, False),
        ("full", {}, 304_367_616, True),
        ("full", {"start_block": LAST_TWO_THIRDS}, 16 * 12_598_272 + 2048, False),
        ("bitfit", {}, 272_384, False),  # linears 221,184, norms 49,152, final norm, patches
        ("bitfit", {"start_block": LAST_TWO_THIRDS}, 16 * 11_264 + 1024, False),
        ("lora", {}, 7_077_888, False),
        ("lora", {"train_bias": True}, 7_299_072, False),
        ("lora", {"start_block": LAST_TWO_THIRDS}, 4_718_592, False),
        ("lora", {"start_block": 1 / 3}, 4_718_592, False),
        ("lora", {"rank": 8, "targets": ("q", "v")}, 786_432, False),
        ("pissa", {}, 7_077_888, False),
        ("milora", {}, 7_077_888, False),
        ("lora-middle", {}, 7_077_888, False),
        ("mica", {}, 3_538_944, False),
        ("dude", {}, 7_299_072, False),
        ("edora", {}, 368_640, False),
        ("edora", {"rank": 16}, 258_048, False),
        # With its default of all singular values SVF learns k numbers per linear.
        ("svf", {}, 147_456, False),
        ("svf", {"form": "scale"}, 147_456, False),
        ("svf", {"form": "scale+shift"}, 294_912, False),
        ("svf", {"rank": 256}, 36_864, False),
        ("svf", {"rank": 256, "start_block": LAST_TWO_THIRDS}, 24_576, False),
        # The linears alone; then norms (4 x 1024 in each block, 2048 at the end) and positions
        # (37 x 37 patches and the class token) are counted too.
        ("salt", {"rank": 8, "also": ()}, 2_153_664, False),
        ("salt", {"rank": 8}, 2_153_664 + 98_304 + 2_048 + 1370 * 1024, False),
        ("salt", {"rank": 8, "also": (), "start_block": LAST_TWO_THIRDS}, 1_435_776, False),
        ("salt", {"rank": 8, "start_block": LAST_TWO_THIRDS}, 1_435_776 + 67_584, False),
        # Published for a fused qkv: 14,155,776 and 13,369,344; q, k and v are split here.
        ("recyclelora", {}, 15_925_248, False),
        ("recyclelora", {"rank": 34, "sub_rank": 2}, 15_040_512, False),
        ("dora", {}, 7_299_072, False),
        ("dora", {"train_bias": True}, 7_520_256, False),
        ("soma", {}, 4_866_048, False),
        ("soma", {"start_block": 0}, 7_299_072, False),
        ("soma-release", {}, 4_866_048, True),  # with the mask token the published 4,867,072
        ("vpt", {"prompts": 100, "deep": False}, 102_400, False),
        ("vpt-shallow", {"prompts": 100}, 102_400, False),
        ("vpt-shallow", {}, 51_200, False),
        ("vpt", {"prompts": 50}, 1_228_800, False),
        ("vpt", {"prompts": 100}, 2_457_600, False),
        ("vpt", {"prompts": 150}, 3_686_400, False),
        ("vpt", {"prompts": 150, "start_block": LAST_TWO_THIRDS}, 2_457_600, False),
        ("adaptformer", {}, 3_171_840, False),
        ("adaptformer", {"bottleneck": 128}, 6_319_104, False),
        ("adaptformer", {"reads": "own_norm"}, 3_171_840 + 24 * 2048, False),
        ("adaptformer", {"start_block": LAST_TWO_THIRDS}, 2_114_560, False),
        ("rein", {}, 2_530_817, False),  # with the link to the queries the published 2,990,081
        ("rein", {"start_block": LAST_TWO_THIRDS}, 2_386_945, False),
    ],
)
def test_trainable_parameters(
    vit_large, method, fields, count, counts_mask_token, mask_token
) -> None:
    vit = copy.deepcopy(vit_large)
    if mask_token:
        vit.mask_token = nn.Parameter(torch.zeros(1, 1024, device="meta"))
        count += 1024 * counts_mask_token
    split_qkv(vit)
    adapt(METHODS[method](**fields), vit)
    assert sum(p.numel() for p in vit.parameters() if p.requires_grad) == count


def test_full_is_all_of_it_with_the_mask_token(vit_large) -> None:
    vit = copy.deepcopy(vit_large)
    vit.mask_token = nn.Parameter(torch.zeros(1, 1024, device="meta"))
    adapt(METHODS["full"](), vit)
    assert sum(p.numel() for p in vit.parameters() if p.requires_grad) == 304_368_640


def test_fold_and_merge_work_on_meta_tensors(vit_large) -> None:
    vit = copy.deepcopy(vit_large)
    keys = list(vit.state_dict())
    split_qkv(vit)
    method = adapt(METHODS["soma"](), vit)
    method.fold(vit)
    merge_qkv(vit)
    assert list(vit.state_dict()) == keys
