"""What must hold of an adapted backbone as a function: its output for images, its gradient."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.conformance.method_under_test import (
    Broken,
    MethodUnderTest,
    distance,
    draw_images,
    learners,
    nudge,
    require_close,
    require_learners,
    some,
)
from benchmarks.conformance.training import START, require_gradients
from soma import Method, NotFoldable
from soma.backbone import block_index, comes_before

ALONE = 1e-5  # largest difference of an image's output, computed alone or in a batch
# A fine step passes few kinks: of a ReLU of thousands of values near zero some lie within any step.
FINE, COARSE = (1e-6, 1e-3), (5e-3, 3e-2)  # size of a step, largest error of a slope of about one
OTHER_SIZE = (40, 56)  # pixels: 5 x 7 patches, more than of the first images, and no square number


def task_gradients(test: MethodUnderTest) -> str:
    """A gradient reaches what learns through the tasks' own call, which ends before the final norm.

    Pretrained tensors behind the last block, where a method trains them, get none there.
    """
    vit = test.trace.vit
    learning = require_learners(vit)
    pretrained = dict(test.plain().named_parameters())
    # The tasks read features of blocks; the final norm stands behind them, and BitFit trains its
    # bias.
    behind = {n for n in learning if n in pretrained and _acts_after_the_blocks(vit, n)}
    read = {name: p for name, p in learning.items() if name not in behind}
    if not read:
        raise Broken(f"all that learns is {some(sorted(behind))}, which no task reads")
    loss = test.loss(test.maps(vit))
    gradients = torch.autograd.grad(loss, list(read.values()), allow_unused=True)
    sizes = {
        name: 0.0 if gradient is None else gradient.abs().max().item()
        for name, gradient in zip(read, gradients, strict=True)
    }
    note = f"; none reaches {some(sorted(behind))}, behind the last block" if behind else ""
    return require_gradients(test, vit, sizes) + note


def slope(test: MethodUnderTest) -> str:
    """Along random directions the loss rises as the gradient says.

    Every tensor has the same share in a direction, so that a wrong gradient of one is seen.
    """
    placed, vit, images = _in_double(test)
    learning = list(require_learners(vit).values())

    def loss() -> Tensor:
        return test.loss(vit.forward_features(images).double())

    gradients = torch.autograd.grad(loss(), learning, materialize_grads=True, allow_unused=True)
    sizes = [gradient.norm().item() for gradient in gradients]
    if not max(sizes) > 0:
        raise Broken("the gradient is zero")
    # Not below a share of the largest: a tensor whose gradient is rounding would drown the others.
    scales = [1 / (max(size, 0.03 * max(sizes)) * len(learning) ** 0.5) for size in sizes]
    upwards = [scale * g / max(sizes) for scale, g in zip(scales, gradients, strict=True)]
    step, limit = FINE
    # Two sizes of a step: where they disagree, rounding speaks and not the slope.
    rises = [_rise(learning, upwards, loss, size) for size in (step, 3 * step)]
    # Something is computed in float32, where a fine step is lost in rounding.
    if abs(rises[0] - rises[1]) > limit:
        step, limit = COARSE
    wrong = 0.0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        noise = [torch.randn(parameter.shape, generator=generator) for parameter in learning]
        ways = [scale * way for scale, way in zip(scales, noise, strict=True)]
        terms = [(g * way).sum().item() for g, way in zip(gradients, ways, strict=True)]
        wrong = max(wrong, abs(_rise(learning, ways, loss, step) - sum(terms)))
    if not placed.exact_gradient:
        if not _rise(learning, upwards, loss, step) > 0:
            raise Broken("along its own gradient the loss does not rise")
        return f"not exact, as the method says: wrong by {wrong:.1e} where it is about 1"
    if not wrong <= limit:
        raise Broken(f"the loss rises by {wrong:.1e} other than the gradient says, of about 1")
    return f"wrong by {wrong:.1e} (at most {limit:.0e}) where it is about 1"


def _in_double(test: MethodUnderTest) -> tuple[Method, nn.Module, Tensor]:
    """Method, moved backbone and images in float64, or in float32 where the method wants that."""
    placed, vit = test.adapted()
    nudge(vit)
    images = test.images.double()
    try:
        test.features(vit.double(), images)
    except RuntimeError:
        return placed, vit.float(), test.images
    return placed, vit, images


@torch.no_grad()
def _rise(
    parameters: list[nn.Parameter], ways: list[Tensor], loss: Callable[[], Tensor], size: float
) -> float:
    """By how much the loss rises per step along `ways`; the parameters are put back."""
    values = [parameter.clone() for parameter in parameters]
    losses = []
    for step in (size, -size):
        for parameter, value, way in zip(parameters, values, ways, strict=True):
            parameter.copy_(value + step * way)
        losses.append(loss().item())
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
    return (losses[0] - losses[1]) / (2 * size)


def each_image_alone(test: MethodUnderTest) -> str:
    """The output for an image is its own, whatever else is in the batch and came before."""
    _, vit = test.example
    together = test.features(vit)
    apart = [test.features(vit, image[None]) for image in test.images]
    close = require_close("an image's output, alone,", torch.cat(apart), together, ALONE)
    # To the bit: whatever differs is state that a pass has left behind.
    require_close("the second time, the output", test.features(vit), together, 0)
    return close


def training_mode(test: MethodUnderTest) -> str:
    """Without dropout the output in training mode is that of `eval`."""
    test = test.without_dropout()
    _, vit = test.adapted()
    nudge(vit)
    for module in vit.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    expected = test.features(vit.eval())
    close = require_close(
        "the output in training mode", test.features(vit.train()), expected, ALONE
    )
    require_close("after it, the output", test.features(vit.eval()), expected, 0)
    return close


def other_size(test: MethodUnderTest) -> str:
    """Larger images, higher than wide: as on the first ones, which are computed as before."""
    images = draw_images(*OTHER_SIZE)
    placed, vit = test.untrained
    plain = test.plain()
    start = test.features(vit, images)
    if start.shape != (expected := test.features(plain, images)).shape:
        raise Broken(f"the output has shape {tuple(start.shape)}, not {tuple(expected.shape)}")
    if placed.exact_start:
        require_close("the start", start, expected, START)
    _require_all_patches_move(test.with_fields(start_block=len(plain.blocks) - 1), images)
    _, vit = test.example
    before, trained = test.features(vit), test.features(vit, images)
    apart = [test.features(vit, image[None]) for image in images]
    require_close("an image's output, alone,", torch.cat(apart), trained, ALONE)
    require_close("back on the first images, the output", test.features(vit), before, 0)
    twin = copy.deepcopy(vit)
    words = f"{OTHER_SIZE[0]} x {OTHER_SIZE[1]} pixels: moved by {distance(trained, start):.1e}"
    try:
        placed.fold(twin)
    except NotFoldable:
        return words
    return f"{words}; folded, {require_close('it', test.features(twin, images), trained, START)}"


def _require_all_patches_move(test: MethodUnderTest, images: Tensor) -> None:
    """In the last block, before another attention spreads what is done to some of the patches."""
    _, vit = test.adapted()
    if not learners(vit):
        return
    with torch.no_grad():
        before = test.maps(vit, images)
        nudge(vit)
        moved = (test.maps(vit, images) - before).abs().amax((0, 1))
    if still := int((moved == 0).sum()):
        raise Broken(f"{still} of {moved.numel()} patches are not touched")


def _acts_after_the_blocks(vit: nn.Module, name: str) -> bool:
    return block_index(name) is None and not comes_before(vit, name, 1)


COMPUTATION: dict[str, Callable[[MethodUnderTest], str]] = {
    "gradient in the tasks": task_gradients,
    "slope along the gradient": slope,
    "each image alone": each_image_alone,
    "training mode": training_mode,
    "another image size": other_size,
}
