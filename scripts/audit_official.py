"""Compares the protocols of SoMA and Rein with the configurations of the official code, by field.

Prints each field that differs, and exits 1 if one does. Not compared is the batch, of which the
configurations state the images on one GPU alone; what else is known to differ stands under
`Differs:` in the protocol's file. The checkouts: commits 7ea8c0e and 7da85bc.

    python scripts/audit_official.py SOMA_CHECKOUT REIN_CHECKOUT
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.segmentation.settings import SegmentationProtocol  # noqa: E402
from benchmarks.tasks import load_protocol  # noqa: E402

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
}
_WORDS = {"dict": dict, "int": int, "float": float, "range": range, "list": list, "tuple": tuple}
_WORDS |= {"len": len, "str": str, "True": True, "False": False}


def configuration(path: Path) -> dict[str, Any]:
    """The values of a configuration file of mmengine, with those that it derives from."""
    text, base = path.read_text(encoding="utf-8"), {}
    held: dict[str, Any] = {"__builtins__": _WORDS}
    if match := re.search(r"^_base_\s*=\s*(\[.*?\]|\"[^\"]*\"|'[^']*')", text, re.S | re.M):
        above = eval(match[1], {"__builtins__": {}})
        for name in [above] if isinstance(above, str) else above:
            base |= configuration((path.parent / name).resolve())
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
    wrapper, head, test = config["optim_wrapper"], config["model"]["decode_head"], config["model"]
    multiple = wrapper["paramwise_cfg"]["custom_keys"].get("backbone", {}).get("lr_mult", 1.0)
    schedules = {entry["type"]: entry for entry in config["param_scheduler"]}
    lr, decay = wrapper["optimizer"]["lr"], schedules.get("CosineAnnealingParamScheduler")
    ema = next((hook for hook in config.get("custom_hooks", ()) if hook["type"] == "EMAHook"), None)
    last, every = config["train_cfg"]["max_iters"], config["train_cfg"]["val_interval"]
    yield "recipe.iterations", last
    yield "recipe.lr", lr
    yield "recipe.backbone_lr", lr * multiple
    yield "recipe.weight_decay", wrapper["optimizer"]["weight_decay"]
    yield "recipe.weight_decay_schedule", "cosine" if decay else "constant"
    yield "recipe.power", schedules["PolyLR"]["power"]
    yield "recipe.ema.start", ema.get("begin_iter", 0) if ema else None
    yield "recipe.evaluate_at", tuple(range(every, last, every))
    yield "recipe.warmup", schedules.get("LinearLR", {}).get("end", 0)
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
    yield "backbone.args.img_size", test["backbone"]["img_size"]
    yield "window.size", test["test_cfg"]["crop_size"][0]
    yield "window.stride", test["test_cfg"]["stride"][0]
    yield "seeds", (config["randomness"]["seed"],)
    yield from _augmentation(config)


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


def value(protocol: SegmentationProtocol, field: str) -> Any:
    """A field of a protocol by its path; None below what is None."""
    at: Any = protocol
    for key in field.split("."):
        at = at.get(key) if isinstance(at, dict) else getattr(at, key, None)
    return at


def main(soma: str, rein: str) -> int:
    """Compare all; print what differs, and the count."""
    compared = differing = 0
    for name, path in CONFIGURATIONS.items():
        protocol = load_protocol(name)
        config = configuration(Path(rein if name.startswith("rein") else soma) / path)
        for field, theirs in official(config):
            compared += 1
            ours = value(protocol, field)
            if ours != theirs and not (isinstance(ours, float) and abs(ours - theirs) < 1e-12):
                differing += 1
                print(f"{name}: {field} is {ours!r}, the official one {theirs!r}")
    print(f"{compared} fields of {len(CONFIGURATIONS)} protocols, {differing} differ")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
