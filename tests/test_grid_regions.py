import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mengzi_oscar import GridRegionConfig, GridRegionImageProcessor, GridRegionModel
from modeling_mengzi_oscar.modeling_regions import box_geometry

BACKBONES = {  # one of each layout of feature maps: channels first, tokens, channels last
    "test_efficientnet": (256, None),
    "test_vit": (64, {"img_size": 96}),
    "swin_tiny_patch4_window7_224": (
        64,
        {"img_size": 96, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
    ),
}


def photo(width=48, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone(name):
    num_features, backbone_kwargs = BACKBONES[name]
    config = GridRegionConfig(backbone=name, num_features=num_features, backbone_kwargs=backbone_kwargs, grid_size=3)
    model = GridRegionModel(config).eval()
    inputs = GridRegionImageProcessor(size={"height": 96, "width": 96})([photo(), photo(20, 60)], return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    assert output.region_features.shape == (2, 9, num_features + 6)
    assert output.tag_ids is None
    assert model.tags(output) == [[], []]
    corner = torch.zeros_like(inputs["pixel_values"])  # what stands in the bottom right must change that cell most
    corner[:, :, 64:, 64:] = 3.0
    with torch.inference_mode():
        change = (
            model(inputs["pixel_values"] + corner, inputs["original_sizes"]).region_features - output.region_features
        )
    assert change.norm(dim=-1)[0].argmax() == 8


def test_boxes_are_cells_in_pixels_of_the_photo():
    model = GridRegionModel(GridRegionConfig(backbone="test_efficientnet", num_features=256, grid_size=2))
    boxes = model.cell_boxes(torch.tensor([[30, 48]]))  # height, width
    assert boxes[0].tolist() == [[0, 0, 24, 15], [24, 0, 48, 15], [0, 15, 24, 30], [24, 15, 48, 30]]
    geometry = box_geometry(boxes, torch.tensor([[30, 48]]))
    assert geometry[0, 3].tolist() == [0.5, 0.5, 1, 1, 0.5, 0.5]


def test_image_processor():
    processor = GridRegionImageProcessor()
    batch = processor([photo(), Image.new("L", (7, 5), 255)], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 260, 260)
    assert batch["original_sizes"].tolist() == [[30, 48], [5, 7]]
    assert batch["pixel_values"][1].unique().tolist() == [1.0]
    resized = np.asarray(photo().resize((260, 260), Image.Resampling.BICUBIC), dtype=np.float32) / 127.5 - 1
    np.testing.assert_allclose(batch["pixel_values"][0].permute(1, 2, 0).numpy(), resized, atol=1e-5)


def test_tags():
    config = GridRegionConfig(
        backbone="test_efficientnet", num_features=256, tag_labels=["狗", "猫", "人"], max_tags=2, tag_threshold=0.5
    )
    model = GridRegionModel(config)
    ids, scores = model.rank_tags(torch.tensor([[0.3, 0.9, 0.7], [0.3, 0.1, 0.9]]))
    assert ids.tolist() == [[2, 3], [3, 0]]
    assert scores[1, 1] == 0
    output = model(torch.zeros(2, 3, 96, 96), torch.tensor([[9, 9]] * 2))
    output.tag_ids = ids
    assert model.tags(output) == [["猫", "人"], ["人"]]


def test_a_tag_that_is_not_sure_is_doubted():
    labels = ["狗", "猫", "人", "狗？", "猫？", "人？"]
    thresholds = {"tag_threshold": 0.25, "tag_sure": 0.5}
    config = GridRegionConfig(
        backbone="test_efficientnet", num_features=256, tag_labels=labels, tag_classes=[1, 2, 3], **thresholds
    )
    model = GridRegionModel(config)
    ids, scores = model.rank_tags(torch.tensor([[0.3, 0.5, 0.2, 0, 0, 0], [0.49, 0.1, 0.4, 0, 0, 0]]))
    assert scores[:, :3].tolist() == [pytest.approx([0.5, 0.3, 0]), pytest.approx([0.49, 0.4, 0])]
    output = model(torch.zeros(2, 3, 96, 96), torch.tensor([[9, 9]] * 2))
    output.tag_ids = ids
    assert model.tags(output) == [["猫", "狗？"], ["狗？", "人？"]]


def test_saving_keeps_every_bit_and_wrong_sizes_are_named(tmp_path):
    model = GridRegionModel(GridRegionConfig(backbone="test_efficientnet", num_features=256, tag_labels=["狗"])).eval()
    model.save_pretrained(tmp_path)
    loaded = GridRegionModel.from_pretrained(tmp_path).eval()
    saved, read = model.state_dict(), loaded.state_dict()
    assert saved.keys() == read.keys()
    assert all(torch.equal(saved[name], read[name]) for name in saved)
    # Weights read from a file lie at other addresses, which changes the order of sums in some releases of torch.
    inputs = torch.randn(1, 3, 96, 96), torch.tensor([[9, 9]])
    found = loaded(*inputs).region_features
    torch.testing.assert_close(found, model(*inputs).region_features, atol=1e-7, rtol=1e-6)
    with pytest.raises(ValueError, match="test_efficientnet has 256 channels, config.num_features says 1280"):
        GridRegionModel(GridRegionConfig(backbone="test_efficientnet"))
