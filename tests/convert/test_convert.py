"""Original checkpoints into Hub repos: every golden folder, full-size keys, plain BERTs, and what must be refused."""

import json
import os
import pickle
import shutil
import struct

import pytest
import torch
from conftest import CHARACTERS, SPECIAL_TOKENS, shared_path, tiny_captioner, tiny_config
from goldens import load_case
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from test_convert_vinvl import original_state_dict
from test_hub import WITHOUT_PACKAGE, answer, run_python
from test_vinvl import random_model
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel

from modeling_mengzi_oscar import (
    MengziOscarConfig,
    MengziOscarForImageCaptioning,
    MengziOscarForPreTraining,
    MengziOscarForVisualQuestionAnswering,
    MengziOscarProcessor,
    VinVLModel,
)
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.convert.oscar import HEADS, convert, find_task, fit
from modeling_mengzi_oscar.hub import check_repo
from modeling_mengzi_oscar.pipeline_mengzi_oscar import CheckpointError

TASK_OF = {
    "caption_decode_od": "caption",
    "caption_loss_plain_untied": "caption",
    "pretrain_c3_ln": "pretrain",
    "pretrain_c2_noln": "pretrain",
    "retrieval_2way": "retrieval",
    "retrieval_regression": "retrieval",
    "vqa_bce_mlp": "vqa",
    "vqa_kl_3129": "vqa",
    "gqa_xe_linear": "gqa",
    "nlvr2_mlp_ln_xe": "nlvr2",
    "nlvr2_mlp_noln_bce": "nlvr2",
    "nlvr2_linear_xe": "nlvr2",
}
TASK_OF_KEYS = {
    "BertForImageCaptioning": ("caption", {}),
    "BertImgForPreTraining": ("pretrain", {"num_contrast_classes": 3}),
    "ImageBertForSequenceClassification": ("retrieval", {}),
    "ImageBertForSequenceClassification_vqa_linear": ("vqa", {"num_labels": 3129, "loss_type": "bce"}),
    "ImageBertForSequenceClassification_vqa_mlp": (
        "vqa",
        {"num_labels": 3129, "loss_type": "bce", "classifier": "mlp", "cls_hidden_scale": 3},
    ),
    "ImageBertForSequenceClassification_gqa_linear": ("gqa", {"num_labels": 1853, "loss_type": "xe"}),
    "ImageBertForMultipleChoice": ("nlvr2", {"classifier": "mlp", "cls_hidden_scale": 3}),
}
TOKENS = SPECIAL_TOKENS + CHARACTERS


@pytest.mark.parametrize("case", TASK_OF)
def test_original_folders(case, tmp_path):
    folder, output = shared_path(f"parity/oscar/{case}"), tmp_path / "output"
    vocab = shared_path("parity/oscar/tokenizer/vocab.txt")
    task, notes = convert(folder / "pytorch_model.bin", output, vocab=vocab)
    assert (task, notes) == (TASK_OF[case], [])
    check_repo(output)
    model, info = HEADS[task].from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info
    original = torch.load(folder / "pytorch_model.bin", weights_only=True)
    ours = model.state_dict()
    assert original.keys() == ours.keys()
    assert all(torch.equal(original[key], ours[key]) for key in original)
    fields = json.loads((folder / "config.json").read_text())
    for name in {"finetuning_task", "torchscript", "output_attentions", "output_hidden_states"} & fields.keys():
        fields.pop(name)
    assert {name: getattr(model.config, name) for name in fields} == fields


def test_the_defaults_of_a_converted_captioner_are_the_originals(tmp_path):
    """Five beams and twenty tokens need not be asked for, and give the original's captions."""
    folder, calls = load_case("caption_decode_od")
    convert(folder, tmp_path / "output")
    model = MengziOscarForImageCaptioning.from_pretrained(tmp_path / "output").eval()
    inputs = calls[calls["B_beam5"]["inputs_from"]]["inputs"]
    config, text = model.config, inputs["input_ids"].shape[1]
    assert (config.bos_token_id, config.eos_token_id, config.mask_token_id, config.pad_token_id) == (2, 3, 4, 0)
    tags, tag_mask = inputs["input_ids"][:, 20:], inputs["attention_mask"][:, 0, 20:text]
    ids = model.generate(
        region_features=inputs["img_feats"],
        region_attention_mask=inputs["attention_mask"][:, 0, text:],
        tag_input_ids=tags,
        tag_attention_mask=tag_mask,
    )
    golden = calls["B_beam5"]["golden"]["decoded"].flatten(0, 1).tolist()
    ended = 0
    for ours, theirs in zip(ids.tolist(), golden, strict=True):
        if theirs.index(3) < 19:  # not cut by the limit
            assert ours[: ours.index(3) + 1] == theirs[: theirs.index(3) + 1]
            ended += 1
    assert ended


