"""The detector against the original's recorded output, and every fast part against a plain one."""

import importlib.util
import json

import numpy as np
import pytest
import torch
import torchvision
from conftest import shared_path
from PIL import Image
from safetensors.torch import load_file

from modeling_mengzi_oscar import modeling_vinvl
from modeling_mengzi_oscar.configuration_vinvl import VinVLConfig
from modeling_mengzi_oscar.image_processing_vinvl import VinVLImageProcessor
from modeling_mengzi_oscar.modeling_vinvl import VinVLModel, class_wise_nms, roi_align

TINY = {
    "depths": [1, 1, 2, 2],
    "stem_channels": 8,
    "stage_channels": 16,
    "groups": 4,
    "width_per_group": 2,
    "anchor_sizes": [8, 16, 32, 64, 128],
    "rpn_pre_nms_top_n": 400,
    "rpn_post_nms_top_n": 60,
    "num_classes": 31,
    "num_attributes": 25,
    "class_embedding_size": 8,
    "attribute_hidden_size": 16,
    "min_detections": 8,
}
CASES = {  # name in golden_tiny: photos, differences of the config
    "a": ("a", {}),
    "b": ("b", {}),
    "c_alone": ("c", {}),
    "batch_ac": ("ac", {}),
    "min_detections": ("a", {"score_threshold": 0.97}),
    "max_detections": ("a", {"max_detections": 9}),
    "filter0": ("a", {"nms_filter": 0}),
    "filter0_regress": ("a", {"nms_filter": 0, "ignore_box_regression": False}),
    "filter1_regress": ("a", {"ignore_box_regression": False}),
    "filter2": ("a", {"nms_filter": 2}),
    "no_attributes": ("a", {"predict_attributes": False}),
}


@pytest.fixture
def golden_tiny():
    return load_file(shared_path("parity/vinvl/golden_tiny.safetensors"))


def golden_model(golden_tiny, **options):
    state_dict = {key.removeprefix("sd."): value for key, value in golden_tiny.items() if key.startswith("sd.")}
    model = VinVLModel(VinVLConfig(**TINY, **options)).eval()
    model.load_state_dict({k: v for k, v in state_dict.items() if not k.startswith("attribute.feature_extractor.")})
    return model


def photos(names):
    return [Image.open(shared_path(f"parity/vinvl/golden_tiny_{name}.jpg")) for name in names]


@torch.inference_mode()
def run_tiny_case(golden_tiny, case, model=None):
    names, options = CASES[case]
    model = model or golden_model(golden_tiny, **options)
    inputs = VinVLImageProcessor(shortest_edge=96, longest_edge=160)(photos(names))
    return inputs, model(**inputs, return_proposals=True)


def assert_equals_golden(output, image, golden):
    """Same detections in the same order; tolerances of the golden files. `golden` maps short names to tensors."""
    count = int(output.region_attention_mask[image].sum())
    assert count == len(golden["det.labels"])
    assert output.class_ids[image, :count].tolist() == golden["det.labels"].tolist()
    torch.testing.assert_close(output.proposals[image], golden["rpn.boxes"], atol=0.02, rtol=0)
    torch.testing.assert_close(output.boxes[image, :count], golden["det.boxes_original_image"], atol=0.02, rtol=0)
    torch.testing.assert_close(output.scores[image, :count], golden["det.scores"], atol=2e-4, rtol=0)
    rows = golden["det.box_features"]
    difference = (output.region_features[image, : len(rows), :-6] - rows).abs() / rows.amax(1, keepdim=True)
    assert difference.max() < 1e-4
    torch.testing.assert_close(output.region_features[image, :count, -6:], golden["det.geometry_wh"], atol=1e-4, rtol=0)
    if "attr.labels" in golden:
        scored = golden["attr.scores"] > 0
        assert torch.equal(output.attribute_ids[image, :count], golden["attr.labels"] * scored)
        torch.testing.assert_close(output.attribute_scores[image, :count], golden["attr.scores"], atol=2e-4, rtol=0)


