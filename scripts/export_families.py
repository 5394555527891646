"""Exports all methods on backbones of many families of timm and runs what was written.

Prints how many of them came out right, were refused, or do not apply, for peft and for plain
weights, and each that came out wrong. Random weights, two blocks. Exits 1 if one is wrong.

    python scripts/export_families.py [FAMILIES]      # such as beit_base_patch16_224,...
"""

import copy
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import peft
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from baselines import METHODS  # noqa: E402
from soma import NotApplicable, NotFoldable, adapt, split_qkv  # noqa: E402
from soma.export import NotExportable, export_folded, export_peft  # noqa: E402

FAMILIES = (
    *("vit_small_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"),
    *("vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb", "deit_small_patch16_224"),
    *("deit_small_distilled_patch16_224", "deit3_small_patch16_224", "flexivit_small"),
    *("vit_base_patch16_clip_224", "vit_base_patch16_siglip_224", "vit_base_patch16_224_miil"),
    *(
        "vit_small_patch16_rope_224",
        "vit_small_patch16_rope_mixed_224",
        "vit_pe_core_tiny_patch16_384",
    ),
    *(
        "vit_relpos_small_patch16_224",
        "vit_srelpos_small_patch16_224",
        "vit_wee_patch16_reg1_gap_256",
    ),
    *("beit_base_patch16_224", "beitv2_base_patch16_224", "eva02_tiny_patch14_224"),
    *("eva02_large_patch14_224", "eva_giant_patch14_224", "samvit_base_patch16", "cait_xxs24_224"),
    *(
        "xcit_tiny_12_p16_224",
        "vit_base_r50_s16_224",
        "aimv2_large_patch14_224",
        "naflexvit_base_patch16_gap",
    ),
)
SIZES = {"depth": 2, "num_heads": 2, "embed_dim": 32, "num_classes": 0}
# Of the largest output: what rounding makes of a product in float32.
BOUND = 1e-4


def build(name: str, split: bool) -> nn.Module:
    """A small backbone of a family with random weights, the same on every call."""
    torch.manual_seed(0)
    vit = timm.create_model(name, **SIZES).eval()
    # Away from the start, where biases, layer scales and the like are zero or one: a part that an
    # export leaves out would not show.
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    if split:
        split_qkv(vit)
    return vit


def images_of(vit: nn.Module) -> Tensor:
    """Noise (1, C, H, W) in the size that the backbone takes."""
    size = vit.pretrained_cfg["input_size"]
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outcome(name: str, method: str, form: str) -> str:
    """One of right, refused and n/a, or what is wrong."""
    vit = build(name, split=True)
    plain = {key: value.clone() for key, value in vit.state_dict().items()}
    torch.manual_seed(1)
    fields = {"rank": 4} if "rank" in METHODS[method].__dataclass_fields__ else {}
    try:
        placed = adapt(METHODS[method](start_block=1, **fields), vit)
    except NotApplicable:
        return "n/a"
    for parameter in vit.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))
    images = images_of(vit)
    expected = vit.eval().forward_features(images)
    fresh = build(name, split=False)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if form == "peft":
                export_peft(vit, plain, folder)
                other = peft.PeftModel.from_pretrained(fresh, folder).eval().base_model.model
            else:
                export_folded(placed, copy.deepcopy(vit), Path(folder) / "plain.safetensors")
                fresh.load_state_dict(load_file(Path(folder) / "plain.safetensors"), strict=True)
                other = fresh
        except (NotExportable, NotFoldable) as error:
            return "refused" if str(error) else "refused without a reason"
    error = (other.forward_features(images) - expected).abs().max() / expected.abs().max()
    return "right" if error <= BOUND else f"differs by {error:.1e}"


def main(families: str = "") -> int:
    """Try all; print the counts and what is wrong."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    started, wrong, counts = time.perf_counter(), 0, Counter()
    for name in families.split(",") if families else FAMILIES:
        try:
            build(name, split=True)
        except Exception as error:  # noqa: BLE001 - of timm: sizes that a family does not take
            print(f"{name}: not built ({type(error).__name__}: {error!s:.100})", flush=True)
            continue
        here = Counter[tuple[str, str]]()
        for method in METHODS:
            for form in ("peft", "folded"):
                try:
                    came = outcome(name, method, form)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                    came = f"{type(error).__name__}: {error!s:.200}"
                if came not in ("right", "refused", "n/a"):
                    wrong += 1
                    print(f"{name}, {method}, {form}: {came}", flush=True)
                    came = "wrong"
                here[form, came] += 1
        counts += here
        print(f"{name}: {_words(here)}", flush=True)
    print(f"in all: {_words(counts)}; {wrong} wrong; {time.perf_counter() - started:.0f} s")
    return int(wrong > 0)


def _words(counts: Counter[tuple[str, str]]) -> str:
    return ", ".join(f"{form} {came} {count}" for (form, came), count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
