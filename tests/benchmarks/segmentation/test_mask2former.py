import copy
import math
import pickle

import pytest
import torch
from tiny_worlds import BACKBONE, HEAD, random_batch, tiny_protocol
from torch import Tensor
from torch.nn import functional
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as theirs

from benchmarks.errors import UserError
from benchmarks.segmentation import task as segmentation
from benchmarks.segmentation.mask2former import Mask2Former, MaskHead

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> Mask2Former:
    torch.manual_seed(0)
    return segmentation.build(tiny_protocol())


def test_every_parameter_gets_a_gradient(model: Mask2Former) -> None:
    sum(model(random_batch()).values()).backward()
    for name, parameter in model.named_parameters():
        skipped = name.startswith("backbone.norm.")  # the features are taken before it
        assert (parameter.grad is None) == skipped, name
        assert skipped or torch.isfinite(parameter.grad).all()


def test_loss_falls(model: Mask2Former) -> None:
    inputs = random_batch()
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


def test_reducing_before_resizing_changes_nothing(model: Mask2Former) -> None:
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
        for block, reduce in zip(
            (plain.adapter_1, *plain.input_projections[::-1]), head.reduce, strict=True
        ):
            if reduce.bias is not None:
                reduce.bias.normal_()
            block[0].load_state_dict(reduce.state_dict())
        maps = model.feature_maps(random_batch()["image"])
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


def test_feature_maps_are_block_outputs(model: Mask2Former) -> None:
    images = random_batch()["image"]
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


def slow_score(model: Mask2Former, image: Tensor) -> Tensor:
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


def test_score_equals_the_slow_read_out(model: Mask2Former) -> None:
    model.eval()
    images = random_batch()["image"]
    scores = model.score(images)
    assert scores.shape == (2, 19, 32, 32)
    with torch.no_grad():
        for image, score in zip(images, scores, strict=True):
            torch.testing.assert_close(score, slow_score(model, image), rtol=0, atol=1e-5)


def test_score_of_odd_sizes_is_cut_from_the_padded_image(model: Mask2Former) -> None:
    model.eval()
    image = torch.randn(1, 3, 30, 43, generator=torch.Generator().manual_seed(0))
    padded = functional.pad(image, (0, 5, 0, 2))
    torch.testing.assert_close(model.score(image), model.score(padded)[..., :30, :43])


def test_model_copies_and_pickles(model: Mask2Former) -> None:
    model.eval()
    images = random_batch()["image"]
    expected = model.score(images)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other.score(images), expected, rtol=0, atol=0)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        torch.testing.assert_close(model.score(images), expected, rtol=0, atol=0)


