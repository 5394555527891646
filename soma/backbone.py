"""What the methods need to know about a ViT: its blocks, the roles of its linears, q, k, v apart.

A ViT is anything with timm's structure: `vit.blocks`, in each block an `attn` with a fused `qkv` or
with three projections; everything else is not applicable. Names of modules and parameters are those
of `named_modules()`.
"""

import hashlib
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn


class NotApplicable(Exception):
    """The backbone lacks what the method needs; the message says what."""


SIX_TARGETS = ("q", "k", "v", "proj", "fc1", "fc2")
# Leaf name -> role. EVA names its projections apart and gates the first linear of its MLP.
ROLES = {role: role for role in SIX_TARGETS} | {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "fc1_g": "fc1",
    "fc1_x": "fc1",
}
_IN_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def blocks_of(vit: nn.Module) -> nn.ModuleList | nn.Sequential:
    """The blocks of a vision transformer of timm's structure.

    Raises:
        NotApplicable: it has none; the message says what to adapt instead.
    """
    if _has_blocks(vit):
        return vit.blocks
    kind = f"{type(vit).__module__}.{type(vit).__qualname__}"
    held = [name for name, module in vit.named_modules() if name and _is_vit(module)]
    if held:
        raise NotApplicable(f"{kind} is no vision transformer, but holds one: adapt its {held[0]}")
    raise NotApplicable(
        f"{kind} has no `blocks` as timm's vision transformers have: build the model with "
        "timm.create_model, which has ViT, DINOv2, DINOv3, CLIP, SigLIP, EVA, BEiT and SAM"
    )


def _has_blocks(module: nn.Module) -> bool:
    blocks = dict(module.named_children()).get("blocks")
    return isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks) > 0


def _is_vit(module: nn.Module) -> bool:
    return _has_blocks(module) and hasattr(module, "patch_embed")


def depth(vit: nn.Module) -> int:
    """Number of blocks."""
    return len(blocks_of(vit))


def block_index(name: str) -> int | None:
    """Block that the parameter or module `name` lies in; None outside the blocks."""
    match = _IN_BLOCK.search(name)
    return int(match[1]) if match else None


def parameter_role(name: str) -> str | None:
    """Role (q, k, v, proj, fc1, fc2) of the linear in a block that owns the parameter `name`."""
    if block_index(name) is None or ".rel_pos." in name:
        # `patch_embed.proj` is no projection of an attention, nor `rel_pos.mlp` the MLP.
        return None
    return ROLES.get(name.split(".")[-2])


def prefix_tokens(vit: nn.Module) -> int:
    """Number of class and register tokens that stand before the patch tokens.

    Raises:
        NotApplicable: the backbone keeps its tokens as a grid, with none before them.
    """
    if "token_sequence" not in provides(vit):
        raise NotApplicable(
            f"{type(vit).__name__} does not pass a token sequence through its blocks"
        )
    return vit.num_prefix_tokens


def patch_size(vit: nn.Module) -> tuple[int, int]:
    """Height and width of a patch in pixels.

    Raises:
        NotApplicable: the backbone does not say.
    """
    size = getattr(getattr(vit, "patch_embed", None), "patch_size", None)
    if size is None:
        raise NotApplicable(f"{type(vit).__name__} has no patch_embed.patch_size")
    return (size, size) if isinstance(size, int) else tuple(size)


def width(vit: nn.Module) -> int:
    """Length of the tokens, one for all blocks.

    Raises:
        NotApplicable: the backbone states none, as where it grows from stage to stage.
    """
    if not isinstance(getattr(vit, "embed_dim", None), int):
        raise NotApplicable(f"{type(vit).__name__} has no embed_dim, a width of all its tokens")
    return vit.embed_dim


def provides(vit: nn.Module) -> frozenset[str]:
    """What a method can ask for in `needs`.

    "token_sequence": blocks see B x tokens x width. "token_grid": `token_grid` works on it.
    """
    has = {
        "token_sequence": hasattr(vit, "num_prefix_tokens"),
        "token_grid": hasattr(getattr(vit, "patch_embed", None), "dynamic_feat_size"),
    }
    return frozenset(name for name, provided in has.items() if provided)


