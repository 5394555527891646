"""Trained adapters in the formats of others: Hugging Face peft's LoRA, and plain weights.

The backbone was adapted with q, k and v apart; both formats are for the one with a fused `qkv`.
Needs the package safetensors, not peft.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soma.adopt import low_rank_layer
from soma.backbone import SplitQKV, linear_of, merge_qkv, patch_size, replace_module
from soma.checkpoint import write_tensors, write_whole
from soma.low_rank import NORM_FLOOR, LowRankLinear
from soma.method import Method

# How far a frozen weight may be from the pretrained one, relative to its largest entry.
TOLERANCE = 1e-5
# How far the output with the exported adapter may be from the trained one, relative likewise.
OUTPUT = 1e-4


class NotExportable(Exception):
    """The format cannot hold what was trained; the message says what."""


def export_peft(vit: nn.Module, plain: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, which peft loads.

    `peft.PeftModel.from_pretrained(backbone, folder)` on the pretrained backbone then computes what
    `vit` does. Factors that were subtracted become B' = [B, -B0], A' = [A; A0], of twice the rank;
    q, k and v one pair of blocks on the fused linear; trained biases the bias of peft's B. That it
    does is measured before anything is written, on an image of noise.

    Args:
        vit: the adapted, unfolded backbone, by a method of `LowRank` or by peft's LoRA.
        plain: its state dict from before it was adapted, weights (out, in), q, k and v apart as in
            `vit`.
        folder: where to; made if need be.

    Raises:
        NotExportable: what was trained is no low-rank update of linears, or peft has no place for
            it, or would not run it.
    """
    vit = with_own_layers(vit)
    config, tensors = peft_adapter(vit, plain)
    _require_same_output(vit, plain, config, tensors)
    folder = Path(folder)
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_whole(folder / "adapter_config.json", lambda file: file.write_text(text, "utf-8"))