def test_nothing_is_left_uninitialised() -> None:
    """transformers leaves level_embed to whatever memory holds; here torch fills that with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        raw = theirs.Mask2FormerPixelDecoder(Mask2FormerConfig(), [32] * 4)
        head = MaskHead(32, HEAD, 19)
    finally:
        torch.use_deterministic_algorithms(False)
    assert raw.level_embed.isnan().all()  # the guard works
    for key, value in head.state_dict().items():
        assert torch.isfinite(value).all(), key
    assert head.pixel_decoder.level_embed.std().item() == pytest.approx(1, abs=0.3)


# Standard deviations by arithmetic: Xavier sqrt(2 / (in + out)), Kaiming (a = 1) sqrt(1 / in),
# torch's own sqrt(1 / (3 in)).
XAVIER_QKV = math.sqrt(2 / (4 * 256))
STARTS = {
    "transformer.decoder.layers.0.self_attn.q_proj.weight": (XAVIER_QKV, "drawn"),
    "transformer.decoder.layers.0.self_attn.k_proj.weight": (XAVIER_QKV, "drawn"),
    "transformer.decoder.layers.0.self_attn.v_proj.weight": (XAVIER_QKV, "drawn"),
    "transformer.decoder.layers.0.self_attn.q_proj.bias": (0, ""),
    "transformer.decoder.layers.0.self_attn.k_proj.bias": (0, ""),
    "transformer.decoder.layers.0.self_attn.v_proj.bias": (0, ""),
    "transformer.decoder.layers.0.self_attn.out_proj.weight": (math.sqrt(2 / 512), "drawn"),
    "transformer.decoder.layers.0.self_attn.out_proj.bias": (0, ""),
    "transformer.decoder.layers.0.cross_attn.in_proj_weight": (XAVIER_QKV, "drawn"),
    "transformer.decoder.layers.0.cross_attn.in_proj_bias": (0, ""),
    "transformer.decoder.layers.0.cross_attn.out_proj.weight": (math.sqrt(2 / 512), "drawn"),
    "transformer.decoder.layers.0.cross_attn.out_proj.bias": (0, ""),
    "transformer.decoder.layers.0.fc1.weight": (math.sqrt(2 / 2304), "drawn"),
    "transformer.decoder.layers.0.fc1.bias": (math.sqrt(1 / 768), "uniform"),
    "transformer.decoder.layers.0.fc2.weight": (math.sqrt(2 / 2304), "drawn"),
    "transformer.decoder.mask_predictor.mask_embedder.0.0.weight": (1 / math.sqrt(768), "uniform"),
    "transformer.queries_features.weight": (1, "normal"),
    "transformer.queries_embedder.weight": (1, "normal"),
    "transformer.level_embed.weight": (1, ""),
    "pixel_decoder.level_embed": (1, ""),
    "pixel_decoder.encoder.layers.0.self_attn.value_proj.weight": (math.sqrt(2 / 512), "uniform"),
    "pixel_decoder.encoder.layers.0.self_attn.output_proj.weight": (math.sqrt(2 / 512), "uniform"),
    "pixel_decoder.encoder.layers.0.self_attn.value_proj.bias": (0, ""),
    "pixel_decoder.encoder.layers.0.self_attn.sampling_offsets.weight": (0, ""),
    "pixel_decoder.encoder.layers.0.self_attn.attention_weights.weight": (0, ""),
    "pixel_decoder.encoder.layers.0.fc1.weight": (math.sqrt(2 / 1280), "drawn"),
    "pixel_decoder.encoder.layers.0.fc2.weight": (math.sqrt(2 / 1280), "drawn"),
    "pixel_decoder.mask_projection.weight": (math.sqrt(1 / 256), "uniform"),
    "pixel_decoder.mask_projection.bias": (0, ""),
    "pixel_decoder.layer_1.0.weight": (math.sqrt(1 / 2304), "uniform"),
    "reduce.0.weight": (math.sqrt(1 / 1024), "uniform"),
    "reduce.1.weight": (math.sqrt(2 / 1280), "uniform"),
    "reduce.2.weight": (math.sqrt(2 / 1280), "uniform"),
    "reduce.3.weight": (math.sqrt(2 / 1280), "uniform"),
    "reduce.3.bias": (0, ""),
    "class_predictor.weight": (math.sqrt(1 / 768), "uniform"),
}
# What "suite" draws otherwise: as the committed records of the mini worlds started.
OF_THE_SUITE = {
    **{
        f"transformer.decoder.layers.0.self_attn.{part}_proj.weight": (math.sqrt(2 / 512), "drawn")
        for part in "qkv"
    },
    **{
        f"transformer.decoder.layers.0.self_attn.{part}_proj.bias": (math.sqrt(1 / 768), "uniform")
        for part in ("q", "k", "v", "out")
    },
    **{f"reduce.{level}.weight": (math.sqrt(1 / 1024), "uniform") for level in (1, 2, 3)},
}


@pytest.mark.parametrize("kind", ["mmdet", "paper", "suite"])
def test_head_starts_from_the_weights_of_the_code_that_it_names(kind: str) -> None:
    torch.manual_seed(0)
    sizes = HEAD.model_copy(
        update={
            "hidden": 256,
            "feedforward": 2048,
            "encoder_feedforward": 1024,
            "attention_heads": 8,
            "queries": 100,
            "initialisation": kind,
        }
    )
    parameters = dict(MaskHead(1024, sizes, 19).named_parameters())
    expected = STARTS | (OF_THE_SUITE if kind == "suite" else {})
    for name, (deviation, distribution) in expected.items():
        values = parameters[name]
        if deviation == 0:
            assert not values.any(), name
            continue
        assert values.std().item() == pytest.approx(deviation, rel=0.08), name
        if distribution == "drawn":
            distribution = "normal" if kind == "mmdet" else "uniform"
        if distribution:
            largest = values.abs().max().item() / deviation  # sqrt(3) at most where uniform
            assert (largest > 3) if distribution == "normal" else (largest < 1.7321), name


def test_decoder_has_the_layers_that_are_asked_for(model: Mask2Former) -> None:
    masks, classes = model.head(model.feature_maps(random_batch()["image"]))
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