class TokenGrid(nn.Module):
    """Rows and columns of the patch tokens in the forward pass that began last.

    Blocks see a sequence, and no count of tokens tells a wide image from a high one.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix, self.size = prefix, (0, 0)

    def watch(self, patch_embed: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        """Hook on the patch embedding, which sees the images (B, 3, H, W)."""
        height, width = patch_embed.dynamic_feat_size(args[0].shape[-2:])
        self.size = height, width

    def of(self, x: Tensor) -> tuple[int, int]:
        """(h, w) of tokens in a block: x is B x (prefix + h w) x width, or B x h x w x width.

        Raises:
            RuntimeError: x is of another pass, whose images had another size.
        """
        if x.ndim == 4:
            return x.shape[1], x.shape[2]
        height, width = self.size
        if x.shape[1] != self.prefix + height * width:
            raise RuntimeError(
                f"{x.shape[1]} tokens in the block, {self.prefix} + {height} x {width} in the image"
            )
        return height, width


def token_grid(vit: nn.Module) -> TokenGrid:
    """The grid of the tokens, one module per backbone; blocks keep it to call `of` in their hooks.

    A method that calls this says so: `needs = frozenset({"token_grid"})`.
    """
    if not hasattr(vit, "token_grid"):
        vit.token_grid = TokenGrid(getattr(vit, "num_prefix_tokens", 0)).train(vit.training)
        # A bound method: a deep copy of the backbone watches its own images.
        vit.patch_embed.register_forward_hook(vit.token_grid.watch)
    return vit.token_grid


def comes_before(vit: nn.Module, name: str, block: int) -> bool:
    """Whether the parameter `name` acts before `block`: in an earlier block or in the embeddings.

    With `block` 0 nothing does: all of the backbone is adapted, embeddings included. `mask_token`
    counts as no embedding, since no image passes through it after pre-training.
    """
    index = block_index(name)
    if index is not None:
        return index < block
    children = [child for child, _ in vit.named_children()]
    # timm makes modules in the order in which tokens pass: norm and heads come after the blocks.
    after = children[children.index("blocks") + 1 :]  # final norm, heads
    return block > 0 and name != "mask_token" and name.split(".")[0] not in after


def head_names(vit: nn.Module) -> frozenset[str]:
    """Names in the state dict that belong to the classifier, which is the user's, no method's."""
    classifier = vit.get_classifier() if hasattr(vit, "get_classifier") else ()
    # Two where DeiT is distilled.
    classifiers = classifier if isinstance(classifier, tuple) else (classifier,)
    return frozenset(
        f"{name}.{key}"
        for name, module in vit.named_modules()
        if name and any(module is head for head in classifiers)
        for key in module.state_dict()
    )


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of tensors, in the order of their names.

    They may have any shape. 0.7 s for ViT-L in float32, on a processor with instructions for it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if not tensor.is_meta and tensor.numel():
            values = tensor.detach().cpu().contiguous().reshape(-1)
            # As bytes, since numpy knows no bfloat16.
            digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()


def linears(vit: nn.Module) -> list[tuple[str, int, str, nn.Linear]]:
    """(full name, block index, role, module) of every linear with a role, block after block.

    Leaf names match exactly and inside blocks only. A fused `qkv` has no role: see `split_qkv`.
    """
    return [item for item in _with_role(vit) if isinstance(item[3], nn.Linear)]


def _with_role(vit: nn.Module) -> list[tuple[str, int, str, nn.Module]]:
    return [
        (f"blocks.{index}.{path}", index, ROLES[leaf], module)
        for index, block in enumerate(blocks_of(vit))
        for path, module in block.named_modules()
        if (leaf := path.rpartition(".")[2]) in ROLES and ".rel_pos." not in path
    ]


def plain_linears(
    vit: nn.Module, within: Collection[int], targets: Collection[str]
) -> dict[str, nn.Linear]:
    """Name -> linear of the roles `targets` in the blocks `within`, fit to be replaced.

    Raises:
        NotApplicable: a role is absent (q, k and v are while `qkv` is fused), or what stands there
            does more than W x + b, which a layer in its place would lose.
    """
    chosen = [
        (name, role, module)
        for name, block, role, module in _with_role(vit)
        if block in within and role in targets and next(module.parameters(), None) is not None
    ]
    there = {role for _, role, _ in chosen}
    if missing := [role for role in targets if role not in there]:
        hint = "; call split_qkv(vit) first" if {"q", "k", "v"} & set(missing) else ""
        raise NotApplicable(f"no linear for the targets {', '.join(missing)}{hint}")
    places: dict[int, list[str]] = {}
    # All names of a tensor: by default a tied one shows under the first alone.
    for name, parameter in vit.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    for name, _, module in chosen:
        if more := _more_than_linear(module):
            raise NotApplicable(f"{name} {more}: make a plain nn.Linear of it first")
        for parameter in module.parameters():
            if len(places[id(parameter)]) > 1:
                tied = " and ".join(places[id(parameter)][:2])
                raise NotApplicable(f"{tied} are one tensor: give them a copy each first")
    return {name: module for name, _, module in chosen}


def _more_than_linear(module: nn.Module) -> str:
    """What a module has that W x + b has not; empty for a plain linear."""
    besides = ({*module._parameters, *module._buffers} | {*module._modules}) - {"weight", "bias"}
    kind = f"is a {type(module).__module__}.{type(module).__qualname__}"
    if not isinstance(module, nn.Linear):
        return kind
    if module._parameters.get("weight") is None:
        return "computes its weight (weight_norm, a parametrization)"
    if type(module) is not nn.Linear or "forward" in vars(module):
        return f"{kind} or has a forward of its own"
    if _hooked(module):
        return "carries hooks"
    return f"holds {min(besides)} besides weight and bias" if besides else ""


def _hooked(module: nn.Module) -> bool:
    hooks = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    return any(getattr(module, kind) for kind in hooks)


def replace_module(vit: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the one called `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(vit.get_submodule(parent), leaf, module)


class SplitQKV(nn.Module):
    """Three linears in the place of a fused `qkv`; the output is their concatenation."""

    def __init__(self, q: nn.Linear, k: nn.Linear, v: nn.Linear) -> None:
        super().__init__()
        self.q, self.k, self.v = q, k, v
        self.train(q.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., 3 x out), in the layout of the fused linear."""
        parts = self.q, self.k, self.v
        # A part with a hook of its own has to be called, and parts of two kinds have no joint form.
        joined = getattr(type(self.q), "joined", None)
        if joined is None or any(type(p) is not type(self.q) or _hooked(p) for p in parts):
            return torch.cat([part(x) for part in parts], dim=-1)
        return joined(parts, x)


