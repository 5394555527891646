"""Compares the protocols of SoMA and Rein with the configurations of the official code, by field.

Prints each field that differs and exits 1 if one does, unless the protocol's file declares it under
`Differs:` in the words of `DECLARED`. Not compared is the batch, of which the configurations state
the images on one GPU alone. The checkouts: commits 7ea8c0e and 7da85bc.

    python scripts/audit_official.py SOMA_CHECKOUT REIN_CHECKOUT
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.data.cards import load_card  # noqa: E402
from benchmarks.protocol import FOLDER, Protocol  # noqa: E402
from benchmarks.tasks import load_protocol  # noqa: E402

CODETR = "DGOD/configs/sora/sora_dinov2-L_codetr_dg.py"
SORA, REIN = "configs/sora/sora_dinov2", "configs/dinov2"
CONFIGURATIONS = {
    "soma_gtav": f"{SORA}-L_mask2former.py",
    "soma_gs": f"{SORA}-L_mask2former_gs2cbm.py",
    "soma_gsu": f"{SORA}-L_mask2former_gsu2cbm.py",
    "soma_gsu_1024": f"{SORA}-L_mask2former_gsu2cbm_1024x1024.py",
    "soma_c16_1024": f"{SORA}-L_mask2former_gsuc16_2cbm_1024x1024.py",
    "soma_c2bm": f"{SORA}_mask2former_c2bm.py",
    "soma_acdc_512": f"{SORA}_mask2former_ACDC_512x512_bs4x2.py",
    "soma_acdc_1024": f"{SORA}_mask2former_ACDC_1024x1024_bs4x2.py",
    "rein_gtav": f"{REIN}/rein_dinov2_mask2former_512x512_bs1x4.py",
    "rein_acdc": f"{REIN}/rein_dinov2_mask2former_1024x1024_bs4x2.py",
    "soma_sdgod": CODETR,
    "paper_sdgod": CODETR,
}
# Field -> words under `Differs:` that say of it that it differs.
DECLARED = {
    "head": "the detector",
    "input.padding": "padding is 0 after normalisation, not grey of 114",
    "augment.smallest_image": "source images are never left out for being small",
    "seeds": "no seed is stated there",
    "source.0.holdout": "source images are held out",
    "recipe.backbone_weight_decay": "one weight decay",
    "recipe.weight_decay_schedule": "constant weight decay",
    "recipe.evaluate_at": "one evaluation",
    "placement": "all blocks",
}
_WORDS = {"dict": dict, "int": int, "float": float, "range": range, "list": list, "tuple": tuple}
_WORDS |= {"len": len, "str": str, "True": True, "False": False}


def configuration(path: Path) -> dict[str, Any]:
    """The values of a configuration file of mmengine, with those that it derives from."""
    text, base = path.read_text(encoding="utf-8"), {}
    # A configuration is Python, of someone else: it gets the names that it needs and no import.
    held: dict[str, Any] = {"__builtins__": _WORDS}
    if match := re.search(r"^_base_\s*=\s*(\[.*?\]|\"[^\"]*\"|'[^']*')", text, re.S | re.M):
        # A string or a list of strings, as the pattern has it.
        above = eval(match[1], {"__builtins__": {}})
        for name in [above] if isinstance(above, str) else above:
            base |= configuration((path.parent / name).resolve())
    # mmengine's own syntax for a value of the base, which is no Python.
    text = re.sub(r"\{\{\s*_base_\.(\w+)\s*\}\}", r"_base_values['\1']", text)
    exec(compile(text, str(path), "exec"), held | {"_base_values": base}, own := {})
    own = {key: value for key, value in own.items() if not key.startswith("_")}
    return _merged(base, own)


def _merged(base: Any, own: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(own, dict)) or own.get("_delete_"):
        return own
    return base | {key: _merged(base.get(key), value) for key, value in own.items()}


def _step(pipeline: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((step for step in pipeline if step["type"] == kind), {})


def _pipelines(data: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Of a data set, or of those that it joins."""
    if "pipeline" in data:
        yield data["pipeline"]
    for part in (*data.get("datasets", ()), *filter(None, [data.get("dataset")])):
        yield from _pipelines(part)