def golden_image(golden_tiny, case, image):
    prefix = f"case.{case}.{image}."
    return {key.removeprefix(prefix): value for key, value in golden_tiny.items() if key.startswith(prefix)}


@pytest.mark.parametrize("case", CASES)
def test_tiny_golden(golden_tiny, case):
    inputs, output = run_tiny_case(golden_tiny, case)
    for image in range(len(CASES[case][0])):
        golden = golden_image(golden_tiny, case, image)
        if "preprocessed" in golden:
            assert torch.equal(inputs["pixel_values"][image], golden["preprocessed"])
        assert_equals_golden(output, image, golden)
    assert (output.attribute_ids is None) == (case == "no_attributes")


@pytest.mark.slow
def test_full_size_golden():
    shapes = json.loads(shared_path("parity/vinvl/vinvl_x152c4_keys.json").read_text())
    golden = load_file(shared_path("parity/vinvl/golden_dev.safetensors"))
    model = full_size_model(shapes)
    inputs = VinVLImageProcessor()(Image.open(shared_path("parity/vinvl/golden_dev.jpg")))
    torch.testing.assert_close(
        inputs["pixel_values"][0, :, 100:148, 200:248], golden["preprocessed.slice"], atol=0, rtol=0
    )
    with torch.inference_mode():
        output = model(**inputs, return_proposals=True)
    golden["det.box_features"] = golden["det.box_features.first10"]
    assert_equals_golden(output, 0, golden)
    norms = output.region_features[0, :, :-6].norm(dim=1)
    torch.testing.assert_close(norms, golden["det.box_features.norm"], rtol=1e-4, atol=0)


def full_size_model(shapes):
    """The full network with the deterministic weights of the golden recipe."""
    recipe = shared_path("parity/vinvl/fill_weights.py")
    spec = importlib.util.spec_from_file_location("fill_weights", recipe)
    fill_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill_weights)
    weights = json.loads(shared_path("parity/vinvl/golden_dev.json").read_text())["weights"]
    overrides = fill_weights.overrides_from(shared_path("parity/vinvl/golden_dev.safetensors"))
    shapes = {k: v["shape"] for k, v in shapes.items() if not k.startswith("attribute.feature_extractor.")}
    state_dict = fill_weights.fill_state_dict(shapes, weights["salt"], overrides, weights["gains"])
    config = VinVLConfig()
    key = "rpn.anchor_generator.cell_anchors.0"
    state_dict[key] = modeling_vinvl.cell_anchors(config.anchor_sizes, config.anchor_ratios)
    with torch.device("meta"):
        model = VinVLModel(config)
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model.eval()


def test_keys_and_shapes_equal_the_original_manifest():
    manifest = json.loads(shared_path("parity/vinvl/vinvl_x152c4_keys.json").read_text())
    with torch.device("meta"):
        ours = {key: list(value.shape) for key, value in VinVLModel(VinVLConfig()).state_dict().items()}
    shared = "roi_heads.box.feature_extractor."
    twins = {key.replace(shared, "attribute.feature_extractor."): shape for key, shape in ours.items() if shared in key}
    assert ours | twins == {key: value["shape"] for key, value in manifest.items()}


def epsilon_in_norm(norm):
    scale = norm.weight * (norm.running_var + 1e-5).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def clip_to_size(boxes, size):
    return torch.minimum(boxes.clamp(min=0), size.flip(0).repeat(2).to(boxes))


def anchors_without_rounding(sizes, ratios):
    return torch.tensor([[-s / r**0.5, -s * r**0.5, s / r**0.5, s * r**0.5] for r in ratios for s in sizes]) / 2


def plain_argmax(boxes, probabilities, config):
    rows, _, _ = modeling_vinvl.detect_best_surviving_class(boxes, probabilities, config)
    scores, labels = probabilities[rows, 1:].max(1)
    return rows, labels + 1, scores


