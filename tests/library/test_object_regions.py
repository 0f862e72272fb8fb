"""The small detector and the region model that joins detected objects to a grid, with tiny random weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from modeling_mengzi_oscar import MengziOscarPipeline, RegionFeatureStore
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.cli.output import rounded
from modeling_mengzi_oscar.demo.pictures import COLOURS
from modeling_mengzi_oscar.hub import check_repo, save_checkpoint
from modeling_mengzi_oscar.labels.coco import object_words
from modeling_mengzi_oscar.modeling_nanodet import STRIDES, Int8Conv2d, NanoDetConfig, NanoDetForObjectDetection
from modeling_mengzi_oscar.modeling_object_regions import (
    DOUBT,
    ObjectRegionConfig,
    ObjectRegionImageProcessor,
    ObjectRegionModel,
)

GRID = {"backbone": "test_efficientnet", "num_features": 256, "grid_size": 3}
LABELS = {0: "person", 1: "cup", 2: "dog"}
SIZES = {"stem_channels": 4, "neck_channels": 8, "num_blocks": [1, 1, 1, 1], "id2label": LABELS}
NANODET = {"model_type": "nanodet"} | SIZES
PHOTO = Image.effect_noise((90, 60), 80).convert("RGB")


def region_model(detector=NANODET, **fields):
    torch.manual_seed(0)
    return ObjectRegionModel(ObjectRegionConfig(**{"grid": GRID, "detector": detector} | fields)).eval()


def looked_at(model, photos=(PHOTO,), **processor):
    processor = ObjectRegionImageProcessor(grid={"size": 64}, **{"detector_size": 64} | processor)
    inputs = processor(list(photos), return_tensors="pt")
    with torch.inference_mode():
        return inputs, model(**inputs)


def test_boxes_of_nanodet_are_those_of_its_definition():
    """Point by point: a side is the mean of the distribution over 0 to reg_max strides, from the middle of a cell."""
    torch.manual_seed(1)
    model = NanoDetForObjectDetection(NanoDetConfig(**SIZES))
    pixels = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        output, levels = model.eval()(pixels), model.pyramid(pixels)
        point = 0
        for stride, level, head in zip(STRIDES, levels, model.heads, strict=True):
            predicted = head(level)[1]
            for row in range(64 // stride):
                for column in range(96 // stride):
                    numbers = predicted[:, row, column]
                    assert torch.equal(output.logits[1, point], numbers[:3])
                    sides = [numbers[3 + 11 * side : 14 + 11 * side].softmax(0) for side in range(4)]
                    left, top, right, bottom = (
                        sum(bin * float(p) for bin, p in enumerate(side)) * stride for side in sides
                    )
                    x, y = (column + 0.5) * stride, (row + 0.5) * stride
                    x1, y1, x2, y2 = max(x - left, 0), max(y - top, 0), min(x + right, 96), min(y + bottom, 64)
                    expected = [(x1 + x2) / 2 / 96, (y1 + y2) / 2 / 64, (x2 - x1) / 96, (y2 - y1) / 64]
                    assert output.pred_boxes[1, point].tolist() == pytest.approx(expected, abs=1e-5)
                    point += 1
    assert point == output.logits.shape[1]


def test_weights_in_8_bits_are_those_of_the_convolution_up_to_half_a_step():
    torch.manual_seed(0)
    convolution, kept = torch.nn.Conv2d(5, 4, 3, stride=2, padding=1), Int8Conv2d(5, 4, 3, stride=2)
    convolution.weight.data[0] *= 100  # a scale per channel: one does not coarsen the others
    convolution.weight.data[1] = 0
    kept.set_weights(convolution.weight, convolution.bias)
    scale = convolution.weight.abs().amax(dim=(1, 2, 3)) / 127
    rounded = kept.weight * kept.scale[:, None, None, None]
    assert ((rounded - convolution.weight).abs().amax(dim=(1, 2, 3)) <= 0.51 * scale + 1e-6).all()
    convolution.weight.data = rounded.detach()
    pixels = torch.randn(2, 5, 9, 8)
    torch.testing.assert_close(kept(pixels), convolution(pixels))


def test_objects_come_first_and_the_cells_are_those_of_the_grid():
    model = region_model(object_threshold=0.4, max_objects=4, nms_threshold=0.5)
    inputs, output = looked_at(model)
    [described] = model.describe(output)
    objects, cells = described[:-9], described[-9:]
    assert 0 < len(objects) <= 4
    assert all({"box", "label", "score"} == set(region) for region in objects)
    assert all(set(region) == {"box"} for region in cells)
    assert {region["label"] for region in model.describe(output, "en")[0][: len(objects)]} <= {*LABELS.values()}
    scores = [region["score"] for region in objects]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= 0.4
    boxes = torch.tensor([region["box"] for region in objects])
    assert (boxes[:, [0, 2]] <= 90).all()
    assert (boxes[:, [1, 3]] <= 60).all()
    for label in LABELS.values():  # the same class twice at one place goes
        of_it = boxes[[region["label"] == label for region in objects]]
        assert (box_iou(of_it, of_it) <= 0.5 + torch.eye(len(of_it))).all()
    with torch.inference_mode():
        grid = model.grid(inputs["pixel_values"], inputs["original_sizes"])
    torch.testing.assert_close(output.region_features[0, -9:], grid.region_features[0])
    torch.testing.assert_close(output.boxes[0, -9:], grid.boxes[0])


def test_a_photo_keeps_its_proportions_and_boxes_are_of_the_photo():
    """90 x 60 pixels become 64 x 43 of 64 x 64, with black below."""
    model = region_model()
    inputs, _ = looked_at(model)
    assert inputs["detector_extents"].tolist() == [[43 / 64, 1]]
    pixels = inputs["detector_pixel_values"]
    red = (pixels[0, 2] * 0.229 + 0.485) * 255  # blue, green, red
    assert red[43:].abs().max() < 1e-3
    seen = np.asarray(PHOTO.resize((64, 43), Image.Resampling.BILINEAR))[..., 0]
    assert np.abs(red[:43].numpy() - seen).max() < 1e-2
    with torch.inference_mode():
        boxes, _ = model.detect(pixels, inputs["detector_extents"])
        centre, size = model.detector(pixels).pred_boxes.split(2, dim=-1)
    corners = torch.cat([centre - size / 2, centre + size / 2], dim=-1) * 64 * 90 / 64
    expected = corners.clamp(min=0).minimum(torch.tensor([90, 43 * 90 / 64, 90, 43 * 90 / 64]))
    torch.testing.assert_close(boxes * torch.tensor([90, 43 * 90 / 64, 90, 43 * 90 / 64]), expected)
    squashed, _ = looked_at(model, detector_keep_ratio=False)
    assert squashed["detector_extents"].tolist() == [[1, 1]]


def test_folded_norms_change_nothing_but_time():
    model = region_model(object_threshold=0.6)
    for name, values in model.grid.named_buffers():
        if name.endswith(("running_mean", "running_var")):  # as if it were trained
            values.uniform_(0.5, 1.5)
    inputs, output = looked_at(model)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.inference_mode():
        folded = model.fold_batch_norms().fold_batch_norms()(**inputs)
    assert norms
    assert not [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    torch.testing.assert_close(folded.region_features, output.region_features, atol=1e-4, rtol=1e-4)
    assert torch.equal(folded.tag_ids, output.tag_ids)


def test_an_object_is_the_mean_of_the_feature_map_in_its_box():
    """A box that covers whole cells of the map is their mean, up to the samples of RoIAlign at its border."""
    model = region_model()
    feature_map = torch.arange(16.0).reshape(1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)  # 32 x 32
    pooled = model.pool(feature_map, [torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.5, 1.0, 1.0]])])
    [left_top, wide] = pooled[0][:, 0].tolist()
    assert left_top == pytest.approx(feature_map[0, 0, :16, :16].mean().item(), abs=0.4)
    assert wide == pytest.approx(feature_map[0, 0, 16:, 8:].mean().item(), abs=0.4)


def test_photos_of_a_batch_are_as_alone():
    """One with more objects than another, too: rows are padded at the end, and masked."""
    model = region_model(object_threshold=0.6)
    photos = [PHOTO, Image.new("RGB", (50, 50), "gray"), Image.effect_noise((30, 80), 200).convert("RGB")]
    _, together = looked_at(model, photos)
    counts = together.region_attention_mask.sum(dim=1).tolist()
    assert len(set(counts)) > 1
    for row, photo in enumerate(photos):
        _, alone = looked_at(model, [photo])
        assert alone.region_attention_mask.sum() == counts[row]
        torch.testing.assert_close(together.region_features[row, : counts[row]], alone.region_features[0])
        assert model.describe(together)[row][0].keys() == model.describe(alone)[0][0].keys()
        assert model.tags(together)[row] == model.tags(alone)[0]


def test_tags_say_what_is_sure_doubted_and_absent():
    model = region_model(
        object_labels=["人", "杯子", "狗"], absent_labels={"人": "无人"}, object_threshold=0.2, object_sure=0.6
    )
    best = torch.tensor([[0.7, 0.4, 0.1], [0.05, 0.2, 0.9], [0.25, 0.0, 0.0]])
    ids, scores = model.rank_tags(best, None)
    said = [[model.tag_labels[index - 1] for index in row if index] for row in ids.tolist()]
    assert said == [["人", "杯子" + DOUBT], ["无人", "狗"], ["无人" + DOUBT]]
    assert scores.tolist() == [pytest.approx(row) for row in ([0.7, 0.4], [0.95, 0.9], [0.75, 0.0])]
    assert model.tag_labels[:3] == ["人", "杯子", "狗"]  # class ids are theirs


def test_of_an_object_and_a_word_that_say_the_same_the_surer_counts():
    grid = GRID | {"tag_labels": ["狗", "草地", "狗？", "草地？"], "tag_threshold": 0.2, "tag_sure": 0.5}
    model = region_model(grid=grid, object_labels=["人", "杯子", "狗"], object_threshold=0.3, object_sure=0.4)
    best = torch.tensor([[0.0, 0.0, 0.45], [0.0, 0.0, 0.35], [0.0, 0.0, 0.2]])
    words = torch.tensor([[0.46, 0.1, 0.0, 0.0], [0.6, 0.3, 0.0, 0.0], [0.3, 0.1, 0.0, 0.0]])
    ids, scores = model.rank_tags(best, words)
    said = [[model.tag_labels[index - 1] for index in row if index] for row in ids.tolist()]
    assert said == [["狗"], ["狗", "草地？"], ["狗？"]]
    assert scores[:, 0].tolist() == pytest.approx([0.45, 0.6, 0.3])


@pytest.mark.parametrize(
    "detector",
    [
        {"model_type": "yolos", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "image_size": [64, 64], "intermediate_size": 16, "num_detection_tokens": 7},
        {"model_type": "conditional_detr", "use_timm_backbone": False, "use_pretrained_backbone": False, "d_model": 16,
         "num_queries": 6, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
         "backbone_config": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 8],
                             "depths": [1, 1, 1, 1], "out_features": ["stage4"]}},
    ],
    ids=lambda detector: detector["model_type"],
)  # fmt: skip
def test_any_detector_of_transformers(detector, tmp_path):
    """One whose last class is "no object", and one without; saved and loaded they give the same."""
    model = region_model(
        detector | {"id2label": LABELS}, object_threshold=0.01, object_tag_threshold=0.01, max_objects=3
    )
    inputs, output = looked_at(model, detector_bgr=False)
    assert [set(region) for region in model.describe(output)[0][:1]] == [{"box", "label", "score"}]
    assert model.tags(output)[0]
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        again = ObjectRegionModel.from_pretrained(tmp_path).eval()(**inputs)
    torch.testing.assert_close(again.region_features, output.region_features)
    assert torch.equal(again.tag_ids, output.tag_ids)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"detector": {"model_type": "bert"}},
            "detector has the model_type 'bert', which is no object detection model",
        ),
        ({"detector": {"model_type": "detr", "use_pretrained_backbone": True}}, "nothing that is downloaded"),
        (
            {"detector": {"model_type": "detr", "backbone_config": {"_name_or_path": "a/b"}}},
            "nothing that is downloaded",
        ),
        (
            {"detector": {"model_type": "detr", "backbone": "a/b", "use_timm_backbone": False}},
            "nothing that is downloaded",
        ),
        ({"detector": {"model_type": "yolos", "attn_implementation": "a/b"}}, "nothing that is downloaded"),
        ({"detector": {"model_type": "yolos", "num_hidden_layers": 10**9}}, "nothing that is downloaded"),
        ({"detector": {"model_type": "yolos", "num_labels": 10**9}}, "nothing that is downloaded"),
        ({"detector": {"model_type": "yolos", "id2label": {"a": "猫"}}}, "id2label is"),
        ({"detector": [1]}, "the config of an object detection model"),
        ({"object_labels": ["人", "人", "狗"]}, "object_labels has 2 different words for 3 classes"),
        ({"detector": {"model_type": "no_such"}}, "detector has the model_type 'no_such', which transformers does not"),
        ({"absent_labels": {"马": "无马"}}, "absent_labels names '马', which is no word of the detector"),
        ({"max_objects": -1}, "max_objects is -1"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        ObjectRegionModel(ObjectRegionConfig(**{"grid": GRID, "detector": NANODET} | fields))


def test_every_class_of_coco_has_its_word():
    words = object_words()
    assert len(words) == 80
    assert len(set(words.values())) == 80
    assert [*words][:3] == ["person", "bicycle", "car"]
    assert words["cup"] == "杯子"


def test_a_checkpoint_that_looks_with_it(tiny_checkpoint, tmp_path, capsys):
    """Saved, checked as a Hub repo, loaded; the same objects and tags by every way, and in the pictures."""
    started = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
    started.processor.max_regions = 20
    model = region_model(object_labels=["猫", "狗", "草地"], object_threshold=0.4)
    processor = ObjectRegionImageProcessor(grid={"size": 64}, detector_size=64)
    save_checkpoint(tmp_path / "eyes", started.captioner, started.processor, model, processor, dtype=torch.float32)
    check_repo(tmp_path / "eyes")
    (tmp_path / "photos").mkdir()
    PHOTO.save(tmp_path / "photos" / "noise.png")

    pipe = MengziOscarPipeline.from_pretrained(tmp_path / "eyes")
    result = pipe.caption(tmp_path / "photos" / "noise.png")
    objects = [region for region in result["regions"] if "label" in region]
    assert 0 < len(objects) < len(result["regions"]) == len(result["captions"][0]["region_weights"][0])
    store = str(tmp_path / "store")
    assert main(["extract", str(tmp_path / "photos"), "--model", str(tmp_path / "eyes"), "--output", store]) == 0
    row = RegionFeatureStore.open(store)["noise"]
    assert row["class_ids"][: len(objects)].tolist() == [
        model.tag_labels.index(region["label"]) + 1 for region in objects
    ]
    assert [model.tag_labels[index - 1] for index in row["tag_ids"]] == result["tags"]

    name, model_flag = str(tmp_path / "photos" / "noise.png"), ["--model", str(tmp_path / "eyes")]
    capsys.readouterr()
    pictures = ["--picture", str(tmp_path / "regions.png")]
    assert main(["caption", name, *model_flag, "--json", "--picture", str(tmp_path / "captions.png")]) == 0
    assert main(["caption", "--features", store, *model_flag, "--json"]) == 0
    assert main(["caption", "--features", store, *model_flag, "--details"]) == 0
    short, stored, details = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert short["objects"] == stored["objects"] == rounded(objects)
    assert [region for region in details["regions"] if "label" in region] == rounded(objects)
    assert main(["extract", str(tmp_path / "photos"), *model_flag, "--output", str(tmp_path / "again"), *pictures]) == 0
    for drawn in ("captions.png", "regions.png"):  # the frames of the first and the second object
        with Image.open(tmp_path / drawn) as image:
            assert {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS[:2]} <= {
                colour for _, colour in image.getcolors(2**24)
            }
