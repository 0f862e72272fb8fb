"""The original vinvl_vg_x152c4.pth and its label map -> a folder that `VinVLModel.from_pretrained` loads.

The original keeps one feature extractor under two prefixes, may carry "module." on every key, and its loader skips what
does not fit. Here the two copies must agree, and every key and shape must fit exactly. Sizes are read from the tensors.
"""

from pathlib import Path

import torch

from ..checkpoint_folder import check_weights, read_json, read_tensors
from ..configuration_vinvl import VinVLConfig
from ..fields import check_fields, mapping, whole, word
from ..hub.model_card import detector_card
from ..hub.repo import assemble, written_beside
from ..image_processing_vinvl import VinVLImageProcessor
from ..labels.chinese import attribute_to_chinese, to_chinese
from ..modeling_vinvl import VinVLModel, cell_anchors

SHARED = "roi_heads.box.feature_extractor."
DUPLICATE = "attribute.feature_extractor."
ANCHORS = "rpn.anchor_generator.cell_anchors.0"


def convert(source, output, labelmap, labels=None, **options) -> Path:
    """Convert a checkpoint; the result appears under `output` only when it is complete.

    Args:
        source: the .pth file: a state dict, or a dict with one under "model".
        output: folder to create; it must not exist or be empty.
        labelmap: JSON with "label_to_idx" and "attribute_to_idx", both counting from 1.
        labels: JSON {English: Chinese}, the dictionary that the captioning checkpoint was trained with. It goes before
            the built-in one and is stored in the config.
        options: other fields of `VinVLConfig`, for instance nms_filter=2.

    Returns:
        The path of the folder.

    Raises:
        ValueError: a file that is missing or unreadable, keys or shapes that do not fit, copies that disagree, a label
            map of another size, or an output folder that has something in it.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not an empty folder: give another output, or remove it first")
    names, attributes = _read_label_map(labelmap)
    state_dict = _merge_shared(_read_state_dict(source), source)
    config = _config_of(state_dict, source, options)
    for key, found, wanted in (
        ("label_to_idx", len(names) + 1, config.num_classes),
        ("attribute_to_idx", len(attributes) + 1, config.num_attributes),
    ):
        if found != wanted:
            raise ValueError(f"{labelmap}: {key} has {found - 1} entries, but {source} was trained with {wanted - 1}")
    config.id2label, config.id2attribute = names, attributes
    config.label2id = {name: index for index, name in names.items()}
    config.labels_zh = _read_dictionary(labels) if labels else None
    config.id2label_zh = {index: to_chinese(name, config.labels_zh) for index, name in names.items()}
    config.id2attribute_zh = {index: attribute_to_chinese(name) for index, name in attributes.items()}
    model = _load(state_dict, config, source)
    with written_beside(output, ".partial") as partial:
        model.save_pretrained(partial)
        VinVLImageProcessor().save_pretrained(partial)
        assemble(partial, detector_card(config, output.name))
    return output


def _read_state_dict(source) -> dict[str, torch.Tensor]:
    if not Path(source).is_file():
        raise ValueError(f"{source}: no such file")
    state_dict = read_tensors(source)
    check_weights(state_dict, str(source))
    if all(key.startswith("module.") for key in state_dict):  # written by DistributedDataParallel
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return state_dict


def _merge_shared(state_dict, source) -> dict[str, torch.Tensor]:
    """One copy of the shared extractor: layer4 under the box head's prefix."""
    merged = {key: value for key, value in state_dict.items() if not key.startswith(DUPLICATE)}
    for key, value in state_dict.items():
        if key.startswith(DUPLICATE):
            twin = merged.setdefault(SHARED + key.removeprefix(DUPLICATE), value)
            if twin is not value and not torch.equal(twin, value):
                raise ValueError(f"{source}: {key} differs from its copy under {SHARED}, so one of the two is wrong")
    return merged


def _config_of(state_dict, source, options) -> VinVLConfig:
    """Read the sizes off the tensors."""

    def blocks(layer: str) -> int:
        return len({key.removeprefix(layer).split(".")[1] for key in state_dict if key.startswith(layer + ".")})

    try:
        conv2 = state_dict["backbone.body.layer1.0.conv2.weight"]  # (groups x width, width, 3, 3)
        sizes = {
            "depths": [blocks(f"backbone.body.layer{i}") for i in (1, 2, 3)] + [blocks(f"{SHARED}head.layer4")],
            "stem_channels": len(state_dict["backbone.body.stem.conv1.weight"]),
            "stage_channels": len(state_dict["backbone.body.layer1.0.conv3.weight"]),
            "groups": conv2.shape[0] // conv2.shape[1],
            "width_per_group": conv2.shape[1],
            "num_classes": len(state_dict["roi_heads.box.predictor.cls_score.weight"]),
            "num_attributes": len(state_dict["attribute.predictor.attr_score.weight"]),
            "class_embedding_size": state_dict["attribute.predictor.cls_embedding.weight"].shape[1],
            "attribute_hidden_size": len(state_dict["attribute.predictor.fc_attr.weight"]),
        }
    except KeyError as error:
        raise ValueError(f"{source} is not a VinVL attribute detector: it has no {error.args[0]}") from None
    except (IndexError, TypeError, ZeroDivisionError):
        raise ValueError(f"{source} is not a VinVL attribute detector: its tensors have other dimensions") from None
    if ANCHORS in state_dict:
        squares = state_dict[ANCHORS].view(3, -1, 4)[1]  # ratio 1
        sizes["anchor_sizes"] = [int(size) for size in squares[:, 2] - squares[:, 0] + 1]
    return VinVLConfig(**{**sizes, **options})


def _load(state_dict, config, source) -> VinVLModel:
    # the anchors are a constant: absent is fine, other values are not
    anchors = cell_anchors(config.anchor_sizes, config.anchor_ratios)
    if not torch.equal(state_dict.setdefault(ANCHORS, anchors), anchors):
        raise ValueError(f"{source}: {ANCHORS} holds other anchors than sizes {config.anchor_sizes} give")
    with torch.device("meta"):
        model = VinVLModel(config)
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - state_dict.keys()), sorted(state_dict.keys() - expected.keys())
    shapes = [key for key in expected.keys() & state_dict.keys() if expected[key].shape != state_dict[key].shape]
    for what, keys in (("lacks", missing), ("has unknown", unknown), ("has another shape for", sorted(shapes))):
        if keys:
            raise ValueError(f"{source} {what} {len(keys)} of {len(expected)} keys, the first is {keys[0]}")
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model


def _read_label_map(path) -> tuple[dict[int, str], dict[int, str]]:
    data = read_json(path)
    maps = []
    for key in ("label_to_idx", "attribute_to_idx"):
        if not isinstance(data.get(key), dict):
            raise ValueError(f"{path} has no {key!r}: give the detector's label map (VG-SGG-dicts-vgoi6-clipped.json)")
        check_fields(data, {key: mapping(word, whole(0, 1_000_000))})
        by_id = {index: name for name, index in data[key].items()}
        if sorted(by_id) != list(range(1, len(data[key]) + 1)):
            raise ValueError(f"{path}: the numbers in {key!r} are not 1 to {len(data[key])}, each once")
        maps.append(dict(sorted(by_id.items())))
    return maps[0], maps[1]


def _read_dictionary(path) -> dict[str, str]:
    dictionary = read_json(path)
    wrong = [key for key, value in dictionary.items() if not isinstance(value, str)]
    if wrong:
        raise ValueError(f"{path}: {wrong[0]!r} is not translated by a string")
    return dictionary
