"""Layers of another library, wrapped around a linear, under this library's rules for names."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from soma.backbone import linear_of
from soma.low_rank import LowRankLinear


def adopt(vit: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Make layers that hold a linear as `base_layer` keep names, copies and files in order.

    Pretrained tensors keep the names they had; every new parameter learns; `state_dict` names each
    tensor once and holds what a fresh backbone needs to continue from it.

    Args:
        vit: the backbone with the other library's layers in place.
        before: name of each such layer -> the pretrained weight (out, in), from before it was put
            there.
    """
    seen: set[int] = set()
    for name, weight in before.items():
        layer = vit.get_submodule(name)
        # A new module is in training mode, whatever the backbone around it is in.
        layer.train(layer.base_layer.training)
        _frozen_to_buffers(layer)
        _share(layer, seen)
        _keep_hidden_tensors(layer)
        if not torch.equal(layer.base_layer.weight, weight):
            # A residual. The buffer is the weight's own memory: loading into one restores both.
            layer.register_buffer("residual", layer.base_layer.weight.data)
        _own(layer)


def _frozen_to_buffers(layer: nn.Module) -> None:
    """What does not learn, save for the pretrained tensors, becomes a buffer."""
    for module in layer.modules():
        if module is layer.base_layer:
            continue
        for key, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                # `adapt` lets every new parameter learn, so what is frozen must be none.
                delattr(module, key)
                module.register_buffer(key, parameter.data)


def _share(layer: nn.Module, seen: set[int]) -> None:
    """Tensors that several layers use (a bank of vectors) belong to the first one alone."""
    for key, child in list(layer.named_children()):
        held = {id(tensor) for tensor in (*child.parameters(), *child.buffers())}
        if held and held <= seen:
            delattr(layer, key)
            # A plain attribute: the layer goes on reading it, state dict and optimizer see it once.
            layer.__dict__[key] = child
        seen |= held


def _keep_hidden_tensors(layer: nn.Module) -> None:
    """Tensors in plain dictionaries, indices drawn at the start for instance, become buffers too.

    They share the memory, so that loading in place fills in the dictionary as well.
    """
    for key, value in list(vars(layer).items()):
        if key.startswith("_") or not isinstance(value, dict):
            continue
        for place, tensor in value.items():
            if isinstance(tensor, Tensor):
                layer.register_buffer(f"kept_{key}_{place}", tensor)


def _own(layer: nn.Module) -> None:
    """Hand weight and bias from the inner linear to the layer around it.

    The inner linear goes on reading the same tensors as plain attributes. A deep copy or a pickle
    keeps that tie, since both remember which object they have met before.
    """
    base = layer.base_layer
    for key in ("weight", "bias"):
        base.__dict__[key] = layer._parameters[key] = base._parameters.pop(key)


def low_rank_layer(layer: nn.Module) -> LowRankLinear | None:
    """The layer of this library with the same output as an adopted LoRA or DoRA of peft.

    None for everything else. Dropout is left out, and a residual weight stays one.
    """
    if not (hasattr(layer, "base_layer") and hasattr(layer, "lora_A")):
        return None
    variant = getattr(layer, "lora_variant", {}).get("default")
    a, b, scale = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]
    dora = "default" in layer.lora_magnitude_vector
    if (variant is not None and not dora) or (b.bias is not None and layer.bias is None):
        # Another formula, or a bias that the plain linear has no place for.
        return None
    bias = layer.bias
    if bias is not None and b.bias is not None:
        bias = bias + scale * b.bias
    linear = linear_of(layer.weight.detach(), None if bias is None else bias.detach(), like=layer)
    made = LowRankLinear(linear, a.weight.data, b.weight.data, scale=scale, magnitude=dora)
    if dora:
        made.lora_magnitude.data.copy_(layer.lora_magnitude_vector["default"].weight)
    return made
