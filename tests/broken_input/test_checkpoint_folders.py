"""A checkpoint folder of a stranger: what leads out of it, what it wants to run, what it says, damaged weights."""

import contextlib
import json
import os
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SPECIAL_TOKENS
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modeling_mengzi_oscar import (
    GridRegionConfig,
    MengziOscarConfig,
    MengziOscarForVisualQuestionAnswering,
    MengziOscarPipeline,
    VinVLConfig,
)
from modeling_mengzi_oscar.checkpoint_folder import CheckpointError, read_tensors
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.convert.oscar import convert
from modeling_mengzi_oscar.hub import add_head, check_repo, save_checkpoint
from modeling_mengzi_oscar.loading import load_checked, load_model, load_processor, load_region_model

SECRET = "/etc/hostname"


@pytest.fixture
def folder(tiny_checkpoint, tmp_path):
    """A copy to be spoilt, with a checkpoint beside it that it must not reach."""
    shutil.copytree(tiny_checkpoint, tmp_path / "outside")
    return shutil.copytree(tiny_checkpoint, tmp_path / "folder")


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)


def change(folder, name, **fields):
    said = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(said | fields), encoding="utf-8")


def refused(folder, *words):
    """Whoever loads it is told in one line."""
    with pytest.raises(CheckpointError) as error:
        MengziOscarPipeline.from_pretrained(folder)
    message = str(error.value)
    assert "\n" not in message
    assert str(folder) in message
    for word in words:
        assert word in message, message


# It is its own files


@pytest.mark.parametrize(
    "region_model",
    [
        "../outside",
        "../outside/region_model",
        "..",
        ".",
        "",
        "region_model/..",
        "region_model/",
        "a/b@../..",
        "../x@main",
    ],
)
def test_a_region_model_lies_in_the_folder(folder, region_model, monkeypatch):
    monkeypatch.chdir(folder)  # nothing is taken from there either
    change(folder, "config.json", region_model=region_model)
    refused(folder)
    with pytest.raises(CheckpointError):
        load_region_model(folder)


def test_an_absolute_region_model_is_refused(folder, tmp_path):
    change(folder, "config.json", region_model=str(tmp_path / "outside" / "region_model"))
    refused(folder, "config.json", "region_model", "a checkpoint is its own files")


def test_a_pinned_region_model_is_never_a_folder_that_lies_here(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "region_model", tmp_path / "user" / "grid")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    change(folder, "config.json", region_model=f"user/grid@{'a' * 40}")
    with pytest.raises(CheckpointError, match="as a Hub id it cannot be loaded"):
        load_region_model(folder)