@pytest.mark.parametrize(
    ("target", "mistake"),
    [
        ((modeling_vinvl.VinVLFrozenNorm, "scale_and_shift"), epsilon_in_norm),
        ((modeling_vinvl, "clip_boxes"), clip_to_size),
        ((modeling_vinvl, "cell_anchors"), anchors_without_rounding),
        ((modeling_vinvl, "STRIDE"), 16.5),
        (("DETECT", 1), plain_argmax),
        (("config", "class_nms_threshold"), 0.5),
        (("config", "rpn_post_nms_top_n"), 100),
        (("config", "nms_filter"), 2),
        (("config", "ignore_box_regression"), False),
    ],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_goldens_catch_a_mistake(golden_tiny, monkeypatch, target, mistake):
    model = golden_model(golden_tiny)
    if target[0] == "DETECT":
        monkeypatch.setitem(modeling_vinvl.DETECT, target[1], mistake)
    else:
        monkeypatch.setattr(model.config if target[0] == "config" else target[0], target[1], mistake)
    _, output = run_tiny_case(golden_tiny, "a", model)
    with pytest.raises(AssertionError):
        assert_equals_golden(output, 0, golden_image(golden_tiny, "a", 0))


def random_model(**options):
    """A tiny model with random weights and outputs that are spread enough to be told apart."""
    torch.manual_seed(0)
    model = VinVLModel(VinVLConfig(**(TINY | options))).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0, 0.3 if "predictor" in name else (2 / max(value[0].numel(), 1)) ** 0.5)
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.1)
        model.backbone.body["stem"].conv1.weight /= 64
    return model


def random_photos(count, size=(120, 90)):
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (9, 12, 3), dtype=np.uint8) for _ in range(count)]
    return [Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC) for picture in noise]


def tiny_inputs(count, size=(120, 90)):
    return VinVLImageProcessor(shortest_edge=96, longest_edge=160)(random_photos(count, size))


def random_boxes(count, width=150.0, height=90.0):
    corners = torch.rand(count, 2, 2) * torch.tensor([width, height])
    return torch.cat([corners.amin(1), corners.amax(1)], dim=-1)


def naive_roi_align(feature_map, box, bins=14):
    """One region, sample by sample, as the original's kernel describes it."""
    channels, height, width = feature_map.shape
    x1, y1, x2, y2 = (float(value) / 16 for value in box)
    w, h = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    nx, ny = int(np.ceil(w / bins)), int(np.ceil(h / bins))
    pooled = torch.zeros(channels, bins, bins)
    for i in range(bins):
        for j in range(bins):
            for sample_y in range(ny):
                for sample_x in range(nx):
                    y = y1 + (i + (sample_y + 0.5) / ny) * h / bins
                    x = x1 + (j + (sample_x + 0.5) / nx) * w / bins
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    top, left = int(y), int(x)
                    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    dy, dx = y - top, x - left
                    upper = feature_map[:, top, left] * (1 - dx) + feature_map[:, top, right] * dx
                    lower = feature_map[:, bottom, left] * (1 - dx) + feature_map[:, bottom, right] * dx
                    pooled[:, i, j] += (upper * (1 - dy) + lower * dy) / (nx * ny)
    return pooled


def test_roi_align_equals_naive_and_torchvision():
    feature_map = torch.randn(2, 3, 6, 10)
    boxes = random_boxes(12)
    boxes[0, 2:] = boxes[0, :2]  # no area
    boxes[1] = torch.tensor([0.0, 0.0, 159.0, 95.0])  # everything
    boxes[2] = torch.tensor([120.0, 70.0, 230.0, 140.0])  # beyond the map
    boxes[3] = torch.tensor([-40.0, -30.0, 25.0, 20.0])
    images = torch.arange(12) % 2
    rows = feature_map.permute(0, 2, 3, 1).flatten(0, 2)
    pooled = roi_align(rows, 6, 10, images, boxes)
    naive = torch.stack([naive_roi_align(feature_map[i], box) for i, box in zip(images, boxes, strict=True)])
    torch.testing.assert_close(pooled, naive, atol=1e-5, rtol=1e-5)
    with_index = torch.cat([images[:, None].float(), boxes], dim=1)
    reference = torchvision.ops.roi_align(feature_map, with_index, 14, 1 / 16, sampling_ratio=0, aligned=False)
    torch.testing.assert_close(pooled, reference, atol=1e-5, rtol=1e-5)
    every_second = roi_align(rows, 6, 10, images, boxes, step=2)
    torch.testing.assert_close(every_second, reference[:, :, ::2, ::2], atol=1e-5, rtol=1e-5)


