"""The heads that classify pixel by pixel, and the choice of a head in a protocol."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from tiny_worlds import BACKBONE, FPN, HEAD, LINEAR, random_batch, tiny_protocol, write_world
from torch import Tensor
from torch.nn import functional

from baselines import METHODS
from benchmarks.artifacts import warm_start, write_weights
from benchmarks.distributed import Part
from benchmarks.errors import UserError
from benchmarks.protocol import Domain
from benchmarks.segmentation import task as segmentation
from benchmarks.segmentation.data import batches
from benchmarks.segmentation.evaluate import slide
from benchmarks.segmentation.heads import PixelSegmenter, pixel_loss
from benchmarks.segmentation.settings import SegmentationProtocol, SemanticFpnHead, Window
from benchmarks.tasks import load_protocol
from soma import adapt

pytestmark = pytest.mark.usefixtures("one_thread")
HEADS = pytest.mark.parametrize("head", [FPN, LINEAR], ids=lambda head: head.kind)


def model_of(head: object, features: tuple[int, ...] = (0, 1, 2, 3)) -> PixelSegmenter:
    torch.manual_seed(0)
    backbone = BACKBONE.model_copy(update={"features": features})
    return segmentation.build(tiny_protocol(head=head, backbone=backbone))


def noisy(model: PixelSegmenter) -> PixelSegmenter:
    """Every parameter and statistic of the head moved away from its start."""
    generator = torch.Generator().manual_seed(4)
    for value in model.head.state_dict().values():
        if value.is_floating_point():
            value += 0.3 * torch.rand(value.shape, generator=generator)
    return model


@HEADS
def test_every_parameter_gets_a_gradient(head: object) -> None:
    model = model_of(head)
    losses = model(random_batch())
    assert list(losses) == ["cross_entropy"]
    losses["cross_entropy"].backward()
    for name, parameter in model.named_parameters():
        skipped = name.startswith("backbone.norm.")  # the features are taken before it
        assert (parameter.grad is None) == skipped, name
        assert skipped or (torch.isfinite(parameter.grad).all() and parameter.grad.any()), name


@HEADS
def test_loss_falls(head: object) -> None:
    model, inputs, losses = model_of(head), random_batch(4), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        (loss,) = model(inputs).values()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2.94, abs=0.5)  # the log of 19 classes: small at the start
    assert losses[-1] < 0.6 * losses[0]


def plain_fpn(state: dict[str, Tensor], maps: list[Tensor], height: int, width: int) -> Tensor:
    """Semantic FPN written out from its weights: strides 4, 8, 16, 32 of maps at 16."""

    def norm(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        count, channels, rows, columns = values.shape
        groups = values.reshape(count, 4, -1)
        mean = groups.mean(2, keepdim=True)
        deviation = ((groups - mean) ** 2).mean(2, keepdim=True).add(1e-5).sqrt()
        values = ((groups - mean) / deviation).reshape(count, channels, rows, columns)
        return values * weight[None, :, None, None] + bias[None, :, None, None]

    total = 0
    for level, wide in enumerate(maps):
        reduced = torch.einsum("bchw,oc->bohw", wide, state[f"reduce.{level}.0.weight"][..., 0, 0])
        reduced = norm(reduced, state[f"reduce.{level}.1.weight"], state[f"reduce.{level}.1.bias"])
        rows, columns = (4 * side // 2**level for side in wide.shape[-2:])
        out = functional.interpolate(reduced, (rows, columns), mode="bilinear")
        for stage in range(max(level, 1)):
            key = f"levels.{level}.{stage}"
            out = functional.conv2d(out, state[f"{key}.0.weight"], padding=1)
            out = norm(out, state[f"{key}.1.weight"], state[f"{key}.1.bias"]).clamp(min=0)
            if level:
                rows, columns = 2 * rows, 2 * columns
                out = functional.interpolate(out, (rows, columns), mode="bilinear")
        total = total + out
    weight, bias = state["classifier.weight"][..., 0, 0], state["classifier.bias"]
    logits = torch.einsum("bchw,oc->bohw", total, weight) + bias[:, None, None]
    return functional.interpolate(logits, (height, width), mode="bilinear")


def test_semantic_fpn_is_the_one_of_the_paper() -> None:
    model = noisy(model_of(FPN)).eval()
    images = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = plain_fpn(model.head.state_dict(), model.feature_maps(images), 32, 64)
    assert expected.std() > 0.1
    torch.testing.assert_close(model.score(images), expected, rtol=1e-4, atol=1e-4)


def test_semantic_fpn_has_the_widths_and_stages_of_the_paper() -> None:
    torch.manual_seed(0)
    model = model_of(SemanticFpnHead(kind="semantic-fpn"))
    shapes = [[tuple(stage[0].weight.shape[:2]) for stage in level] for level in model.head.levels]
    first, later = (128, 256), (128, 128)
    assert shapes == [[first], [first], [first, later], [first, later, later]]
    assert [reduce[0].weight.shape[:2] for reduce in model.head.reduce] == [(256, 32)] * 4
    deviation = model.head.levels[3][1][0].weight.std().item()
    assert deviation == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.05)
    start = model.head.classifier.weight
    assert start.std().item() == pytest.approx((1 / (3 * 128)) ** 0.5, rel=0.05)
    assert start.abs().max().item() <= 128**-0.5


def test_linear_starts_small() -> None:
    start = model_of(LINEAR).head.classifier
    assert start.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not start.bias.any()


@pytest.mark.parametrize("shape", [(40, 56), (30, 43), (32, 32)])
@HEADS
def test_score_has_the_size_of_the_image_whatever_it_is(
    head: object, shape: tuple[int, int]
) -> None:
    model = noisy(model_of(head)).eval()
    image = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    score = model.score(image)
    assert score.shape == (1, 19, *shape)
    padded = functional.pad(image, (0, -shape[1] % 8, 0, -shape[0] % 8))
    torch.testing.assert_close(score, model.score(padded)[..., : shape[0], : shape[1]])


@pytest.mark.parametrize("features", [(3,), (1, 3), (0, 1, 2, 3)])
def test_linear_is_a_batch_norm_and_one_matrix(features: tuple[int, ...]) -> None:
    model = noisy(model_of(LINEAR, features))
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    state = {key: value.clone() for key, value in model.head.state_dict().items()}
    maps = model.feature_maps(images)
    tokens = torch.cat([wide.permute(0, 2, 3, 1) for wide in maps], dim=-1).detach()
    flat = tokens.reshape(-1, 32 * len(features))
    mean, variance = flat.mean(0), flat.var(0, unbiased=False)
    matrix, bias = state["classifier.weight"][..., 0, 0], state["classifier.bias"]

    def logits(mean: Tensor, variance: Tensor) -> Tensor:
        normed = (tokens - mean) / (variance + 1e-5).sqrt()
        return (normed * state["norm.weight"] + state["norm.bias"]) @ matrix.T + bias

    with torch.no_grad():
        trained = model.head(maps).permute(0, 2, 3, 1)
    torch.testing.assert_close(trained, logits(mean, variance), rtol=1e-4, atol=1e-4)
    mean = 0.9 * state["norm.running_mean"] + 0.1 * mean
    variance = 0.9 * state["norm.running_var"] + 0.1 * flat.var(0)
    expected = functional.interpolate(
        logits(mean, variance).permute(0, 3, 1, 2), (32, 48), mode="bilinear"
    )
    torch.testing.assert_close(model.eval().score(images), expected, rtol=1e-4, atol=1e-4)


def labels_with_void() -> Tensor:
    """Four labels with different shares of void, one of them void alone."""
    labels = torch.randint(19, (4, 32, 32), generator=torch.Generator().manual_seed(2))
    labels[0, :5], labels[1, :, 9:], labels[2] = 255, 255, 255
    return labels


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_loss_is_the_mean_over_the_labelled_pixels_of_the_whole_batch(parts: int) -> None:
    labels = labels_with_void()
    logits = torch.randn(4, 19, 8, 8, generator=torch.Generator().manual_seed(3))
    logits.requires_grad_()
    full = functional.interpolate(logits, (32, 32), mode="bilinear", align_corners=False)
    expected = functional.cross_entropy(full, labels, ignore_index=255)
    (gradient,) = torch.autograd.grad(expected, logits)
    targets, size = tuple((labels != 255).sum((1, 2)).tolist()), 4 // parts
    total = 0.0
    for n in range(parts):
        own = slice(n * size, (n + 1) * size)
        part = Part(n, parts, targets) if parts > 1 else None
        total = total + pixel_loss(logits[own], labels[own], part) / parts
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(total, logits)[0], gradient)


@pytest.mark.parametrize("part", [None, Part(1, 2, (0, 0, 0, 0)), Part(1, 2, (9, 9, 0, 0))])
def test_images_without_a_label_have_no_loss_and_no_gradient(part: Part | None) -> None:
    logits = torch.randn(2, 19, 4, 4, requires_grad=True)
    loss = pixel_loss(logits, torch.full((2, 32, 32), 255), part)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_targets_of_a_batch_are_what_its_loss_is_divided_by(tmp_path: Path) -> None:
    write_world(tmp_path, count=4)
    for head in (FPN, LINEAR, HEAD):
        batch = next(batches(tiny_protocol(head=head), tmp_path, 0))
        labels = batch["label"]
        pixels = (labels != 255).sum((1, 2))
        kinds = torch.tensor([len(label[label != 255].unique()) for label in labels])
        assert torch.equal(batch["targets"], kinds if head is HEAD else pixels)
        assert batch["targets"].dtype == torch.int64


@HEADS
def test_one_window_is_the_whole_image(head: object, tmp_path: Path) -> None:
    """The window as large as the image, larger, and no window at all: the same numbers."""
    write_world(tmp_path, "bdd100k", "val", count=3)
    model = noisy(model_of(head)).eval()
    domain = Domain(domain="bdd100k", card="bdd100k", split="val", size=(32, 48))
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(5))
    results = []
    for size in (48, 64):
        assert torch.equal(slide(model, images, size, 16), model.score(images))
        protocol = tiny_protocol(head=head, window=Window(size=size, stride=16))
        results.append(segmentation.evaluate(model, protocol, tmp_path, domain))
    assert results[0].metrics == results[1].metrics
    assert results[0].metrics["mIoU"] is not None


@HEADS
def test_model_copies(head: object) -> None:
    model = noisy(model_of(head)).eval()
    images = random_batch()["image"]
    assert torch.equal(copy.deepcopy(model).score(images), model.score(images))


@pytest.mark.parametrize(
    ("head", "features", "message"),
    [
        (FPN, (0, 1, 2), "backbone.features .* semantic-fpn reads 4 blocks out of 0..3"),
        (FPN, (0, 1, 2, 4), "semantic-fpn reads 4 blocks out of 0..3"),
        (LINEAR, (4,), "linear reads 1 blocks out of 0..3"),
    ],
)
def test_features_that_do_not_fit(head: object, features: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_of(head, features)


def test_batch_norm_and_micro_batches_are_refused() -> None:
    protocol = tiny_protocol(head=LINEAR)
    protocol.recipe.accumulate = 2
    with pytest.raises(UserError, match=r"recipe\.accumulate 2: the batch norm of head"):
        segmentation.build(protocol)


def protocol_with(head: object, folder: Path) -> SegmentationProtocol:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({"extends": "soma_gtav", "name": "mine", "head": head}))
    return load_protocol(file)


def test_a_head_without_kind_is_mask2former_and_says_so_nowhere(tmp_path: Path) -> None:
    old = load_protocol("soma_gtav").head
    assert (old.kind, "kind" in old.model_dump()) == ("mask2former", False)
    wider = protocol_with({"hidden": 160}, tmp_path).head
    assert wider == old.model_copy(update={"hidden": 160})


def test_a_head_of_another_kind_takes_nothing_from_the_extended_one(tmp_path: Path) -> None:
    head = protocol_with({"kind": "semantic-fpn", "hidden": 64}, tmp_path).head
    assert head == SemanticFpnHead(kind="semantic-fpn", hidden=64)
    assert head.model_dump()["kind"] == "semantic-fpn"
    assert protocol_with({"kind": "linear"}, tmp_path).head == LINEAR


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"kind": "fpn"}, "head: kind is one of mask2former, semantic-fpn, linear"),
        ({"kind": ["linear"]}, "head: kind is one of mask2former, semantic-fpn, linear"),
        ({"kind": "semantic-fpn", "hiden": 64}, r"unknown key head\.hiden.*hidden"),
        ({"kind": "linear", "hidden": 64}, r"unknown key head\.hidden"),
        ({"querys": 64}, r"unknown key head\.querys.*queries"),
        ({"kind": "semantic-fpn", "channels": 40}, "channels 40: must be a multiple of groups 32"),
        (
            {"kind": "semantic-fpn", "scales": [4.0, 3.0]},
            "list the largest first",
        ),
        (
            {"kind": "semantic-fpn", "scales": [1.0, 2.0]},
            "list the largest first",
        ),
        ({"kind": "semantic-fpn", "hidden": 64.5}, r"head\.hidden: input should be .*64\.5"),
    ],
)
def test_wrong_heads_are_one_line(head: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        protocol_with(head, tmp_path)
    assert "\n" not in str(raised.value)


@HEADS
def test_a_second_stage_starts_from_the_whole_head(head: object, tmp_path: Path) -> None:
    """Weights beside a record hold the statistics of a batch norm too."""
    path, method = tmp_path / "seed0.json", METHODS["lora"](rank=2)
    first = model_of(head)
    placed = adapt(method, first.backbone)
    noisy(first)
    write_weights(path.with_suffix(".safetensors"), first, placed)
    second = model_of(head)
    warm_start(second, method, path)
    images = random_batch()["image"]
    assert torch.equal(second.eval().score(images), first.eval().score(images))
    with pytest.raises(ValueError, match="no tensor head"):
        warm_start(model_of(LINEAR if head is FPN else FPN), method, path)
