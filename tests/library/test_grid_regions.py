import json

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


def plain_pixels(picture, size, mean, std):
    """What the weights were trained on: Pillow's bicubic filter on 8 bits, rescaled in double, normalised in single."""
    resized = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)).astype(np.float64)
    values = (resized * 0.00392156862745098).astype(np.float32)
    return ((values - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)


def test_image_processor():
    processor = GridRegionImageProcessor()
    batch = processor([photo(), Image.new("L", (7, 5), 255)], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 260, 260)
    assert batch["original_sizes"].tolist() == [[30, 48], [5, 7]]
    assert batch["original_sizes"].dtype == torch.int64
    assert batch["pixel_values"][1].unique().tolist() == [1.0]
    expected = plain_pixels(photo(), (260, 260), 0.5, 0.5)
    assert np.array_equal(batch["pixel_values"][0].numpy(), expected)
    assert np.array_equal(processor(photo(), return_tensors="np")["pixel_values"][0], expected)


@pytest.mark.parametrize("kind", ["array", "channels first", "tensor", "stacked", "dataset", "of torch"])
def test_image_processor_takes_what_photos_come_in(kind):
    array = np.asarray(photo())
    Dataset = pytest.importorskip("datasets").Dataset
    column = Dataset.from_dict({"image": [photo(), photo()]})
    images = {
        "array": array,
        "channels first": array.transpose(2, 0, 1),
        "tensor": torch.tensor(array),
        "stacked": np.stack([array, array]),
        "dataset": column["image"],
        "of torch": column.with_format("torch")[:2]["image"],
    }[kind]
    pixels = GridRegionImageProcessor()(images, return_tensors="np")["pixel_values"]
    assert len(pixels) == (2 if kind in ("stacked", "dataset", "of torch") else 1)
    for row in pixels:
        assert np.array_equal(row, plain_pixels(photo(), (260, 260), 0.5, 0.5))


def test_image_processor_options(tmp_path):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    processor = GridRegionImageProcessor(size={"height": 32, "width": 40}, image_mean=mean, image_std=std)
    expected = plain_pixels(photo(), (40, 32), mean, std)
    assert np.array_equal(processor(photo(), return_tensors="np")["pixel_values"][0], expected)
    processor.save_pretrained(tmp_path)
    again = GridRegionImageProcessor.from_pretrained(tmp_path)
    assert np.array_equal(again(photo(), return_tensors="np")["pixel_values"][0], expected)
    options = {"size": (32, 40), "image_mean": mean, "image_std": std, "do_resize": None}
    now = GridRegionImageProcessor()(photo(), return_tensors="np", **options)["pixel_values"][0]
    assert np.array_equal(now, expected)
    as_it_is = processor(photo(), return_tensors="np", do_resize=False, do_rescale=False, do_normalize=False)
    assert np.array_equal(as_it_is["pixel_values"][0], np.asarray(photo()).transpose(2, 0, 1))
    assert again.size == {"height": 32, "width": 40}
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))  # transparency is put on white
    assert GridRegionImageProcessor(size=4)(clear, return_tensors="np")["pixel_values"].min() == 1


def test_image_processors_that_lie_on_disks_mean_what_they_meant(tmp_path):
    config = {
        **{"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True},
        **{"image_mean": [0.5, 0.5, 0.5], "image_processor_type": "GridRegionImageProcessor"},
        **{"image_std": [0.5, 0.5, 0.5], "resample": 3, "rescale_factor": 0.00392156862745098},
        "size": {"height": 260, "width": 260},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = GridRegionImageProcessor.from_pretrained(tmp_path)
    assert json.loads(processor.to_json_string()) == config
    pixels = processor(photo(), return_tensors="np")["pixel_values"][0]
    assert np.array_equal(pixels, plain_pixels(photo(), (260, 260), 0.5, 0.5))
    assert GridRegionImageProcessor.from_pretrained(tmp_path, size=96).size == {"height": 96, "width": 96}


def test_image_processor_names_what_is_wrong():
    processor = GridRegionImageProcessor()
    with pytest.raises(TypeError, match="has no sise"):
        processor(photo(), sise=260)
    with pytest.raises(ValueError, match="squashed to one size"):
        processor(photo(), size={"shortest_edge": 260})
    with pytest.raises(ValueError, match="image 1 is a str"):
        processor([photo(), "photo.jpg"])
    with pytest.raises(ValueError, match="empty"):
        processor([])
    with pytest.raises(ValueError, match="float64"):
        processor(np.zeros((4, 4, 3)))


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


@pytest.mark.parametrize("name", BACKBONES)
def test_saving_keeps_every_bit(tmp_path, name):
    num_features, backbone_kwargs = BACKBONES[name]
    config = GridRegionConfig(
        backbone=name, num_features=num_features, backbone_kwargs=backbone_kwargs, tag_labels=["狗"]
    )
    model = GridRegionModel(config).eval()
    model.save_pretrained(tmp_path)
    loaded, info = GridRegionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    ours, theirs = (dict([*one.named_parameters(), *one.named_buffers()]) for one in (model, loaded))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)  # with the buffers that no file holds
    inputs = torch.randn(1, 3, 96, 96), torch.tensor([[9, 9]])
    torch.testing.assert_close(model(*inputs).region_features, loaded.eval()(*inputs).region_features)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="test_efficientnet has 256 channels, config.num_features says 1280"):
        GridRegionModel(GridRegionConfig(backbone="test_efficientnet"))


def test_config_keeps_what_it_was_given(tmp_path):
    config = GridRegionConfig(tag_labels=["狗", "猫"], tag_classes=[1, 2, 2], max_tags=3, custom="kept")
    config.save_pretrained(tmp_path)
    loaded = GridRegionConfig.from_pretrained(tmp_path, max_tags=4)
    assert (loaded.tag_labels, loaded.tag_classes, loaded.max_tags) == (["狗", "猫"], [1, 2, 2], 4)
    assert (loaded.custom, loaded.backbone, loaded.num_features) == ("kept", "tf_efficientnet_lite2", 1280)
    assert GridRegionConfig().tag_labels is None