def test_extractor_equals_roi_align_then_layer4():
    model = random_model()
    extractor = model.roi_heads["box"].feature_extractor
    c4 = torch.randn(2, 64, 6, 10)
    boxes = [random_boxes(9), random_boxes(5)]
    with torch.inference_mode():
        fast = extractor(c4, boxes)
        pooled = torchvision.ops.roi_align(c4, boxes, 14, 1 / 16, sampling_ratio=0, aligned=False)
        plain = extractor.head["layer4"](pooled).mean((2, 3))
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("own_boxes", [False, True], ids=["shared boxes", "boxes per class"])
def test_class_wise_nms_equals_torchvision_class_by_class(own_boxes):
    boxes = random_boxes(60)
    boxes[10:15] = boxes[5:10]  # duplicates
    boxes[20:24, 2] = boxes[20:24, 0]  # no area
    boxes[24] = boxes[20]
    scores = torch.rand(60, 23).round(decimals=1)  # many ties
    if own_boxes:
        boxes = boxes[:, None] + torch.randn(60, 23, 1) * 3
    candidates = scores >= 0.3
    kept = class_wise_nms(boxes, scores, candidates, 0.3)
    for k in range(23):
        rows = candidates[:, k].nonzero()[:, 0]
        class_boxes = boxes[:, k] if own_boxes else boxes
        survivors = rows[torchvision.ops.nms(class_boxes[rows], scores[rows, k], 0.3)]
        assert kept[:, k].nonzero()[:, 0].tolist() == survivors.sort().values.tolist()
        everything = torchvision.ops.nms(class_boxes, scores[:, k], 0.3)  # the low ones cannot change it
        assert set(survivors.tolist()) == {row for row in everything.tolist() if candidates[row, k]}


@pytest.mark.parametrize("seed", range(5))
def test_a_photo_of_a_wall(seed):
    """Few confident boxes: in the last round all classes compete with all boxes. The same regions, bit by bit."""
    torch.manual_seed(seed)
    config = VinVLConfig(**TINY | {"num_classes": 200})
    boxes, logits = random_boxes(90), torch.randn(90, 200) * 0.3
    logits[:4, 50:60] += 9
    probabilities = logits.softmax(1)
    assert (probabilities[:, 1:].max(1).values > config.score_threshold).sum() < config.min_detections
    found = modeling_vinvl.detect_best_surviving_class(boxes, probabilities, config)
    for one, other in zip(found, naive_filter_1(boxes, probabilities, config), strict=True):
        assert torch.equal(one, other)


def test_class_wise_nms_compares_with_the_double_threshold():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 3.0]])  # IoU is float32(0.3), which is above 0.3
    scores = torch.tensor([[0.9], [0.8]])
    assert class_wise_nms(boxes, scores, scores > 0, 0.3).flatten().tolist() == [True, False]
    assert torchvision.ops.nms(boxes, scores[:, 0], 0.3).tolist() == [0]


