"""The audit of official configurations, on one of detection that is written here."""

import runpy
from pathlib import Path

import pytest
from paths import ROOT

SOURCE = """
image_size = (1024, 1024)
pipeline = [
    dict(type="RandomResize", scale=image_size, ratio_range=(0.1, 2.0)),
    dict(type="RandomCrop", crop_size=image_size, allow_negative_crop=True),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="Pad", size=image_size, pad_val=dict(img=(114, 114, 114))),
    dict(type="PhotoMetricDistortion"),
]
test = [dict(type="Resize", scale=image_size), dict(type="Pad", size=image_size)]
lists = "VOC2007/ImageSets/Main/"
train_dc = dict(
    data_root="data/daytime_clear", ann_file=lists + "train.txt", pipeline=pipeline,
    filter_cfg=dict(filter_empty_gt=False, min_size=32),
)
tests = [dict(data_root="data/daytime_clear", ann_file=lists + "test.txt", pipeline=test)]
for name in ("Night-Sunny", "dusk_rainy", "night_rainy", "daytime_foggy"):
    tests.append(dict(data_root="data/" + name, ann_file=lists + "train.txt", pipeline=test))
"""
CONFIG = """
_base_ = ["../data.py"]
default_scope = "mmdet"
train_dataloader = dict(batch_size=2, dataset={{_base_.train_dc}})
val_dataloader = dict(dataset=dict(type="ConcatDataset", datasets={{_base_.tests}}))
val_evaluator = dict(type="DGVOCMetric", eval_mode="11points")
model = dict(
    type="PEFTBackboneCoDETR",
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(img_size=1024, patch_size=16, depth=24, lora_cfg=dict(start_lora_idx=8)),
)
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    clip_grad=dict(max_norm=35),
    paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.5, decay_mult=0.2)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, begin=0, end=1500),
    dict(type="MultiStepLR", begin=1500, milestones=[24000, 32000]),
    dict(type="CosineAnnealingParamScheduler", eta_min=0.00001),
]
train_cfg = dict(max_iters=40000, val_interval=4000)
"""


@pytest.mark.parametrize(
    ("there", "instead", "undeclared"),
    [
        ("", "", []),
        ("clip_grad=dict(max_norm=35)", "clip_grad=dict(max_norm=1)", ["recipe.clip"]),
        ("milestones=[24000, 32000]", "milestones=[22500, 30500]", ["recipe.milestones"]),
        ("decay_mult=0.2", "decay_mult=1.0", ["recipe.backbone_weight_decay"]),
        ("(0.1, 2.0)", "(0.5, 2.0)", ["augment.scale"]),
        (
            '"dusk_rainy", "night_rainy"',
            '"night_rainy", "dusk_rainy"',
            ["targets.1.files", "targets.2.files"],
        ),
        (
            'type="Resize", scale=image_size',
            'type="Resize", scale=(1280, 720)',
            ["source_test.0.size", *(f"targets.{n}.size" for n in range(4))],
        ),
        ("start_lora_idx=8", "start_lora_idx=12", ["placement"]),
        ('mode="11points"', 'mode="area"', ["metric"]),
    ],
)
def test_a_field_of_detection_that_differs_undeclared_is_seen(
    there: str, instead: str, undeclared: list[str], tmp_path: Path
) -> None:
    audit = runpy.run_path(str(ROOT / "scripts" / "audit_official.py"))
    (tmp_path / "sora").mkdir()
    for path, text in (("data.py", SOURCE), ("sora/config.py", CONFIG)):
        (tmp_path / path).write_text(text.replace(there, instead) if there else text)
    count, made = audit["compare"]("soma_sdgod", tmp_path / "sora" / "config.py")
    assert [one.field for one in made if not one.declared] == undeclared
    declared = {one.field for one in made if one.declared}
    assert declared == {"seeds", "head", "augment.smallest_image", "input.padding"}
    assert count == 53


def test_what_a_file_declares_holds_for_it_and_for_those_that_extend_it(tmp_path: Path) -> None:
    declaration = runpy.run_path(str(ROOT / "scripts" / "audit_official.py"))["declaration"]
    (tmp_path / "base.yaml").write_text(
        "# Source: x\n# Differs:  a and\n#    b\n# Cost: c\nname: base\n"
    )
    (tmp_path / "own.yaml").write_text("# Differs:  as base; d\nextends: base\nname: own\n")
    assert declaration(tmp_path / "base.yaml") == "a and b"
    assert declaration(tmp_path / "own.yaml") == "as base; d a and b"
