"""Conversion of an original checkpoint: what it accepts, what it refuses, and that nothing changes on the way."""

import json

import pytest
import torch
from test_vinvl import TINY, random_model, tiny_inputs

from modeling_mengzi_oscar.convert.vinvl import convert
from modeling_mengzi_oscar.image_processing_vinvl import VinVLImageProcessor
from modeling_mengzi_oscar.modeling_vinvl import VinVLModel

OPTIONS = {key: TINY[key] for key in ("rpn_pre_nms_top_n", "rpn_post_nms_top_n", "min_detections")}
ANCHORS = "rpn.anchor_generator.cell_anchors.0"


def original_state_dict(model):
    """With the extractor under both prefixes, as the original saves it."""
    state_dict = {key: value.clone() for key, value in model.state_dict().items()}
    for key in [key for key in state_dict if "feature_extractor" in key]:
        state_dict[key.replace("roi_heads.box.", "attribute.")] = state_dict[key].clone()
    return state_dict


@pytest.fixture
def files(tmp_path):
    """A function that writes a checkpoint and a label map, after `change` has been at the state dict."""

    def write(change=lambda state_dict: state_dict, classes=30):
        state_dict = change(original_state_dict(random_model()))
        torch.save({"model": state_dict, "iteration": 7, "optimizer": {"state": {}}}, tmp_path / "source.pth")
        label_map = {
            "label_to_idx": {f"thing {i}": i for i in range(1, classes + 1)},
            "attribute_to_idx": {f"kind {i}": i for i in range(1, 25)},
        }
        (tmp_path / "map.json").write_text(json.dumps(label_map))
        return tmp_path / "source.pth", tmp_path / "output", tmp_path / "map.json"

    return write


def under_module(state_dict):
    return {f"module.{key}": value for key, value in state_dict.items()}


def without_anchors(state_dict):
    return {key: value for key, value in state_dict.items() if key != ANCHORS}


@pytest.mark.parametrize(
    ("change", "more"),
    [(dict, {}), (under_module, {}), (without_anchors, {"anchor_sizes": TINY["anchor_sizes"]})],
)
def test_convert_loads_back_the_same_detector(files, tmp_path, change, more):
    (tmp_path / "zh.json").write_text(json.dumps({"thing 1": "东西"}), encoding="utf-8")
    output = convert(*files(change), labels=tmp_path / "zh.json", **OPTIONS, **more)
    model, info = VinVLModel.from_pretrained(output, output_loading_info=True)
    assert not any(info.values())
    expected = random_model()
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    for key, value in TINY.items():
        read = getattr(model.config, key)
        assert (list(read) if isinstance(value, list) else read) == value
    assert model.config.id2label[30] == "thing 30"
    assert model.config.id2attribute[24] == "kind 24"
    assert model.config.labels_zh == {"thing 1": "东西"}
    assert VinVLImageProcessor.from_pretrained(output).longest_edge == 1000
    inputs = tiny_inputs(1)
    with torch.inference_mode():
        assert torch.equal(model(**inputs).region_features, expected(**inputs).region_features)


def test_a_bare_state_dict_is_accepted(files):
    source, output, label_map = files()
    torch.save(torch.load(source, weights_only=True)["model"], source)
    assert (convert(source, output, label_map) / "model.safetensors").exists()


def drop(key):
    return lambda state_dict: {k: v for k, v in state_dict.items() if k != key}


def replace(key, value):
    return lambda state_dict: state_dict | {key: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("rpn.head.conv.bias"), "lacks 1 of .* rpn.head.conv.bias"),
        (drop("backbone.body.stem.conv1.weight"), "it has no backbone.body.stem.conv1.weight"),
        (replace("extra.weight", torch.ones(1)), "unknown 1 of .* extra.weight"),
        (replace("rpn.head.conv.bias", torch.ones(3)), "another shape for 1 of .* rpn.head.conv.bias"),
        (
            replace("attribute.feature_extractor.head.layer4.0.bn1.bias", torch.ones(64)),
            "layer4.0.bn1.bias differs from its copy",
        ),
        (replace(ANCHORS, torch.zeros(15, 4)), "other anchors"),
    ],
)
def test_convert_refuses_what_does_not_fit(files, change, message):
    with pytest.raises(ValueError, match=message) as error:
        convert(*files(change), **OPTIONS)
    assert "\n" not in str(error.value)


def test_convert_refuses_wrong_files(files, tmp_path):
    source, output, label_map = files(classes=29)
    with pytest.raises(ValueError, match="label_to_idx has 29 entries, but .* with 30"):
        convert(source, output, label_map)
    with pytest.raises(ValueError, match="no such file"):
        convert(tmp_path / "none.pth", output, label_map)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="damaged, or not a file of weights"):
        convert(tmp_path / "text.pth", output, label_map)
    torch.save({"model": {"a": print}}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="refused and not run: it is a pickle that calls"):
        convert(tmp_path / "code.pth", output, label_map)
    with pytest.raises(ValueError, match="no such file"):
        convert(source, output, tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"label_to_idx": {"a": 0}}')
    with pytest.raises(ValueError, match="are not 1 to 1"):
        convert(source, output, tmp_path / "other.json")
    with pytest.raises(ValueError, match="not an empty folder"):
        convert(source, tmp_path, label_map)
    assert not output.exists()