def official(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Field of a protocol -> value of the official configuration."""
    model = config["model"]
    yield from _recipe(config)
    yield "backbone.args.img_size", model["backbone"]["img_size"]
    yield "backbone.args.patch_size", model["backbone"]["patch_size"]
    for field in ("mean", "std"):
        yield f"input.{field}", tuple(value / 255 for value in model["data_preprocessor"][field])
    if first := model["backbone"].get("lora_cfg", {}).get("start_lora_idx"):
        yield "placement", first / model["backbone"]["depth"]
    yield "seeds", (config["randomness"]["seed"],) if "randomness" in config else None
    if "decode_head" in model:
        yield from _mask2former(model)
        yield from _augmentation(config)
    else:
        yield "head", model["type"].removeprefix("PEFTBackbone")
        yield from _boxes(config)


def _recipe(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    wrapper, optimizer = config["optim_wrapper"], config["optim_wrapper"]["optimizer"]
    backbone = wrapper["paramwise_cfg"]["custom_keys"].get("backbone", {})
    schedules = {entry["type"]: entry for entry in config["param_scheduler"]}
    lr, decay = optimizer["lr"], schedules.get("CosineAnnealingParamScheduler")
    steps, rise = schedules.get("MultiStepLR"), schedules.get("LinearLR")
    ema = next((hook for hook in config.get("custom_hooks", ()) if hook["type"] == "EMAHook"), None)
    last, every = config["train_cfg"]["max_iters"], config["train_cfg"]["val_interval"]
    factor = backbone.get("decay_mult", 1.0)
    yield "recipe.iterations", last
    yield "recipe.lr", lr
    yield "recipe.backbone_lr", lr * backbone.get("lr_mult", 1.0)
    yield "recipe.betas", optimizer["betas"]
    yield "recipe.eps", optimizer["eps"]
    yield "recipe.weight_decay", optimizer["weight_decay"]
    yield (
        "recipe.backbone_weight_decay",
        None if factor == 1 else factor * optimizer["weight_decay"],
    )
    yield "recipe.weight_decay_schedule", "cosine" if decay else "constant"
    if decay:
        yield "recipe.weight_decay_end", decay["eta_min"]
    yield "recipe.schedule", "multistep" if steps else "poly"
    # mmengine counts them from where the schedule begins.
    if steps:
        yield "recipe.milestones", tuple(steps["begin"] + step for step in steps["milestones"])
    else:
        yield "recipe.power", schedules["PolyLR"]["power"]
    yield "recipe.warmup", rise["end"] if rise else 0
    if rise:
        yield "recipe.warmup_start", rise["start_factor"]
    yield "recipe.clip", wrapper.get("clip_grad", {}).get("max_norm")
    yield "recipe.ema.start", ema.get("begin_iter", 0) if ema else None
    yield "recipe.evaluate_at", tuple(range(every, last, every))


def _mask2former(model: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    head, test = model["decode_head"], model["test_cfg"]
    yield "head.queries", head["num_queries"]
    yield "head.decoder_layers", head["transformer_decoder"]["num_layers"]
    yield "head.encoder_layers", head["pixel_decoder"]["encoder"]["num_layers"]
    ffn = head["transformer_decoder"]["layer_cfg"]["ffn_cfg"]["feedforward_channels"]
    yield "head.feedforward", ffn
    ffn = head["pixel_decoder"]["encoder"]["layer_cfg"]["ffn_cfg"]["feedforward_channels"]
    yield "head.encoder_feedforward", ffn
    yield "head.points", head["train_cfg"]["num_points"]
    yield "head.class_weight", head["loss_cls"]["loss_weight"]
    yield "head.mask_weight", head["loss_mask"]["loss_weight"]
    yield "head.dice_weight", head["loss_dice"]["loss_weight"]
    yield "head.no_object_weight", head["loss_cls"]["class_weight"][-1]
    yield "window.size", test["crop_size"][0]
    yield "window.stride", test["stride"][0]


def _augmentation(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    data = config["train_dataloader"]["dataset"]
    pipeline = config.get("train_pipeline") or next(_pipelines(data))
    crop, resize = _step(pipeline, "RandomCrop"), _step(pipeline, "RandomChoiceResize")
    yield "augment.crop", crop["crop_size"][0]
    yield "augment.max_class_share", crop["cat_max_ratio"]
    yield "augment.flip", _step(pipeline, "RandomFlip")["prob"]
    if resize:
        yield "augment.short_sides", tuple(resize["scales"])
        yield "augment.long_side_max", resize["max_size"]
    yield "augment.photometric", bool(_step(pipeline, "PhotoMetricDistortion"))


def _boxes(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    source, tests = config["train_dataloader"]["dataset"], config["val_dataloader"]["dataset"]
    pipeline, kept = source["pipeline"], source["filter_cfg"]
    resize, crop = _step(pipeline, "RandomResize"), _step(pipeline, "RandomCrop")
    # The official code has the width first.
    yield "augment.base", resize["scale"][::-1]
    yield "augment.scale", resize["ratio_range"]
    yield "augment.crop", crop["crop_size"][0]
    yield "augment.negative_crops", crop["allow_negative_crop"]
    yield "augment.min_side", _step(pipeline, "FilterAnnotations")["min_gt_bbox_wh"][0]
    yield "augment.flip", _step(pipeline, "RandomFlip")["prob"]
    yield "augment.photometric", bool(_step(pipeline, "PhotoMetricDistortion"))
    yield "augment.distortion", config["default_scope"]
    yield "augment.empty", "drop" if kept["filter_empty_gt"] else "keep"
    yield "augment.smallest_image", kept["min_size"]
    yield "input.padding", _step(pipeline, "Pad")["pad_val"]["img"][0]
    elevenths = config["val_evaluator"]["eval_mode"] == "11points"
    yield "metric", "AP50_voc07" if elevenths else "AP50_voc12"
    yield "source.0.files", _files(source)
    yield "source.0.holdout", 0
    for index, test in enumerate(tests["datasets"]):
        domain = f"targets.{index - 1}" if index else "source_test.0"
        yield f"{domain}.files", _files(test)
        yield f"{domain}.size", _step(test["pipeline"], "Resize")["scale"][::-1]
        yield f"{domain}.pad", _step(test["pipeline"], "Pad")["size"]
    yield "targets", len(tests["datasets"]) - 1


def _files(data: dict[str, Any]) -> str:
    """Folder of a data set, and in it the list of its images."""
    return f"{Path(data['data_root']).name}/{data['ann_file']}"


def value(protocol: Protocol, field: str) -> Any:
    """A field of a protocol by its path; None below what is None."""
    if field == "head":
        return type(protocol.head).__name__
    if field == "placement":
        return protocol.placement(protocol.default_placement)["start_block"]
    if field == "targets":
        return len(protocol.targets)
    at: Any = protocol
    for key in field.split("."):
        if key == "files":
            split = load_card(at.card, "boxes").splits[at.split]
            return split.list_file.format(folder=split.folder[0])
        if isinstance(at, tuple):
            at = at[int(key)] if int(key) < len(at) else None
        else:
            at = at.get(key) if isinstance(at, dict) else getattr(at, key, None)
    return at


class Difference(NamedTuple):
    """One field that is not as in the official configuration."""

    field: str
    ours: Any
    theirs: Any
    declared: bool


def compare(name: str, path: Path) -> tuple[int, list[Difference]]:
    """How many fields of a protocol were compared with a configuration, and which differ."""
    protocol, said, made = load_protocol(name), declaration(FOLDER / f"{name}.yaml"), []
    fields = [*official(configuration(path))]
    for field, theirs in fields:
        ours = value(protocol, field)
        if not _same(ours, theirs):
            declared = field in DECLARED and DECLARED[field] in said
            made.append(Difference(field, ours, theirs, declared))
    return len(fields), made


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, tuple) and isinstance(ours, tuple) and len(ours) == len(theirs):
        return all(map(_same, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, float):
        # Products such as 1e-4 x 0.5 may differ from what a file says in their last bit.
        return abs(ours - theirs) < 1e-12
    return ours == theirs


def declaration(file: Path) -> str:
    """What a protocol's file says under `Differs:`, then that of the protocol that it extends."""
    text = file.read_text(encoding="utf-8")
    said = re.search(r"^# Differs:(.*?)(?=^# \w+:|^[^#])", text, re.S | re.M)
    words = " ".join(said[1].replace("\n#", " ").split()) if said else ""
    above = re.search(r"^extends: *(\w+)", text, re.M)
    return f"{words} {declaration(file.with_name(f'{above[1]}.yaml'))}" if above else words


def main(soma: str, rein: str) -> int:
    """Compare all; print what differs, and the count."""
    compared = declared = undeclared = 0
    for name, path in CONFIGURATIONS.items():
        count, made = compare(name, Path(rein if name.startswith("rein") else soma) / path)
        compared += count
        for one in made:
            declared += one.declared
            undeclared += not one.declared
            word = "declared" if one.declared else "NOT DECLARED"
            print(f"{name}: {one.field} is {one.ours!r}, the official one {one.theirs!r}; {word}")
    differ = f"{declared} differ as declared, {undeclared} of {compared} undeclared"
    print(f"{compared} fields of {len(CONFIGURATIONS)} protocols: {differ}")
    return int(undeclared > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