def naive_filter_1(boxes, probabilities, config):
    """Section 7.2 of the specification, class by class."""
    survived = torch.zeros_like(probabilities)
    for k in range(1, probabilities.shape[1]):
        kept = torchvision.ops.nms(boxes, probabilities[:, k], config.class_nms_threshold)
        survived[kept, k] = probabilities[kept, k]
    best, labels = survived.max(1)
    best, rows = best.sort(descending=True, stable=True)
    count = min(max(int((best >= config.score_threshold).sum()), config.min_detections), config.max_detections)
    rows = rows[:count][best[:count] > 0]
    return rows, labels[rows], best[: len(rows)]


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("proposals", [3, 60])
def test_filter_1_equals_naive_from_flat_to_sharp_scores(sharpness, proposals):
    config = VinVLConfig(**TINY, max_detections=40)
    boxes = random_boxes(proposals)
    probabilities = (torch.randn(proposals, 31) * sharpness).softmax(1)
    fast = modeling_vinvl.detect_best_surviving_class(boxes, probabilities, config)
    for ours, theirs in zip(fast, naive_filter_1(boxes, probabilities, config), strict=True):
        torch.testing.assert_close(ours, theirs)


def assert_same_regions(one, other, row):
    count = int(one.region_attention_mask[0].sum())
    assert int(other.region_attention_mask[row].sum()) == count
    assert torch.equal(one.class_ids[0, :count], other.class_ids[row, :count])
    for name in ("boxes", "scores", "region_features"):
        ours, theirs = getattr(one, name)[0, :count], getattr(other, name)[row, :count]
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


@torch.inference_mode()
def test_alone_equals_in_a_batch_of_equal_sizes():
    model, inputs = random_model(), tiny_inputs(3)
    batch = model(**inputs)
    for row in range(3):
        assert_same_regions(model(**{key: value[row : row + 1] for key, value in inputs.items()}), batch, row)
    assert batch.region_features.shape[-1] == model.config.region_feature_size == 134
    beyond = batch.region_attention_mask == 0
    assert not batch.boxes[beyond].any()
    assert not batch.region_features[beyond].any()


@torch.inference_mode()
@pytest.mark.parametrize("options", [{"nms_filter": 0, "ignore_box_regression": False}, {"nms_filter": 2}, {}])
def test_a_photo_of_nothing(options):
    model = random_model(**options)
    model.roi_heads["box"].predictor["cls_score"].bias[0] = 1000
    output = model(**tiny_inputs(2))
    assert output.region_features.shape == (2, 0, 134)
    assert output.attribute_ids.shape == (2, 0, 16)
    assert model.tags(output, "en") == [[], []]


@torch.inference_mode()
def test_chunks_and_folded_norms_change_nothing():
    model, inputs = random_model(), tiny_inputs(2)
    before = model(**inputs)
    model.config.rois_per_chunk = 7
    model.fold_norms()
    after = model(**inputs)
    for row in range(2):
        assert_same_regions(type(before)(**{k: v[row : row + 1] for k, v in before.items()}), after, row)


@torch.inference_mode()
@pytest.mark.parametrize("folded", [False, True])
def test_save_and_load(tmp_path, folded):
    model, inputs = random_model(nms_filter=1, id2attribute={1: "red"}), tiny_inputs(1)
    if folded:
        model.fold_norms()
    model.save_pretrained(tmp_path)
    VinVLImageProcessor(shortest_edge=96, longest_edge=160).save_pretrained(tmp_path)
    loaded, info = VinVLModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.id2attribute == {1: "red"}
    again = VinVLImageProcessor.from_pretrained(tmp_path)(random_photos(1))
    assert torch.equal(again["pixel_values"], inputs["pixel_values"])
    assert_same_regions(model(**inputs), loaded(**again), 0)


@torch.inference_mode()
def test_bfloat16_keeps_boxes_and_features_in_float32(tmp_path):
    model, inputs = random_model(), tiny_inputs(1)
    model.save_pretrained(tmp_path)
    loaded = VinVLModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.backbone.body["layer1"][0].conv1.weight.dtype == torch.bfloat16
    assert loaded.backbone.body["layer1"][0].downsample[1].running_var.dtype == torch.float32
    output = loaded(**inputs)
    assert output.region_features.dtype == output.boxes.dtype == output.scores.dtype == torch.float32
    mixed = random_model()
    mixed.roi_heads.bfloat16()  # the proposals stay exact
    torch.testing.assert_close(
        mixed(**inputs, return_proposals=True).proposals, model(**inputs, return_proposals=True).proposals
    )


