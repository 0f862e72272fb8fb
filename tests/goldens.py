"""Reads the cases of the original Oscar code (shared/parity/oscar; see its README): calls, inputs, results."""

import json

import torch
from conftest import shared_path
from safetensors.torch import load_file

OUR_NAMES = {"img_feats": "region_features"}


def load_case(name):
    """Folder and {name of the call: its case.json entry, with "inputs" and "golden" tensors}, in their order."""
    folder = shared_path(f"parity/oscar/{name}")
    case = json.loads((folder / "case.json").read_text())
    inputs, outputs = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    calls = {}
    for call in case["calls"]:
        name = call["name"]
        call["inputs"] = {
            key: inputs[f"{name}/{key}"].to(getattr(torch, spec["dtype"]))
            for key, spec in call["tensor_inputs"].items()
        }
        call["golden"] = {key: outputs[f"{name}/{key}"] for key in call["outputs"]}
        calls[name] = call
    return folder, calls


def load_original(model_class, folder, attention="sdpa"):
    """The original folder as it is; no key missing, left over or of another shape."""
    model, info = model_class.from_pretrained(folder, attn_implementation=attention, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def our_arguments(inputs):
    """Model inputs of a call under our names; labels are made by the caller."""
    labels = ("masked_pos", "masked_ids", "masked_lm_labels", "next_sentence_label", "labels")
    return {OUR_NAMES.get(key, key): tensor for key, tensor in inputs.items() if key not in labels}


def caption_labels(inputs):
    """The original's masked_pos (B, T) and masked_ids (B, 3, padded with 0) as labels (B, T)."""
    labels = torch.full_like(inputs["masked_pos"], -100, dtype=torch.long)
    labels[inputs["masked_pos"] == 1] = inputs["masked_ids"][inputs["masked_ids"] != 0]
    return labels


def pretraining_labels(inputs):
    """The original ignores -1, we -100."""
    labels = inputs["masked_lm_labels"]
    return {
        "labels": labels.masked_fill(labels == -1, -100),
        "next_sentence_label": inputs["next_sentence_label"],
    }
