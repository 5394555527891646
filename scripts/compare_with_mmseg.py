"""Scores of a released file here and in the official code, on images of noise.

Needs mmsegmentation, mmdetection, mmcv (mmcv-lite will do on a CPU), and a checkout of SoMA or Rein
beside them; without these it says so and compares nothing. MERGED is FILE with its base, as the
official tools/merge_soma_weights.py makes it.

    python scripts/compare_with_mmseg.py CHECKOUT CONFIG MERGED FILE --protocol soma_gtav
"""

import argparse
import importlib.util
import sys
import types
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import released  # noqa: E402
from benchmarks.errors import UserError  # noqa: E402
from benchmarks.segmentation.evaluate import slide  # noqa: E402
from benchmarks.tasks import load_protocol, task_of  # noqa: E402

BOUND = 1e-3  # of scores, relative to the largest, in float32
NEEDED = ("mmengine", "mmcv", "mmdet", "mmseg")


def main(argv: list[str] | None = None) -> int:
    """Print how far apart the scores are; 0 within the bound, 1 beyond it, 2 not comparable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    for name in ("checkout", "config", "merged", "file"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--protocol", default="soma_gtav")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), help="height and width")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args(argv)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"skipped: {', '.join(missing)} not installed; nothing was compared")
        return 2
    if importlib.util.find_spec("mmcv._ext") is None:
        if asked.device != "cpu":
            print(f"error: --device {asked.device}: needs mmcv with its operators", file=sys.stderr)
            return 2
        sys.modules["mmcv._ext"] = _NoOperators("mmcv._ext")
    try:
        file = released.read(asked.file)
        protocol = load_protocol(asked.protocol)
        released.require_scorable(file, protocol, any_size=False)
        model = task_of(protocol).build(protocol)
        released.apply(file, model, protocol.name)
        official = _official(asked.checkout, asked.config, asked.merged).to(asked.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # By itself: `train` of the official model returns nothing to go on with.
    official.eval()
    model.to(asked.device).eval()
    # Drawn on the CPU: both codes see the same images on every device.
    generator = torch.Generator().manual_seed(0)
    worst, differing, pixels = 0.0, 0, 0
    for _ in range(asked.images):
        image = torch.randn(1, 3, *asked.size, generator=generator).to(asked.device)
        with torch.no_grad():
            theirs = _scores(official, image)
            ours = slide(model, image, protocol.window.size, protocol.window.stride)
        worst = max(worst, ((theirs - ours).abs().max() / theirs.abs().max()).item())
        differing += int((theirs.argmax(1) != ours.argmax(1)).sum())
        pixels += ours[0, 0].numel()
    print(f"scores differ by {worst:.1e} relative, {differing} of {pixels} predictions")
    return int(worst > BOUND)


class _Plain(argparse.RawDescriptionHelpFormatter):
    """The docstring as it stands."""


class _NoOperators(types.ModuleType):
    """In place of mmcv's compiled operators: mmcv looks for their names as it is imported.

    None is called: on a CPU its deformable attention is PyTorch's `grid_sample`.
    """

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _official(checkout: Path, config: Path, merged: Path) -> nn.Module:
    """The model of the official code with the weights of MERGED; every weight comes from there."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    sys.path.insert(0, str(checkout))
    # Registers the models of SoMA and of Rein.
    importlib.import_module("rein")
    init_default_scope("mmseg")
    model = MODELS.build(Config.fromfile(config).model)
    content = torch.load(merged, map_location="cpu", weights_only=True)
    # Not strict: the official losses hold buffers that no file has. Anything else is refused below.
    missing = model.load_state_dict(content["state_dict"], strict=False).missing_keys
    if missing := [name for name in missing if not name.startswith("decode_head.loss")]:
        raise UserError(
            f"{merged}: lacks {missing[0]} ({len(missing)} in all); merge FILE with its base"
        )
    return model


def _scores(model: nn.Module, image: Tensor) -> Tensor:
    size = tuple(image.shape[-2:])
    about = {"img_shape": size, "ori_shape": size}
    return model.inference(image, [about])


if __name__ == "__main__":
    sys.exit(main())