@pytest.mark.parametrize("revision", ["main", "v1.0", "4f2c1a9", "A" * 40, "a" * 41])
@pytest.mark.parametrize("door", [load_region_model, check_repo])
def test_a_region_model_without_a_full_commit_is_called_not_pinned(folder, door, revision, monkeypatch):
    """Where it is loaded and where it is pushed; `convert` says it, too (tests/convert/test_convert.py)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    change(folder, "config.json", region_model=f"user/grid@{revision}")
    with pytest.warns(UserWarning, match=f"user/grid@{revision} is not pinned"), contextlib.suppress(CheckpointError):
        door(folder)


@pytest.mark.parametrize(
    "command", ["push {folder} me/x --dry-run", "extract {photo} --model {folder} --output {photo}-store"]
)
def test_commands_say_it_in_a_line(folder, command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("modeling_mengzi_oscar.checkpoint_folder.TOLD", {})
    change(folder, "config.json", region_model="user/grid@main")
    Image.new("RGB", (64, 64)).save(photo := tmp_path / "photo.png")
    main([part.format(folder=folder, photo=photo) for part in command.split()])
    said = [line for line in capsys.readouterr().err.splitlines() if "pinned" in line]
    assert [line.partition(" is not pinned")[0] for line in said] == ["the region model user/grid@main"]


def test_a_full_commit_is_pinned(folder, monkeypatch, recwarn):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for region_model in (f"user/grid@{'a' * 40}", "region_model"):
        change(folder, "config.json", region_model=region_model)
        for door in (load_region_model, check_repo):
            with contextlib.suppress(CheckpointError):
                door(folder)
    assert not [warning for warning in recwarn if "pinned" in str(warning.message)]


def test_a_region_model_names_no_other(folder):
    """Else a folder that names itself is followed for ever."""
    shutil.rmtree(folder / "region_model")
    (folder / "region_model").mkdir()
    shutil.copy(folder / "config.json", folder / "region_model")
    with pytest.raises(CheckpointError, match="is not of a region model"):
        load_region_model(folder)


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"]
    + ["vocab.txt", "model.safetensors", "region_model", "region_model/config.json", "region_model/model.safetensors"],
)
def test_links_that_lead_out_are_refused(folder, tmp_path, name):
    path, target = folder / name, tmp_path / "outside" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)
    refused(folder, Path(name).name, "leads out of the folder")


def test_links_within_and_those_of_the_hubs_cache_are_followed(folder, tmp_path, photo):
    expected = MengziOscarPipeline.from_pretrained(folder).caption(photo)["caption"]
    snapshot = tmp_path / "models--user--name" / "snapshots" / "0123abc"
    blobs = tmp_path / "models--user--name" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(path for path in sorted(folder.rglob("*")) if path.is_file()):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    assert MengziOscarPipeline.from_pretrained(snapshot).caption(photo)["caption"] == expected
    assert load_region_model(snapshot / "region_model")
    (snapshot / "vocab.txt").unlink()
    (snapshot / "vocab.txt").symlink_to(SECRET)
    refused(snapshot, "vocab.txt", "leads out of the folder")


def test_an_index_names_files_of_the_folder(folder, tmp_path, photo):
    expected = MengziOscarPipeline.from_pretrained(folder).caption(photo)["caption"]
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(weights)}
    for shard in set(names.values()):
        save_file({key: weights[key] for key in weights if names[key] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert MengziOscarPipeline.from_pretrained(folder).caption(photo)["caption"] == expected
    first = next(iter(names))
    for elsewhere in (
        "../outside/model.safetensors",
        str(tmp_path / "outside/model.safetensors"),
        "x.bin",
        "..",
        3,
        None,
    ):
        index.write_text(json.dumps({"weight_map": names | {first: elsewhere}}))
        refused(folder, "model.safetensors.index.json", "weight_map")
    for weight_map in ([], {}, "x", None):
        index.write_text(json.dumps({"weight_map": weight_map}))
        refused(folder, "model.safetensors.index.json", "weight_map")


@pytest.mark.parametrize(
    "backbone", ["local-dir:/tmp", "hf-hub:user/model", "hf_hub:user/model", "../x", "/etc", "", 3]
)
def test_a_backbone_is_a_name_of_timm(folder, backbone):
    change(folder / "region_model", "config.json", backbone=backbone)
    refused(folder, "region_model/config.json", "backbone")


@pytest.mark.parametrize(
    "name", ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only"]
)
def test_a_backbone_is_told_its_sizes_only(folder, name):
    change(folder / "region_model", "config.json", backbone_kwargs={name: "x"})
    refused(folder, "region_model/config.json", "backbone_kwargs")


def test_other_files_that_libraries_would_follow_have_no_effect(folder, tmp_path, photo):
    """PEFT reads adapter_config.json, transformers takes files of vocabulary and weights that its JSON names."""
    expected = MengziOscarPipeline.from_pretrained(folder).caption(photo)["caption"]
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "outside")}))
    change(folder, "config.json", transformers_weights="../outside/model.safetensors", quantization_config={"x": 1})
    elsewhere = {"vocab_file": SECRET, "tokenizer_file": SECRET, "fast_tokenizer_files": [f"../../..{SECRET}"]}
    change(folder, "tokenizer_config.json", **elsewhere, chat_template="{{ x }}", init_inputs=[SECRET])
    change(folder, "generation_config.json", custom_generate=str(tmp_path), cache_implementation="x")
    change(
        folder, "processor_config.json", chat_template=SECRET, audio_tokenizer={"audio_tokenizer_name_or_path": "x/y"}
    )
    change(folder / "region_model", "preprocessor_config.json", image_processor_type="X", fetch_images=SECRET)
    assert MengziOscarPipeline.from_pretrained(folder).caption(photo)["caption"] == expected


def test_what_is_converted_is_its_own_files_too(folder, tmp_path):
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to(tmp_path / "outside" / "vocab.txt")
    with pytest.raises(CheckpointError, match=r"vocab\.txt: leads out of the folder"):
        convert(folder, tmp_path / "converted")
    regions = tmp_path / "outside" / "region_model"
    for name in ("config.json", "model.safetensors"):
        shutil.move(regions / name, tmp_path / name)
        (regions / name).symlink_to(tmp_path / name)
        with pytest.raises(CheckpointError, match="leads out of the folder"):
            convert(tmp_path / "outside", tmp_path / "converted", region_model=str(regions))
        (regions / name).unlink()
        shutil.move(tmp_path / name, regions / name)
    (regions / "notes.txt").symlink_to(SECRET)  # not looked at, not taken along
    convert(tmp_path / "outside", tmp_path / "converted", region_model=str(regions))
    assert sorted(os.listdir(tmp_path / "converted" / "region_model")) == [
        *("config.json", "model.safetensors", "preprocessor_config.json")
    ]


# Nothing of a stranger runs


@pytest.mark.parametrize("field", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize(
    "value", ["evil-org/kernel", "evil-org/kernel@main:f", "flash_attention_2", {"": "a/b"}, 3, "paged"]
)
def test_attention_comes_from_a_short_list(folder, field, value, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    change(folder, "config.json", **{field: value})
    refused(folder, "config.json", field)
    change(folder, "config.json", **{field: "eager"})
    assert MengziOscarPipeline.from_pretrained(folder)


def test_a_kernel_of_the_hub_is_refused_where_users_load_too(folder, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)
    change(folder, "config.json", _attn_implementation="evil-org/kernel")
    with pytest.raises(ValueError, match="_attn_implementation is 'evil-org/kernel'"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "said",
    [
        {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
        {"tokenizer_class": "BertTokenizer", "auto_map": {"AutoTokenizer": "other/repo--evil.Evil"}},
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": ["BertTokenizer"]},
        {"auto_map": "evil.Evil"},
    ],
)
def test_another_tokenizer_is_neither_asked_about_nor_run(folder, said, monkeypatch):
    def ask(*_):
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", ask)
    (folder / "evil.py").write_text(f"open({str(folder / 'proof')!r}, 'w')")
    change(folder, "tokenizer_config.json", **said)
    refused(folder, "tokenizer_config.json", "not run")
    with pytest.raises(CheckpointError):
        load_processor(folder)
    assert not (folder / "proof").exists()


@pytest.mark.parametrize("lower_case", [True, False])
def test_a_tokenizer_of_no_class_of_its_own_is_the_one_of_its_file(folder, lower_case):
    """transformers 5.1 writes so what 5.2 calls a BertTokenizer."""
    said = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(folder, "tokenizer.json", normalizer=said["normalizer"] | {"lowercase": lower_case})
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    assert load_processor(folder).tokenizer.do_lower_case == lower_case
    change(folder, "tokenizer.json", normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""})
    refused(folder, "tokenizer.json", "normalizer")


def test_code_of_the_folder_does_not_run(folder, photo):
    for path in folder.glob("*.py"):
        path.write_text(f"open({str(folder / 'proof')!r}, 'w')")
    change(folder, "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "other/repo--evil.Evil"})
    assert MengziOscarPipeline.from_pretrained(folder).caption(photo)
    assert not (folder / "proof").exists()


# What the JSON files say

ANYTHING = [None, True, -1, 0, 2, 10**9, 10**12, 10**30, 0.5, 1e308, "x", "", "../x", [], [1], ["x"], {}, {"a": 1}]
ANYTHING.append(json.loads("[" * 300 + "]" * 300))
WHOLE_FILES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"\x00\xff\xfe" * 9,
    b'{"a":' * 100_000,
    b"[" * 100_000,
    b'{"a": NaN}',
]
WHOLE_FILES += [
    b'{"vocab_size": ' + b"9" * 5_000 + b"}",
    "{}".encode("utf-16"),
    b'\xef\xbb\xbf{"a": 1}',
    b'{"a": "\\ud800"}',
]


def mutations(folder, seed):
    """(file, its content) of changes at single places of every JSON file."""
    generator = random.Random(seed)
    for path in sorted(folder.rglob("*.json")):
        yield from ((path, content) for content in generator.sample(WHOLE_FILES, 6))
        said = json.loads(path.read_text(encoding="utf-8"))
        for key in generator.sample([*said], min(12, len(said))):
            changed = said | {key: generator.choice(ANYTHING)}
            if isinstance(said[key], dict) and generator.random() < 0.5:
                inner = generator.choice([*said[key], "new"])
                changed = said | {key: said[key] | {inner: generator.choice(ANYTHING)}}
            if generator.random() < 0.2:
                changed = {name: value for name, value in said.items() if name != key}
            yield path, json.dumps(changed).encode()


def test_whatever_json_says_loads_or_ends_in_one_line_that_names_the_file(folder, photo):
    refusals = []
    for path, content in mutations(folder, seed=14):
        before = path.read_bytes()
        path.write_bytes(content)
        try:
            pipeline = MengziOscarPipeline.from_pretrained(folder)
        except CheckpointError as error:
            refusals.append((path.name, content[:300], str(error)))
        else:
            assert pipeline.caption(photo, num_beams=1, max_length=5)["captions"], (path, content[:300])
        path.write_bytes(before)
    assert len(refusals) > 50
    for name, content, message in refusals:
        assert "\n" not in message
        assert name in message or "vocab.txt" in message, (name, content, message)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("config.json", {"hidden_size": 10**12}, ["hidden_size is 1000000000000; it must be a whole number"]),
        ("config.json", {"num_hidden_layers": 10**9}, ["num_hidden_layers"]),
        ("config.json", {"vocab_size": 9_000_000, "hidden_size": 60_000}, ["a model of", "but the weights are"]),
        ("config.json", {"max_position_embeddings": 10**9}, ["max_position_embeddings"]),
        ("config.json", {"num_labels": 10**9}, ["num_labels"]),
        ("config.json", {"num_attention_heads": 5}, ["num_attention_heads 5"]),
        ("config.json", {"num_attention_heads": -4}, ["num_attention_heads is -4"]),
        ("config.json", {"layer_norm_eps": "x"}, ["layer_norm_eps"]),
        ("config.json", {"model_type": "gpt2"}, ["model_type is 'gpt2'"]),
        ("config.json", {"hidden_act": "sin"}, ["hidden_act is 'sin'; it must be 'gelu' or"]),
        ("config.json", {"mask_token_id": 7}, ["mask_token_id 7, in the vocabulary it is 4"]),
        ("config.json", {"img_feature_dim": 300}, ["bert.img_embedding.weight", "config.json"]),
        ("config.json", {"id2label": {"0": "a\nb"}}, ["id2label"]),
        ("config.json", {"id2label": {"0": "a", "2": "b"}}, ["id2label"]),
        ("generation_config.json", {"num_beams": "x"}, ["num_beams is 'x'"]),
        ("generation_config.json", {"num_beams": 10**6}, ["num_beams"]),
        ("generation_config.json", {"max_length": 10**9}, ["max_length"]),
        ("generation_config.json", {"max_length": 81}, ["max_length is 81; the model has 80 positions"]),
        ("generation_config.json", {"eos_token_id": 10**6}, ["eos_token_id"]),
        ("processor_config.json", {"layout": "x"}, ["layout is 'x'"]),
        ("processor_config.json", {"max_regions": 0}, ["max_regions"]),
        ("processor_config.json", {"tag_position_offset": 12}, ["tag_position_offset is 12"]),
        ("processor_config.json", {"styles": {"short": "[NONE]"}}, ["style 'short'"]),
        ("tokenizer_config.json", {"cls_token": "[NONE]"}, ["'[NONE]' is not in the vocabulary"]),
        ("tokenizer_config.json", {"do_lower_case": "yes"}, ["do_lower_case"]),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": []}}, ["WordPiece"]),
        ("region_model/config.json", {"num_features": 255}, ["num_features"]),
        ("region_model/config.json", {"backbone": "no_such_model"}, ["no_such_model"]),
        ("region_model/config.json", {"backbone_kwargs": {"depths": [10**9]}}, ["backbone_kwargs"]),
        ("region_model/config.json", {"tag_threshold": "x"}, ["tag_threshold"]),
        ("region_model/config.json", {"tag_classes": [9]}, ["tag_classes names word 9, tag_labels has 3"]),
        ("region_model/preprocessor_config.json", {"size": {"height": 10**6, "width": 10**6}}, ["size"]),
        ("region_model/preprocessor_config.json", {"image_std": [0, 0, 0]}, ["image_std"]),
    ],
)
def test_a_field_is_named(folder, name, fields, words):
    change(folder, name, **fields)
    refused(folder, *words)


@pytest.mark.parametrize(
    ("config_class", "fields"),
    [
        (MengziOscarConfig, {"region_model": "../x"}),
        (MengziOscarConfig, {"vocab_size": True}),
        (MengziOscarConfig, {"pad_token_id": 30_000}),
        (MengziOscarConfig, {"hidden_dropout_prob": float("nan")}),
        (GridRegionConfig, {"backbone": "hf-hub:a/b"}),
        (VinVLConfig, {"depths": [3, 8, 10**9, 3]}),
        (VinVLConfig, {"score_threshold": "0.2"}),
        (VinVLConfig, {"id2label": {"one": "a"}}),
        (VinVLConfig, {"id2attribute": ["red"]}),
    ],
)
def test_configs_check_themselves(config_class, fields):
    """So that whoever loads with transformers' classes is told too."""
    with pytest.raises(ValueError, match=f"{next(iter(fields))} is "):
        config_class(**fields)