def split_qkv(vit: nn.Module) -> None:
    """Split each fused `attn.qkv` in place; keys become `attn.qkv.q.weight` and so on.

    A low-rank update of the fused 3d x d matrix shares one input factor among q, k and v, and the
    loudest of the three owns its leading singular directions (SoMA's conversion script splits too).
    A backbone that is split already, or has three projections of its own, stays as it is. Biases of
    q and v that lie beside the fused linear (EVA, BEiT: k has none) move into the parts.

    Raises:
        NotApplicable: no vision transformer of timm's structure.
    """
    for block in blocks_of(vit):
        fused = getattr(getattr(block, "attn", None), "qkv", None)
        if not isinstance(fused, nn.Linear):
            continue
        parts = [linear_of(third.clone(), None, fused) for third in fused.weight.detach().chunk(3)]
        biases: tuple[nn.Parameter | None, ...] = (None,) * 3
        if getattr(block.attn, "q_bias", None) is not None:
            biases = block.attn.q_bias, None, block.attn.v_bias
            # While there is a q_bias timm reads `qkv.weight` and never calls the module.
            block.attn.q_bias = block.attn.v_bias = None
        elif fused.bias is not None:
            learns, values = fused.bias.requires_grad, fused.bias.detach().chunk(3)
            biases = tuple(nn.Parameter(value.clone(), requires_grad=learns) for value in values)
        for part, bias in zip(parts, biases, strict=True):
            part.bias = bias
        block.attn.qkv = SplitQKV(*parts)


def merge_qkv(vit: nn.Module) -> None:
    """Inverse of `split_qkv`, bit for bit.

    Raises:
        ValueError: an adapter sits on q, k or v; fold the method first.
    """
    for index, block in enumerate(blocks_of(vit)):
        split = getattr(getattr(block, "attn", None), "qkv", None)
        if not isinstance(split, SplitQKV):
            continue
        parts = [split.q, split.k, split.v]
        if any(type(part) is not nn.Linear for part in parts):
            raise ValueError(f"blocks.{index}.attn.qkv carries an adapter: fold it before merging")
        weight = torch.cat([part.weight.detach() for part in parts])
        bias = None
        if split.k.bias is not None:
            bias = torch.cat([part.bias.detach() for part in parts])
        elif split.q.bias is not None:
            block.attn.q_bias, block.attn.v_bias = split.q.bias, split.v.bias
        block.attn.qkv = linear_of(weight, bias, like=split.q)


def linear_of(weight: Tensor, bias: Tensor | None, like: nn.Linear) -> nn.Linear:
    """A linear around a weight (out, in) and a bias (out,), with the flags of `like`.

    The flags are training and requires_grad.
    """
    # On the meta device nothing is drawn: a draw would shift all that come after it.
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=like.weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=like.bias.requires_grad)
    return linear.train(like.training)


def copied(tensor: Tensor) -> Tensor:
    """A copy, of any shape, with its rows one after another, as it comes back from a file.

    With other strides (a transposed view's) products add up in another order.
    """
    return tensor.clone(memory_format=torch.contiguous_format)