@torch.inference_mode()
def test_geometry_order_swaps_the_last_two():
    inputs = tiny_inputs(1)
    wh, hw = random_model()(**inputs), random_model(geometry_order="hw")(**inputs)
    assert torch.equal(wh.region_features[..., [0, 1, 2, 3, 4, 5]], hw.region_features[..., [0, 1, 2, 3, 4, 5]])
    assert torch.equal(wh.region_features[..., [-1, -2]], hw.region_features[..., [-2, -1]])
    width = (wh.boxes[..., 2] - wh.boxes[..., 0]) / inputs["original_sizes"][0, 1]
    torch.testing.assert_close(wh.region_features[..., -2], width)


@torch.inference_mode()
def test_tags_and_describe():
    names = {index: f"thing {index}" for index in range(1, 31)}
    model = random_model(id2label=names, id2attribute={index: f"kind {index}" for index in range(1, 25)})
    output = model(**tiny_inputs(2))
    tags, regions = model.tags(output, "en"), model.describe(output, "en")
    for image in range(2):
        assert len(tags[image]) == int(output.region_attention_mask[image].sum())
        assert tags[image] == [region["label"] for region in regions[image]]
        assert tags[image][0] == names[int(output.class_ids[image, 0])]
        assert all(attribute["score"] > 0.05 for region in regions[image] for attribute in region["attributes"])
    pytest.importorskip("modeling_mengzi_oscar.labels.chinese")
    model.config.labels_zh = {tags[0][0]: "东西"}
    assert model.tags(output)[0][0] == "东西"
    with pytest.raises(ValueError, match="there are 'zh' and 'en'"):
        model.tags(output, "fr")
    model.config.id2label = {}
    with pytest.raises(ValueError, match="label map"):
        model.tags(output, "en")


@pytest.mark.parametrize(
    ("photo", "resized"),
    [((951, 600), (600, 951)), ((560, 353), (600, 951)), ((281, 522), (999, 538)), ((50, 40), (600, 750))]
    + [((300, 300), (600, 600)), ((1200, 300), (250, 1000))],
)
def test_resized_size(photo, resized):
    assert VinVLImageProcessor().resized_size(photo[1], photo[0]) == resized


def test_image_processor_takes_arrays_and_pads_with_zeros():
    processor = VinVLImageProcessor(shortest_edge=96, longest_edge=160)
    picture = random_photos(1)[0]
    from_image, from_array = processor(picture), processor(np.array(picture))
    assert torch.equal(from_image["pixel_values"], from_array["pixel_values"])
    batch = processor([picture, picture.resize((150, 60))])
    height, width = batch["reshaped_input_sizes"][1].tolist()
    assert (height, width) == (64, 160)
    assert not batch["pixel_values"][1, :, height:].any()
    assert batch["original_sizes"].tolist() == [[90, 120], [60, 150]]


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="nms_filter is 3"):
        VinVLConfig(nms_filter=3)
    with pytest.raises(ValueError, match="regressed boxes"):
        VinVLConfig(nms_filter=2, ignore_box_regression=False)
    with pytest.raises(ValueError, match="geometry_order"):
        VinVLConfig(geometry_order="xy")
    processor = VinVLImageProcessor()
    with pytest.raises(ValueError, match="image 1 is a str"):
        processor([random_photos(1)[0], "photo.jpg"])
    with pytest.raises(ValueError, match="float64"):
        processor(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="empty"):
        processor([])
    with pytest.raises(ValueError, match="too thin"):
        processor(Image.new("RGB", (5000, 1)))
    model, inputs = random_model(), tiny_inputs(1)
    with pytest.raises(ValueError, match="original_sizes has shape"):
        model(inputs["pixel_values"], torch.tensor([[3, 4], [5, 6]]))
    with pytest.raises(ValueError, match="exceed pixel_values"):
        model(inputs["pixel_values"], inputs["original_sizes"], torch.tensor([[900, 900]]))