def test_the_command_says_it_in_one_line(folder, tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    change(folder, "config.json", _attn_implementation="evil-org/kernel")
    change(folder / "region_model", "config.json", backbone="local-dir:/tmp")
    photo, store = str(tmp_path / "photo.png"), str(tmp_path / "store")
    for command in (
        ["caption", photo, "--model", str(folder)],
        ["ask", photo, "有几个人？", "--model", str(folder)],
        ["match", photo, "一只猫", "--model", str(folder)],
        ["extract", str(tmp_path), "--output", store, "--model", str(folder)],
        ["convert", str(folder), str(tmp_path / "new"), "--region-model", str(folder / "region_model")],
    ):
        assert main(command) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "config.json" in line, line
    assert not (tmp_path / "new").exists()


def test_settings_of_a_training_go_before_the_file(tiny_checkpoint):
    model, report = load_model(
        MengziOscarForVisualQuestionAnswering,
        tiny_checkpoint,
        num_hidden_layers=1,
        num_labels=7,
        attn_implementation="eager",
    )
    assert (len(model.bert.encoder.layer), model.classifier.out_features) == (1, 7)
    assert model.config._attn_implementation == "eager"
    assert {"classifier.weight", "classifier.bias"} <= set(report["missing_keys"])
    with pytest.raises(CheckpointError, match="its weights do not fit"):
        load_checked(MengziOscarForVisualQuestionAnswering, tiny_checkpoint)


# Weights and vocabulary


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("place", ["", "region_model"])
def test_weights_that_are_no_weights_are_refused_by_name(folder, place, value):
    weights = {name: tensor.float() for name, tensor in load_file(folder / place / "model.safetensors").items()}
    name = sorted(name for name in weights if weights[name].dim() > 1)[0]
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / place / "model.safetensors")
    refused(folder, "model.safetensors", name, "which is no weight")