def with_own_layers(vit: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with a `LowRankLinear` in the place of peft's LoRA."""
    vit = copy.deepcopy(vit).eval()
    for name, module in list(vit.named_modules()):
        if (layer := low_rank_layer(module)) is not None:
            replace_module(vit, name, layer)
    return vit


def export_folded(method: Method, vit: nn.Module, path: str | Path) -> None:
    """Fold the method, fuse q, k and v, and write the plain backbone's weights; `vit` changes.

    Raises:
        NotFoldable: there is no plain form.
    """
    method.fold(vit)
    merge_qkv(vit)
    write_tensors(Path(path), vit.state_dict(), {"format": "pt"})


@torch.no_grad()
def peft_adapter(
    vit: nn.Module, plain: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of `export_peft`: A (rank, in), B (out, rank) and so on.

    Raises:
        NotExportable: what was trained is no low-rank update of linears, or peft has no place for
            it.
    """
    layers = {n: m for n, m in vit.named_modules() if isinstance(m, LowRankLinear)}
    require_low_rank(vit, plain, layers)
    dora = any(layer.lora_magnitude is not None for layer in layers.values())
    biased = any(
        layer.bias is not None and not torch.equal(layer.bias, plain[f"{name}.bias"])
        for name, layer in layers.items()
    )
    if biased and dora:
        raise NotExportable("biases were trained, and peft's DoRA has no place for them")
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    tensors: dict[str, Tensor] = {}
    for target, parts in _targets(vit, layers).items():
        a, b, scale = factors_of(parts)
        ranks[target], alphas[target] = len(a), scale * len(a)
        prefix = f"base_model.model.{target}"
        tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
        if dora:
            rows = [_lengths(part) for part in parts.values()]
            tensors[f"{prefix}.lora_magnitude_vector"] = torch.cat(rows)
        if biased:
            # peft scales what its B gives, the bias with it.
            change = [_bias_change(name, part, plain) / scale for name, part in parts.items()]
            tensors[f"{prefix}.lora_B.bias"] = torch.cat(change)
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": list(ranks),
        "use_dora": dora,
        "lora_bias": biased,
        "bias": "none",
        "inference_mode": True,
    }
    return config, tensors


def require_low_rank(
    vit: nn.Module, plain: Mapping[str, Tensor], layers: Mapping[str, LowRankLinear]
) -> None:
    """Refuse a backbone in which more than factors and biases of `layers` was trained.

    Raises:
        NotExportable: something else differs from `plain`, its state dict before it was adapted,
            with weights (out, in).
    """
    if not layers:
        raise NotExportable("the method adds no low-rank updates of linears")
    for name, value in vit.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if owner not in layers:
            if name not in plain:
                raise NotExportable(f"{name} is no low-rank update of a linear")
            if not torch.equal(value, plain[name]):
                raise NotExportable(f"{name} was trained, and peft's LoRA has no place for it")
        elif leaf == "weight":
            layer, error = layers[owner], value - plain[name]
            if type(layer) is not LowRankLinear:
                raise NotExportable(f"{owner} is a {type(layer).__name__}, of another form")
            if layer.lora_a0 is not None:
                error = error + layer.scale * (layer.lora_b0 @ layer.lora_a0)
            if error.abs().max() > TOLERANCE * plain[name].abs().max():
                raise NotExportable(f"{name} is not the pretrained one")


def _targets(
    vit: nn.Module, layers: Mapping[str, LowRankLinear]
) -> dict[str, dict[str, nn.Linear]]:
    """Name of each linear of the plain backbone -> names and modules of its parts, in order."""
    targets: dict[str, dict[str, nn.Linear]] = {}
    for name, layer in layers.items():
        above, _, _ = name.rpartition(".")
        fused = vit.get_submodule(above)
        if isinstance(fused, SplitQKV):
            targets[above] = {f"{above}.{leaf}": part for leaf, part in fused.named_children()}
        else:
            targets[name] = {name: layer}
    return targets


def factors_of(parts: Mapping[str, nn.Linear]) -> tuple[Tensor, Tensor, float]:
    """A (rank, in), block-structured B (out, rank) and the scale; the sizes are sums over parts.

    They are those of the update of the pretrained weight: factors that were subtracted double them.
    """
    scale = next(part.scale for part in parts.values() if isinstance(part, LowRankLinear))
    rows_a, blocks = [], []
    for part in parts.values():
        if not isinstance(part, LowRankLinear):
            # A third that is not adapted: it has rows in the fused linear, and no direction.
            blocks.append(part.weight.new_zeros(part.out_features, 0))
            continue
        a, b = part.lora_a, part.left()
        if part.lora_a0 is not None:
            a, b = torch.cat([a, part.lora_a0]), torch.cat([b, -part.lora_b0], dim=1)
        rows_a.append(a)
        # peft has one alpha per linear: where the thirds differ in scale, B takes the rest.
        blocks.append(b * (part.scale / scale))
    return torch.cat(rows_a), torch.block_diag(*blocks), scale


def _lengths(part: nn.Linear) -> Tensor:
    """DoRA's length per row; the row's own where nothing is adapted, which changes nothing."""
    if isinstance(part, LowRankLinear) and part.lora_magnitude is not None:
        return part.lora_magnitude
    if isinstance(part, LowRankLinear):
        raise NotExportable("lengths of rows learn in some linears and not in others")
    return part.weight.norm(dim=1).clamp_min(NORM_FLOOR)


def _bias_change(name: str, part: nn.Linear, plain: Mapping[str, Tensor]) -> Tensor:
    if part.bias is None:
        raise NotExportable(f"biases were trained, and peft wants one in {name} too")
    return part.bias - plain[f"{name}.bias"]


@torch.no_grad()
def _require_same_output(
    vit: nn.Module,
    plain: Mapping[str, Tensor],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Run the adapter as peft does, its layers in the place of the plain backbone's linears.

    Raises:
        NotExportable: the plain backbone passes a layer by, or computes something else.
    """
    other, run = copy.deepcopy(vit), set()
    for name, layer in list(other.named_modules()):
        if isinstance(layer, LowRankLinear):
            linear = linear_of(plain[f"{name}.weight"], plain.get(f"{name}.bias"), like=layer)
            replace_module(other, name, linear)
    merge_qkv(other)
    for target in config["target_modules"]:
        layer = _as_in_peft(other.get_submodule(target), target, config, tensors)
        layer.register_forward_hook(lambda *_, target=target: run.add(target))
        replace_module(other, target, layer)
    image = _noise(vit)
    expected, features = vit.forward_features(image), other.forward_features(image)
    if idle := sorted(set(config["target_modules"]) - run):
        raise NotExportable(f"the backbone reads the weight of {idle[0]} past peft's layer")
    error = (features - expected).abs().max() / expected.abs().max()
    # Not `>`: NaN has to fail too.
    if not error <= OUTPUT:
        raise NotExportable(f"with peft's layers the output would differ by {error:.1e}")


def _noise(vit: nn.Module) -> Tensor:
    """An image (1, channels, height, width) that the backbone takes, of four patches a side."""
    embed = getattr(vit, "patch_embed", vit)
    size = getattr(embed, "img_size", None) or vit.pretrained_cfg["input_size"][1:]
    if getattr(vit, "dynamic_img_size", False):
        size = [4 * patch for patch in patch_size(vit)]
    first = next((m for m in embed.modules() if isinstance(m, nn.Conv2d)), None)
    channels = first.in_channels if first else vit.pretrained_cfg["input_size"][0]
    shape = channels, *((size, size) if isinstance(size, int) else size)
    # A generator of its own: an export must not move the global one.
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    return image.to(next(vit.parameters()))


def _as_in_peft(
    linear: nn.Linear, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> LowRankLinear:
    own = {
        key.removeprefix(f"base_model.model.{name}."): value
        for key, value in tensors.items()
        if key.startswith(f"base_model.model.{name}.")
    }
    a, b = own["lora_A.weight"], own["lora_B.weight"]
    alpha = config["alpha_pattern"].get(name, config["lora_alpha"])
    layer = LowRankLinear(linear, a, b, scale=alpha / len(a), magnitude=config["use_dora"])
    if config["use_dora"]:
        layer.lora_magnitude.copy_(own["lora_magnitude_vector"])
    if config["lora_bias"]:
        layer.bias = nn.Parameter(layer.bias + layer.scale * own["lora_B.bias"])
    return layer
