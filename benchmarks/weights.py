"""Files of pretrained weights: fetched from the hub, told apart by hash, fitted to a backbone."""

import hashlib
import sys
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import timm
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.errors import UserError

KERNEL, POSITIONS = "patch_embed.proj.weight", "pos_embed"


def on_hub(name: str) -> tuple[str, str, str | None]:
    """Repository, file and revision of the weights of a timm model.

    Raises:
        UserError: timm knows no weights of that name on the hub.
    """
    try:
        entry = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag after the dot
        entry = None
    if entry is None or not entry.hf_hub_id:
        raise UserError(
            f"backbone {name}: timm knows no weights of it on the hub; correct backbone.name "
            "(timm.list_pretrained() has those), or write a file as backbone.weights"
        )
    repository, _, revision = entry.hf_hub_id.partition("@")
    return repository, entry.hf_hub_filename or "model.safetensors", revision or None


def from_hub(name: str) -> Path:
    """The weights of a timm model, downloaded once into the cache of the hub's client.

    Raises:
        UserError: timm knows no weights of that name on the hub, or they cannot be fetched.
    """
    repository, file, revision = on_hub(name)
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except OSError as error:  # what the client raises derives from it
        raise UserError(
            f"backbone {name}: {file} of {repository} cannot be fetched from the hub "
            f"({' '.join(str(error).split())[:200]}); try again with a network, or fetch it "
            "elsewhere and write its path as backbone.weights"
        ) from None


def in_cache(name: str) -> Path | None:
    """The weights of a timm model where they were downloaded before.

    Raises:
        UserError: timm knows no weights of that name on the hub.
    """
    repository, file, revision = on_hub(name)
    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def hash_of(file: Path) -> str:
    """SHA-256 (hex) of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{file}: backbone weights cannot be read ({error.strerror}); restore the file, or "
            "make the mini backbone with: python -m benchmarks mini pretrain"
        ) from error


def fitted(state: Mapping[str, Tensor], vit: nn.Module, resize: str) -> dict[str, Tensor]:
    """The weights of a release under timm's names, in the patch and image size of `vit`.

    Args:
        state: under the names of the model's release (DINOv2, DINOv3, CLIP, EVA02) or of timm.
        vit: the backbone, of timm's.
        resize: "converter" resizes patch kernel and position embedding by plain bicubic
            interpolation (see `converted`); "timm" as timm does, with antialiasing, the kernel by
            the pseudo-inverse of the resizing of a patch (FlexiViT, arXiv 2212.08013).

    Raises:
        ValueError: "converter" finds no patch kernel under the name it has with DINOv2.
    """
    if resize == "converter":
        state = converted(state, vit)
    # timm's own translation, which resizes what still has another size.
    state = sys.modules[type(vit).__module__].checkpoint_filter_fn(dict(state), vit)
    classifier = f"{vit.pretrained_cfg['classifier']}."
    return {key: value for key, value in state.items() if not key.startswith(classifier)}


def converted(state: Mapping[str, Tensor], vit: nn.Module) -> dict[str, Tensor]:
    """Patch kernel and position embedding resized to `vit` as Rein and SoMA convert DINOv2.

    Bicubic, corners not aligned, no antialiasing, for the kernel (out, 3, h, w) as for the grid of
    positions (1, prefix + h w, width), of which prefix tokens keep theirs. Source:
    `tools/convert_models/convert_dinov2_sora.py` of github.com/ysj9909/SoMA, commit 7ea8c0e.

    Raises:
        ValueError: no patch kernel under the name it has with DINOv2, EVA02 and timm.
    """
    if KERNEL not in state:
        raise ValueError(f"no {KERNEL}, which resize: converter needs; resize: timm knows others")
    state = dict(state)
    size = vit.patch_embed.patch_size
    state[KERNEL] = functional.interpolate(state[KERNEL].float(), size, mode="bicubic")
    if POSITIONS in state:
        count = state[POSITIONS].shape[1]
        state[POSITIONS] = resample_abs_pos_embed(
            state[POSITIONS],
            vit.patch_embed.grid_size,
            num_prefix_tokens=count - isqrt(count) ** 2,  # fewer than a row of the square grid
            antialias=False,
        )
    return state