@pytest.mark.parametrize("content", [b"", b"broken", b"\x80\x04.", b"\xff" * 100, b"PK\x03\x04" + b"x" * 50])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "region_model/model.safetensors"])
def test_damaged_files_of_weights_are_named(folder, name, content):
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    refused(folder, Path(name).name, "damaged")


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(3, dtype=torch.complex64), "no state dict of tensors"),
        ("text", "no state dict of tensors"),
        (torch.eye(3).to_sparse(), "calls torch._utils._rebuild_sparse_tensor"),
        (torch.ones(3, device="meta"), "calls torch._utils._rebuild_meta_tensor_no_storage"),
        (bytearray(3), "calls"),  # torch's own reader lets it through; it asks for any amount of memory
        (torch.zeros(1).expand(10**6, 10**6), "its tensors are larger than the file"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_plain_tensors(folder, tensor, reason, zipped):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state |= {"bert.pooler.dense.bias": tensor}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    refused(folder, "pytorch_model.bin", reason)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.bool, torch.complex64, torch.float8_e5m2])
def test_weights_of_another_kind_of_number_are_refused(folder, dtype):
    """They would be cast in silence."""
    state = load_file(folder / "model.safetensors")
    save_file(state | {"bert.pooler.dense.bias": torch.ones(32).to(dtype)}, folder / "model.safetensors")
    refused(folder, "bert.pooler.dense.bias holds torch.")


