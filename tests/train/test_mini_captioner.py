"""What makes the mini's captioner beside its trainings: classes of things as tags, and the mean of two captioners."""

import add_thing_classes
import average_models
import pytest
import torch
from conftest import tiny_captioner
from PIL import Image

from modeling_mengzi_oscar import MengziOscarForImageCaptioning, MengziOscarProcessor
from modeling_mengzi_oscar.hub import save_checkpoint
from modeling_mengzi_oscar.labels.imagenet import DOUBT
from modeling_mengzi_oscar.loading import load_region_model
from modeling_mengzi_oscar.modeling_object_regions import (
    ObjectRegionConfig,
    ObjectRegionImageProcessor,
    ObjectRegionModel,
)

WORDS = ["狗", "猫"]
GRID = {
    "backbone": "test_efficientnet",
    "num_features": 256,
    "grid_size": 3,
    "tag_labels": WORDS + [word + DOUBT for word in WORDS],
    "tag_classes": [1, 2, 2],  # two classes are a cat
    "tag_threshold": 0.0,
}
DETECTOR = {"model_type": "nanodet", "stem_channels": 4, "neck_channels": 8, "num_blocks": [1, 1, 1, 1]}


@pytest.fixture
def region_model():
    torch.manual_seed(0)
    model = ObjectRegionModel(ObjectRegionConfig(grid=GRID, detector=DETECTOR | {"id2label": {0: "person"}})).eval()
    model.grid.tag_branch.set_classifier(torch.randn(3, 256), torch.randn(3))
    return model


@pytest.fixture
def photos():
    """Features of 40 photos: of ten each of two new classes, and of twenty others; every fifth held out."""
    torch.manual_seed(1)
    middles = torch.randn(3, 256)
    targets = torch.tensor([0] * 10 + [1] * 10 + [-1] * 20)
    pooled = middles[targets] + 0.3 * torch.randn(40, 256)
    return pooled, targets, torch.arange(40) % 5 == 0


def test_a_linear_probe_learns_new_classes_and_leaves_other_photos_alone(region_model, photos):
    pooled, targets, held_out = photos
    branch = region_model.grid.tag_branch
    weight, bias, decay, said = add_thing_classes.fit(branch, pooled, targets, held_out, 2)
    assert decay in add_thing_classes.WEIGHT_DECAYS
    assert "from 0.5 on 100.0% of the things named, 0 of 4 others named as a thing" in said
    logits = torch.cat([branch.logits(pooled), pooled @ weight.T + bias], dim=1)[held_out]  # the plain way
    assert ((logits.argmax(dim=1) - 3).clamp(min=-1) == targets[held_out]).all()


def test_new_classes_stand_beside_the_old_ones(region_model, photos):
    """A class whose word is known says it, another brings its word; the old classes stay as they are."""
    pooled = photos[0]
    weight, bias = torch.randn(2, 256), torch.tensor([0.5, -0.5])
    larger = add_thing_classes.with_classes(region_model, weight, bias, ["猫", "锚"])
    assert larger.grid.config.tag_labels == ["狗", "猫", "锚", "狗？", "猫？", "锚？"]
    assert larger.grid.config.tag_classes == [1, 2, 2, 2, 3]
    logits = larger.grid.tag_branch.logits(pooled)
    assert torch.equal(larger.grid.tag_branch.weight[:3], region_model.grid.tag_branch.weight)
    torch.testing.assert_close(logits[:, :3], region_model.grid.tag_branch.logits(pooled))
    coarse = pooled.abs().sum(dim=1, keepdim=True) * (weight.abs().amax(dim=1) / 127)[None]  # 8 bits
    assert ((logits[:, 3:] - pooled @ weight.T - bias).abs() <= 0.5 * coarse + 1e-3).all()


def test_tags_say_the_new_word(region_model, tmp_path, tiny_checkpoint):
    larger = add_thing_classes.with_classes(region_model, torch.zeros(1, 256) + 1e-3, torch.tensor([50.0]), ["锚"])
    processor = MengziOscarProcessor.from_pretrained(tiny_checkpoint)
    image_processor = ObjectRegionImageProcessor(grid={"size": 64}, detector_size=64)
    save_checkpoint(tmp_path / "new", tiny_captioner(), processor, larger, image_processor, dtype=torch.float32)
    loaded, _ = load_region_model(tmp_path / "new")
    inputs = image_processor([Image.effect_noise((90, 60), 80).convert("RGB")], return_tensors="pt")
    with torch.inference_mode():
        output = loaded.eval()(**inputs)
    assert "锚" in loaded.tags(output)[0]


def test_the_mean_of_two_captioners(tmp_path, tiny_checkpoint):
    processor = MengziOscarProcessor.from_pretrained(tiny_checkpoint)
    for name, seed in (("first", 0), ("second", 1)):
        torch.manual_seed(seed)
        save_checkpoint(tmp_path / name, tiny_captioner(), processor, dtype=torch.float32)
    average_models.main([*(str(tmp_path / name) for name in ("first", "second")), f"--output={tmp_path / 'mean'}"])
    first, second, mean = (
        dict(MengziOscarForImageCaptioning.from_pretrained(tmp_path / name).named_parameters())
        for name in ("first", "second", "mean")
    )
    assert not torch.equal(*(weights["bert.embeddings.word_embeddings.weight"] for weights in (first, second)))
    for name, weight in mean.items():
        torch.testing.assert_close(weight, (first[name] + second[name]) / 2, rtol=0, atol=1e-6)
