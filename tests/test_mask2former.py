import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as theirs

from benchmarks import segmentation
from benchmarks.errors import UserError
from benchmarks.segmentation.loss import SetLoss
from benchmarks.segmentation.mask2former import MaskHead, Segmenter
from tests.tiny_worlds import BACKBONE, HEAD, tiny_protocol


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> Segmenter:
    torch.manual_seed(0)
    return segmentation.build(tiny_protocol())


def batch(count: int = 2, classes: tuple[int, ...] = (0, 3, 7, 18), size: int = 32) -> dict:
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(len(classes), (count, size // 8, size // 8), generator=generator)
    label = torch.tensor(classes)[blocks].repeat_interleave(8, 1).repeat_interleave(8, 2)
    label[:, :4] = 255
    return {"image": torch.randn(count, 3, size, size, generator=generator), "label": label}


def test_losses_are_weighted_and_finite(model: Segmenter) -> None:
    torch.manual_seed(3)
    losses = model(batch())
    assert set(losses) == {"class", "mask", "dice"}
    torch.manual_seed(3)
    doubled = Segmenter(
        model.backbone, model.features, HEAD.model_copy(update={"mask_weight": 10.0}), 19
    )
    doubled.load_state_dict(model.state_dict())
    # weights steer the matching too, so that only the order of magnitude is known
    again = doubled(batch())
    assert again["mask"] > 1.5 * losses["mask"]
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        skipped = name.startswith("backbone.norm.")  # the features are taken before it
        assert (parameter.grad is None) == skipped, name
        assert skipped or torch.isfinite(parameter.grad).all()


def test_same_seed_same_loss(model: Segmenter) -> None:
    values = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        values.append([value.item() for value in model(batch()).values()])
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("ignored", [[0], [0, 1]])
def test_images_without_labels(model: Segmenter, ignored: list[int]) -> None:
    inputs = batch()
    inputs["label"][ignored] = 255
    losses = model(inputs)
    assert all(torch.isfinite(value) for value in losses.values())
    if len(ignored) == 2:
        assert losses["mask"] == losses["dice"] == 0
    sum(losses.values()).backward()


def test_loss_falls(model: Segmenter) -> None:
    inputs = batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    torch.manual_seed(0)
    totals = []
    for _ in range(25):
        optimizer.zero_grad()
        total = sum(model(inputs).values())
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.75 * totals[0]


def same_points(count: int) -> Callable[..., Tensor]:
    """Stands in for torch.rand: the same `count` points for every mask, whatever is asked for."""
    fixed = torch.rand(count, 2, generator=torch.Generator().manual_seed(9))

    def rand(*shape: int, device: torch.device | None = None) -> Tensor:
        repeats = -(-shape[-2] // count)
        return fixed.repeat(repeats, 1)[: shape[-2]].expand(*shape).contiguous()

    return rand


def test_loss_equals_that_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers, batch of three, one image without labels."""
    sizes = HEAD.model_copy(update={"points": 400, "queries": 20})
    generator = torch.Generator().manual_seed(2)
    masks = [torch.randn(3, 20, 16, 16, generator=generator) * 3 for _ in range(3)]
    classes = torch.randn(3, 3, 20, 20, generator=generator)
    labels = batch(3, (1, 2, 4, 8, 16))["label"]
    labels[1] = 255
    # Points of one period: 3 x 400 candidates, 400 kept, 400 for matching, all from 100 points.
    monkeypatch.setattr(torch, "rand", same_points(100))
    ours = SetLoss(19, sizes)(masks, classes, labels)

    config = Mask2FormerConfig(
        num_labels=19,
        class_weight=sizes.class_weight,
        mask_weight=sizes.mask_weight,
        dice_weight=sizes.dice_weight,
        no_object_weight=sizes.no_object_weight,
        train_num_points=sizes.points,
    )
    reference = theirs.Mask2FormerLoss(config, {})
    present = [label.unique()[label.unique() < 19] for label in labels]
    targets = [
        (label[None] == ids[:, None, None]).float()
        for label, ids in zip(labels, present, strict=True)
    ]
    expected = dict.fromkeys(("cross_entropy", "mask", "dice"), 0.0)
    for layer in range(3):
        losses = reference(masks[layer], classes[layer], targets, present)
        for key in expected:
            expected[key] += float(losses[f"loss_{key}"])
    for key, other, weight in (
        ("class", "cross_entropy", 2.0),
        ("mask", "mask", 5.0),
        ("dice", "dice", 5.0),
    ):
        assert float(ours[key]) == pytest.approx(weight * expected[other], rel=1e-5)


def test_reducing_before_resizing_changes_nothing(model: Segmenter) -> None:
    """The official order: resize the wide maps, then the 1x1 convolutions of the pixel decoder."""
    head = model.head
    config = head.pixel_decoder.config
    plain = theirs.Mask2FormerPixelDecoder(config, [32] * 4)
    state = {
        key: value
        for key, value in head.pixel_decoder.state_dict().items()
        if key in plain.state_dict()
    }
    plain.load_state_dict(state, strict=False)
    with torch.no_grad():
        # adapter_1 has no bias in transformers; ours is a constant that its group norm sees
        head.reduce[0].bias.zero_()
        plain.adapter_1[0].weight.copy_(head.reduce[0].weight)
        for projection, reduce in zip(
            plain.input_projections, list(head.reduce)[:0:-1], strict=True
        ):
            projection[0].weight.copy_(reduce.weight)
            projection[0].bias.copy_(torch.randn(32))
            reduce.bias.copy_(projection[0].bias)
        maps = model.feature_maps(batch()["image"])
        resized = [
            each
            if scale == 1
            else functional.interpolate(
                each, scale_factor=scale, mode="bilinear", align_corners=False
            )
            for each, scale in zip(maps, (4.0, 2.0, 1.0, 0.5), strict=True)
        ]
        expected = plain(resized, return_dict=True)
        pixels = head.transformer(expected.multi_scale_features, expected.mask_features)
        masks, _ = head(maps)
    torch.testing.assert_close(masks[-1], pixels.masks_queries_logits[-1], rtol=1e-4, atol=1e-5)


def test_feature_maps_are_block_outputs(model: Segmenter) -> None:
    images = batch()["image"]
    outputs = []
    hooks = [
        block.register_forward_hook(lambda *args: outputs.append(args[-1]))
        for block in model.backbone.blocks
    ]
    maps = model.feature_maps(images)
    for hook in hooks:
        hook.remove()
    for each, tokens in zip(maps, outputs, strict=True):
        assert each.shape == (2, 32, 4, 4)
        torch.testing.assert_close(each.flatten(2).transpose(1, 2), tokens[:, 1:])


def slow_score(model: Segmenter, image: Tensor) -> Tensor:
    """The read-out written out: query by query, class by class."""
    masks, classes = model.head(model.feature_maps(image[None]))
    height, width = image.shape[1:]
    total = torch.zeros(19, height, width)
    for query in range(masks[-1].shape[1]):
        logit = functional.interpolate(
            masks[-1][:, query : query + 1], size=(height, width), mode="bilinear"
        )[0, 0]
        share = torch.exp(classes[-1][0, query])
        share = share / share.sum()
        for index in range(19):
            total[index] += share[index] / (1 + torch.exp(-logit))
    return total


def test_score_equals_the_slow_read_out(model: Segmenter) -> None:
    model.eval()
    images = batch()["image"]
    scores = model.score(images)
    assert scores.shape == (2, 19, 32, 32)
    with torch.no_grad():
        for image, score in zip(images, scores, strict=True):
            torch.testing.assert_close(score, slow_score(model, image), rtol=0, atol=1e-5)


def test_score_of_odd_sizes_is_cut_from_the_padded_image(model: Segmenter) -> None:
    model.eval()
    image = torch.randn(1, 3, 30, 43, generator=torch.Generator().manual_seed(0))
    padded = functional.pad(image, (0, 5, 0, 2))
    torch.testing.assert_close(model.score(image), model.score(padded)[..., :30, :43])


def test_model_copies_and_pickles(model: Segmenter) -> None:
    model.eval()
    images = batch()["image"]
    expected = model.score(images)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other.score(images), expected, rtol=0, atol=0)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        torch.testing.assert_close(model.score(images), expected, rtol=0, atol=0)


def test_nothing_is_left_uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers leaves level_embed to whatever memory holds; two builds must agree."""
    torch.manual_seed(0)
    first = MaskHead(32, HEAD, 19).state_dict()
    torch.manual_seed(0)
    with torch.no_grad():
        second = MaskHead(32, HEAD, 19).state_dict()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        assert value.abs().max() < 10, key
    assert first["pixel_decoder.level_embed"].std() == pytest.approx(1, abs=0.3)


def test_decoder_has_the_layers_that_are_asked_for(model: Segmenter) -> None:
    masks, classes = model.head(model.feature_maps(batch()["image"]))
    assert len(model.head.transformer.decoder.layers) == HEAD.decoder_layers == 2
    assert len(masks) == len(classes) == 3
    assert masks[0].shape == (2, 20, 16, 16)
    assert classes.shape == (3, 2, 20, 20)


@pytest.mark.parametrize(
    ("features", "change", "message"),
    [
        ((0, 1, 2), {}, "reads 4 blocks out of 0..3"),
        ((0, 1, 2, 4), {}, "reads 4 blocks out of 0..3"),
        ((0, 1, 2, 3), {"hidden": 40}, "multiple of 32"),
        ((0, 1, 2, 3), {"attention_heads": 5}, "head.attention_heads 5"),
        ((0, 1, 2, 3), {"queries": 18}, "one image may hold 19 classes"),
    ],
)
def test_sizes_that_do_not_fit(features: tuple, change: dict, message: str) -> None:
    protocol = tiny_protocol(
        backbone=BACKBONE.model_copy(update={"features": features}),
        head=HEAD.model_copy(update=change),
    )
    with pytest.raises(UserError, match=message):
        segmentation.build(protocol)