def test_no_bit_of_a_zip_of_weights_may_flip(folder, tmp_path):
    """Every bit that belongs to a number. What is only the frame of the zip may say something else."""
    state = {"a": torch.arange(64.0), "b": torch.arange(9, dtype=torch.int64)}
    path = tmp_path / "weights.bin"
    torch.save(state, path)
    good = path.read_bytes()
    assert read_tensors(path).keys() == state.keys()
    with zipfile.ZipFile(path) as archive:
        content = next(archive.read(name) for name in archive.namelist() if name.endswith("/data/0"))
    start, generator = good.index(content), random.Random(0)
    for _ in range(50):
        damaged = bytearray(good)
        damaged[start + generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"weights\.bin: damaged.*checksum"):
            read_tensors(path)
    for _ in range(100):
        damaged = bytearray(good)
        damaged[generator.randrange(len(good))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = read_tensors(path)
        except CheckpointError:
            continue
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("vocabulary", "reason"),
    [
        (None, "no vocabulary"),
        ("", "no vocabulary"),
        ("\n".join(SPECIAL_TOKENS), "holds 5 tokens, config.json says vocab_size"),
        ("一\n" * 39, "names the token '一' twice"),
        (b"\xff\xfe\x00", "is not UTF-8"),
    ],
)
def test_a_vocabulary_is_there_and_is_the_models(folder, vocabulary, reason):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink()
    if vocabulary is not None:
        (folder / "vocab.txt").write_bytes(vocabulary if isinstance(vocabulary, bytes) else vocabulary.encode())
    refused(folder, "vocab.txt", reason)