def full_size(name):
    shapes = json.loads(shared_path(f"parity/oscar/keys_{name}.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("name", TASK_OF_KEYS)
def test_full_size_keys(name):
    task, options = TASK_OF_KEYS[name]
    state = full_size(name)
    config = MengziOscarConfig(use_img_layernorm=True, tie_weights=True, **options)
    assert find_task(state, options) == task
    with torch.device("meta"):
        model = HEADS[task](config)
    taken, notes = fit(state, model, name)
    assert notes == []
    assert state.keys() == taken.keys()
    for key in list(state)[::40]:
        assert key != "cls.predictions.decoder.weight"  # tied: may be missing
        with pytest.raises(CheckpointError, match=f"1 missing: {key}"):
            fit({k: v for k, v in state.items() if k != key}, model, name)
        with pytest.raises(CheckpointError, match=f"1 left over: {key}x"):
            fit(state | {f"{key}x": state[key]}, model, name)
        with pytest.raises(CheckpointError, match=rf"1 of another shape: {key} \(7,\) instead of \("):
            fit(state | {key: torch.empty(7, device="meta")}, model, name)


def bert_folder(folder, model_class, **changes):
    """A text BERT as transformers saves it, with its vocabulary."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = model_class(BertConfig(vocab_size=len(TOKENS), max_position_embeddings=80, **sizes, **changes)).eval()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")
    return model


def test_a_plain_bert_starts_pre_training(tmp_path, capsys):
    bert = bert_folder(tmp_path, BertForPreTraining)
    assert main(["convert", str(tmp_path), str(tmp_path / "output")]) == 0
    said = capsys.readouterr().out
    for part in ("task pretrain", "next-sentence head", "bert.img_embedding.weight", "cls.seq_relationship.weight"):
        assert part in said
    assert "cls.predictions" not in said
    check_repo(tmp_path / "output")
    model = MengziOscarForPreTraining.from_pretrained(tmp_path / "output").eval()
    config = model.config
    assert (config.img_feature_dim, config.num_contrast_classes, config.use_img_layernorm) == (2054, 3, True)
    ids = torch.randint(5, len(TOKENS), (2, 7))
    with torch.no_grad():
        expected, output = bert(ids), model(ids)
        regions = model(ids, region_features=torch.randn(2, 3, 2054))
    torch.testing.assert_close(output.prediction_logits, expected.prediction_logits)
    assert regions.prediction_logits.isfinite().all()
    assert 0.01 < model.bert.img_embedding.weight.std().item() < 0.03  # initialised, not left as memory had it


@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertModel])
def test_what_only_heads_lack_may_be_initialised(model_class, tmp_path, capsys):
    """A masked language model has no pooler; a bare encoder has neither heads nor "bert." in its keys."""
    bert = bert_folder(tmp_path, model_class)
    assert main(["convert", str(tmp_path), str(tmp_path / "output")]) == 2
    error = capsys.readouterr().err
    missing = "bert.pooler.dense.bias" if model_class is BertForMaskedLM else "cls.predictions.bias"
    assert f"missing: {missing}" in error
    assert "--allow-missing" in error
    assert main(["convert", str(tmp_path), str(tmp_path / "output"), "--allow-missing"]) == 0
    assert missing in capsys.readouterr().out
    model = MengziOscarForPreTraining.from_pretrained(tmp_path / "output").eval()
    ids = torch.randint(5, len(TOKENS), (2, 7))
    with torch.no_grad():
        expected = bert.base_model(ids).last_hidden_state
        torch.testing.assert_close(model.bert(ids).last_hidden_state, expected)


def original_folder(folder, state_changes=(), removed=(), rename=lambda key: key, legacy=False, **config_changes):
    """A tiny captioner as the original would have left it."""
    model = tiny_captioner()
    fields = {
        name: getattr(model.config, name)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    fields |= {"max_position_embeddings": 80, "img_feature_dim": 22, "use_img_layernorm": 1, "loss_type": "sfmx"}
    fields = {key: value for key, value in (fields | config_changes).items() if value is not None}
    state = {rename(key): value for key, value in model.state_dict().items() if key not in removed}
    folder.mkdir(exist_ok=True)
    torch.save(state | dict(state_changes), folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")
    return model


@pytest.mark.parametrize("legacy", [False, True])
def test_old_names_and_the_old_format(tmp_path, legacy):
    def rename(key):
        key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        return f"module.{key}"

    model = original_folder(tmp_path, rename=rename, legacy=legacy)
    convert(tmp_path, tmp_path / "output")
    ours = MengziOscarForImageCaptioning.from_pretrained(tmp_path / "output").state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in model.state_dict().items())
    processor = MengziOscarProcessor.from_pretrained(tmp_path / "output")
    assert processor.tokenizer.tokenize("马在dogs") == ["马", "在", "dog", "##s"]
    assert (processor.layout, processor.max_length, processor.max_regions) == ("caption", 70, 50)
    assert (tmp_path / "output/vocab.txt").read_text() == (tmp_path / "vocab.txt").read_text()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bytes(path):
    content = path.read_bytes()
    path.write_bytes(content[:20] + bytes(byte ^ 255 for byte in content[20:400]) + content[400:])


def as_safetensors(folder):
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    save_file({key: value.clone() for key, value in state.items()}, folder / "model.safetensors")
    (folder / "pytorch_model.bin").unlink()


def truncated_safetensors(folder):
    as_safetensors(folder)
    truncate(folder / "model.safetensors")


def safetensors_with_a_wrong_header(folder):
    as_safetensors(folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + content[8:])


def write(name, text):
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def remove(name):
    return lambda folder: (folder / name).unlink()


def nested(folder):
    torch.save({"model": {"x": "no tensor"}}, folder / "pytorch_model.bin")


EXTRA = {"state_changes": {"bert.extra.weight": torch.zeros(1)}}
NARROW = {"state_changes": {"cls.predictions.transform.dense.bias": torch.zeros(31)}}


@pytest.mark.parametrize(
    ("options", "spoil", "reason"),
    [
        ({}, lambda folder: truncate(folder / "pytorch_model.bin"), "damaged, or not a file of weights"),
        ({"legacy": True}, lambda folder: truncate(folder / "pytorch_model.bin"), "damaged"),
        ({}, lambda folder: flip_bytes(folder / "pytorch_model.bin"), "damaged"),
        ({}, write("pytorch_model.bin", "<html>not found</html>"), "damaged"),
        ({}, write("pytorch_model.bin", ""), "damaged"),
        ({}, truncated_safetensors, "damaged"),
        ({}, safetensors_with_a_wrong_header, "damaged"),
        ({}, nested, "holds no state dict of tensors"),
        ({}, remove("pytorch_model.bin"), "has neither model.safetensors nor pytorch_model.bin"),
        ({}, remove("config.json"), "config.json: no such file"),
        ({}, write("config.json", "{"), "config.json: is not JSON"),
        ({}, write("config.json", "[]"), "config.json: holds a list"),
        ({}, remove("vocab.txt"), "name a BERT vocab.txt with --vocab"),
        ({}, write("vocab.txt", "a\nb\n"), "lacks [CLS]"),
        ({}, write("vocab.txt", "\n".join(SPECIAL_TOKENS)), "has 5 tokens, the config says 39"),
        ({"img_feature_dim": None}, None, "has no img_feature_dim; the weights have 22"),
        ({"img_feature_dim": 2054}, None, "bert.img_embedding.weight (32, 22) instead of (32, 2054)"),
        ({"img_feature_type": "dis_code"}, None, "'dis_code' (codes) is not supported"),
        ({"use_img_layernorm": None}, None, "left over: bert.LayerNorm.bias, bert.LayerNorm.weight (config.json lacks"),
        ({"hidden_size": 30}, None, "config.json: hidden_size 30 is not a multiple"),
        ({"hidden_size": "wide"}, None, "config.json"),
        (EXTRA, None, "1 left over: bert.extra.weight"),
        (NARROW, None, "1 of another shape: cls.predictions.transform.dense.bias (31,) instead of (32,)"),
        ({"removed": ["bert.encoder.layer.1.output.dense.bias"]}, None, "1 missing: bert.encoder.layer.1.output"),
        ({"removed": ["cls.predictions.bias"]}, None, "1 missing: cls.predictions.bias (--allow-missing initialises"),
        ({"tie_weights": True}, None, "decoder.weight differs from the word embeddings"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(options, spoil, reason, tmp_path, capsys):
    original_folder(tmp_path / "source", **options)
    if spoil:
        spoil(tmp_path / "source")
    refused(["convert", str(tmp_path / "source"), str(tmp_path / "output")], reason, capsys)
    assert os.listdir(tmp_path) == ["source"]


def refused(command, reason, capsys):
    assert main(command) == 2
    output = capsys.readouterr()
    [line] = output.err.splitlines()
    assert reason in line
    assert output.out == ""


def test_missing_parts_of_the_encoder_are_never_initialised(tmp_path, capsys):
    original_folder(tmp_path / "source", removed=["bert.encoder.layer.1.output.dense.bias", "cls.predictions.bias"])
    command = ["convert", str(tmp_path / "source"), str(tmp_path / "output"), "--allow-missing"]
    refused(command, "1 missing: bert.encoder.layer.1.output.dense.bias", capsys)


def test_wrong_places_and_wrong_tasks(tmp_path, capsys):
    original_folder(tmp_path / "source")
    source, output = str(tmp_path / "source"), str(tmp_path / "output")
    refused(["convert", str(tmp_path / "nowhere"), output], "no such file or folder", capsys)
    refused(["convert", source, source], "is not an empty folder", capsys)
    refused(["convert", source, output, "--task", "retrieval"], "left over: cls.predictions.bias", capsys)
    refused(["convert", source, output, "--region-model", "org/name"], "Hub id with revision", capsys)
    refused(["convert", source, output, "--scores", source + "/none.json"], "none.json: no such file", capsys)
    with pytest.raises(SystemExit):
        main(["convert", source, output, "--task", "poetry"])


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_run(how, tmp_path, capsys):
    original_folder(tmp_path / "source")
    path, proof = tmp_path / "source/pytorch_model.bin", tmp_path / "proof"
    state = torch.load(path, weights_only=True) | {"x": Payload(proof)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"x": Payload(proof)}, protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "zip")
    command = ["convert", str(tmp_path / "source"), str(tmp_path / "output")]
    refused(command, f"refused and not run: it is a pickle that calls {os.mkdir.__module__ or os.name}.mkdir", capsys)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Payload(proof)))  # the payload does what it says
    assert proof.exists()


def vqa_folder(folder):
    model = MengziOscarForVisualQuestionAnswering(tiny_config(num_labels=7, loss_type="bce"))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")


@pytest.mark.parametrize("suffix", ["json", "pkl"])
def test_answers_come_from_the_originals_files(suffix, tmp_path):
    vqa_folder(tmp_path)
    answers = shared_path(f"parity/oscar/data_vqa/ans2label.{suffix}")
    task, _ = convert(tmp_path, tmp_path / "output", answers=answers)
    assert task == "vqa"
    config = MengziOscarForVisualQuestionAnswering.from_pretrained(tmp_path / "output").config
    assert [config.id2label[i] for i in range(7)] == ["yes", "no", "red", "blue", "马", "2", "left"]
    assert config.label2id["马"] == 4


def test_answers_that_are_refused(tmp_path, capsys):
    vqa_folder(tmp_path)
    capsys.readouterr()  # the progress bar of saving
    path, proof = tmp_path / "answers.pkl", tmp_path / "proof"
    command = ["convert", str(tmp_path), str(tmp_path / "output"), "--answers", str(path)]
    for content, reason in [
        (pickle.dumps(Payload(proof)), "refused as a list of answers: it calls "),
        (pickle.dumps({"yes": 0, "no": 2}), "the ids of its 2 answers are not 0 to 1, each once"),
        (pickle.dumps(["yes", "no"]), "holds 2, but the model has 7 answers"),
        (b"\x80", "refused as a list of answers: "),
    ]:
        path.write_bytes(content)
        refused(command, reason, capsys)
    assert not proof.exists()


@pytest.fixture(scope="module")
def grid_folder(tiny_checkpoint, tmp_path_factory):
    """A region model whose features are 262 wide."""
    return shutil.copytree(tiny_checkpoint / "region_model", tmp_path_factory.mktemp("regions") / "grid")


def test_a_region_model_of_a_folder_comes_along(grid_folder, tmp_path, capsys):
    changes = {"bert.img_embedding.weight": torch.zeros(32, 262)}
    original_folder(tmp_path / "source", state_changes=changes, img_feature_dim=262)
    command = ["convert", str(tmp_path / "source"), str(tmp_path / "output"), "--region-model", str(grid_folder)]
    assert main(command) == 0
    config = json.loads((tmp_path / "output/config.json").read_text())
    assert config["region_model"] == "region_model"
    assert list(config["custom_pipelines"]) == ["mengzi-oscar-captioning"]
    assert "region_model/model.safetensors" in map(str, check_repo(tmp_path / "output"))
    capsys.readouterr()
    original_folder(tmp_path / "other")
    command = ["convert", str(tmp_path / "other"), str(tmp_path / "no"), "--region-model", str(grid_folder)]
    refused(command, "its features are 262 wide, this checkpoint was trained on 22", capsys)


@pytest.mark.parametrize(("revision", "is_pinned"), [("main", False), ("4f2c1a9", False), ("a" * 40, True)])
def test_a_region_model_that_can_change_is_called_not_pinned(revision, is_pinned, tmp_path):
    """In what the command prints, and for good in the model card."""
    original_folder(tmp_path / "source", region_model=f"me/vinvl@{revision}")
    _, notes = convert(tmp_path / "source", tmp_path / "output")
    card = (tmp_path / "output" / "README.md").read_text("utf-8")
    for text in (" ".join(notes), card):
        assert ("is not pinned" in text) != is_pinned


def test_source_and_region_model_from_the_hub(grid_folder, tmp_path):
    """Both by id; the region model stays where it is, its code comes along, and the result reads photos."""
    changes = {"bert.img_embedding.weight": torch.zeros(32, 262)}
    original_folder(tmp_path / "source", state_changes=changes, img_feature_dim=262)
    (tmp_path / "home").mkdir()
    output = tmp_path / "output"
    with HubServer() as hub:
        online = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
        for repo, folder in {"Langboat/original": tmp_path / "source", "user/grid": grid_folder}.items():
            hub.repos[repo] = {"private": False, "commits": [], "branches": {}}
            hub.commit(repo, {path.name: path.read_bytes() for path in folder.iterdir()})
        region_model = f"user/grid@{hub.tree('user/grid', 'main')[0]}"
        command = ["convert", "Langboat/original", str(output), "--region-model", region_model]
        script = f"import sys; from modeling_mengzi_oscar.cli import main; sys.exit(main({command!r}))"
        process = run_python(script, **online)
        assert process.returncode == 0, process.stderr
        assert json.loads((output / "config.json").read_text())["region_model"] == region_model
        assert "base_model: Langboat/original" in (output / "README.md").read_text(encoding="utf-8")
        assert "modeling_grid_regions.py" in map(str, check_repo(output))
        script = (
            WITHOUT_PACKAGE
            + """
import numpy
photo = numpy.zeros((40, 30, 3), dtype="uint8")
from PIL import Image
result = transformers.pipeline(model=repo, **options)(Image.fromarray(photo), max_length=6)
print(json.dumps(len(result["regions"])))
"""
        )
        assert answer(run_python(script, output, "", "{}", **online)) == 9


def test_the_detector_becomes_a_repo_of_its_own(tmp_path, capsys):
    torch.save({"model": original_state_dict(random_model())}, tmp_path / "vinvl.pth")
    label_map = {
        "label_to_idx": {f"thing {i}": i for i in range(1, 31)},
        "attribute_to_idx": {f"kind {i}": i for i in range(1, 25)},
    }
    (tmp_path / "map.json").write_text(json.dumps(label_map))
    command = ["convert", str(tmp_path / "vinvl.pth"), str(tmp_path / "output")]
    refused(command, "needs its label map (--labelmap)", capsys)
    assert main([*command, "--labelmap", str(tmp_path / "map.json")]) == 0
    assert "give its dictionary with --labels" in capsys.readouterr().out
    assert "modeling_vinvl.py" in map(str, check_repo(tmp_path / "output"))
    model = VinVLModel.from_pretrained(tmp_path / "output")
    assert model.config.id2label[30] == "thing 30"
    (tmp_path / "zh.json").write_text('{"thing 1": "东西"}', encoding="utf-8")
    command[-1] = str(tmp_path / "chinese")
    with_words = ["--labelmap", str(tmp_path / "map.json"), "--labels", str(tmp_path / "zh.json")]
    assert main([*command, *with_words]) == 0
    assert "--labels" not in capsys.readouterr().out
    assert VinVLModel.from_pretrained(tmp_path / "chinese").config.labels_zh == {"thing 1": "东西"}


def test_a_converted_checkpoint_is_converted_again_to_the_same(tmp_path):
    """Safetensors without the tied decoder, and our own config, are a source like any other."""
    folder = shared_path("parity/oscar/caption_decode_od")
    convert(folder, tmp_path / "once")
    convert(tmp_path / "once", tmp_path / "twice")
    once, twice = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice"))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key], twice[key]) for key in once)
    assert (tmp_path / "once/config.json").read_text() == (tmp_path / "twice/config.json").read_text()