def test_a_vocab_txt_may_lack_what_was_added_to_the_tokenizer(folder):
    """transformers writes it so."""
    said = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    size = len(said["model"]["vocab"])
    said["added_tokens"].append({"id": size, "content": "咖喱"})
    (folder / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")
    refused(folder, "tokenizer.json", f"holds {size + 1} tokens, config.json says vocab_size {size}")


def test_two_vocabularies_say_the_same(folder):
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    lines[-1], lines[-2] = lines[-2], lines[-1]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    refused(folder, "vocab.txt", "other tokens than tokenizer.json")


# Writing


def test_where_nothing_can_be_written_one_line_names_the_file(tiny_checkpoint, tmp_path, capsys):
    source, blocked = shutil.copytree(tiny_checkpoint, tmp_path / "source"), tmp_path / "blocked"
    change(source, "config.json", region_model=None)
    blocked.write_text("a file, where a folder is wanted")
    assert main(["convert", str(source), str(blocked / "new")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "blocked" in line
    assert "cannot be written" in line


def test_a_full_disk_leaves_nothing_behind(tiny_checkpoint, tmp_path, capsys):
    resource = pytest.importorskip("resource")
    source = shutil.copytree(tiny_checkpoint, tmp_path / "source")
    change(source, "config.json", region_model=None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (50, 5_000, 50_000):  # of a config, a tokenizer, weights
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # no file may be longer: as where no room is left
        try:
            status = main(["convert", str(source), str(tmp_path / "new")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert status == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "cannot be written" in line
        assert str(tmp_path / "new") in line
        assert sorted(os.listdir(tmp_path)) == ["source"]


def test_a_head_whose_file_is_missing_leaves_the_old_one(folder, tmp_path):
    add_head(folder, shutil.copytree(folder, tmp_path / "head"), "match")
    (tmp_path / "head" / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"head/vocab\.txt: no such file"):
        add_head(folder, tmp_path / "head", "match")
    assert (folder / "match" / "model.safetensors").is_file()
    assert not list(folder.glob("*.tmp"))


def test_a_loaded_checkpoint_is_saved_and_loaded_again(tiny_checkpoint, tmp_path, photo):
    one = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
    again = tmp_path / "again"
    save_checkpoint(again, one.captioner, one.processor, one.region_model, one.image_processor, torch.float32)
    for name in ("generation_config.json", "processor_config.json", "tokenizer.json", "vocab.txt"):
        assert (again / name).read_text("utf-8") == (tiny_checkpoint / name).read_text("utf-8"), name
    assert MengziOscarPipeline.from_pretrained(again).caption(photo)["captions"] == one.caption(photo)["captions"]
