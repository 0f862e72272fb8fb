"""The released weights in every script: original folders, tags and lengths as trained, the official scores."""

import json

import caption
import datasets
import gqa
import nlvr2
import numpy as np
import pretrain
import pytest
import retrieval
import torch
import vqa
from conftest import CHARACTERS, SPECIAL_TOKENS, tiny_config
from PIL import Image

from metrics.caption_zh.scores import caption_scores
from metrics.caption_zh.segmentation import aic_icc_segment
from modeling_mengzi_oscar import RegionFeatureStore
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.convert.oscar import HEADS, convert
from modeling_mengzi_oscar.hub import check_repo

SCRIPTS = {"caption": caption, "retrieval": retrieval, "vqa": vqa, "gqa": gqa, "nlvr2": nlvr2, "pretrain": pretrain}
FIELDS = {  # of an original config.json, beside those of every BERT
    "pretrain": {"num_contrast_classes": 3},
    "caption": {"tie_weights": True},
    "retrieval": {"num_labels": 2, "loss_type": "sfmx"},
    "vqa": {"num_labels": 2, "loss_type": "bce"},
    "gqa": {"num_labels": 2, "loss_type": "xe"},
    "nlvr2": {"num_labels": 2, "num_choice": 2, "classifier": "mlp", "cls_hidden_scale": 3, "loss_type": "xe"},
}
LENGTHS = {  # layout, tokens (the tiny model has 80 positions), regions
    "pretrain": ("pair", 35, 50),
    "caption": ("caption", 70, 50),
    "retrieval": ("pair", 70, 70),
    "vqa": ("pair", 80, 50),
    "gqa": ("pair", 80, 45),
    "nlvr2": ("pair", 55, 40),
}
WRITTEN = {  # by --do_predict
    "caption": "captions.jsonl",
    "retrieval": "matches.jsonl",
    "vqa": "confidence.jsonl",
    "gqa": "confidence.jsonl",
    "nlvr2": "predictions.jsonl",
}
SENTENCES = ["一只狗在草地上跑", "两只猫坐着", "一个男人骑马", "三个女孩，红的马。"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Four images with all that the scripts ask of a row, and a store with tags in Chinese, one in English."""
    folder, ids = tmp_path_factory.mktemp("published"), list("abcd")
    table = {
        "image_id": ids,
        "captions": [[text, text[1:]] for text in SENTENCES],
        "question": SENTENCES,
        "question_id": ids,
        "labels": [[0], [1], [1], [0]],
        "scores": [[1.0]] * 4,
        "image_ids": [["a", "b"], ["b", "c"], ["c", "d"], ["d", "a"]],
        "sentence": SENTENCES,
        "tags": [["狗", "猫"]] * 4,
        "label": [0, 1, 1, 0],
    }
    rows = datasets.Dataset.from_dict(table)
    rows = rows.cast_column("labels", datasets.Sequence(datasets.ClassLabel(names=["是", "不是"])))
    for split in ("train", "validation", "test"):
        rows.to_parquet(folder / "rows" / "data" / f"{split}-00000-of-00001.parquet")
    noise = np.random.default_rng(0)
    for name, labels in {"store": ["", "狗", "猫", "草地"], "english": ["", "dog", "cat", "##s"]}.items():
        with RegionFeatureStore.writer(folder / name, dtype="float32", labels=labels) as writer:
            for number, image_id in enumerate(ids):
                features = noise.standard_normal((3 + number, 22), dtype=np.float32)
                writer.add(image_id, {"region_features": features, "class_ids": np.arange(3 + number) % 4})
    return folder


def original(folder, task):
    """A folder as the original writes it: no ids of tokens, names of long ago, a pickle of tensors, vocab.txt."""
    torch.manual_seed(0)
    config = tiny_config(**FIELDS[task])
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names += ("max_position_embeddings", "img_feature_dim", "use_img_layernorm", "img_layer_norm_eps")
    folder.mkdir()
    said = {name: getattr(config, name) for name in names} | FIELDS[task]
    (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")
    state = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma"): t for key, t in HEADS[task](config).state_dict().items()
    }
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS + CHARACTERS) + "\n", encoding="utf-8")
    return folder


def run(task, work, output, *switches, store="store", **settings):
    settings = {
        "dataset": work / "rows",
        "features": work / store,
        "output_dir": output,
        "max_steps": 1,
        "eval_strategy": "steps",
        "report_to": "none",
        "use_cpu": "true",
    } | settings
    SCRIPTS[task].main([*switches, *(f"--{name}={value}" for name, value in settings.items())])


def processor_of(folder):
    return json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("task", WRITTEN)
def test_an_original_says_what_its_conversion_says(work, tmp_path, task):
    folder, results = original(tmp_path / "original", task), {}
    answers = {}
    if task in ("vqa", "gqa"):
        (tmp_path / "answers.json").write_text('{"是": 0, "不是": 1}', encoding="utf-8")
        answers = {"answers": tmp_path / "answers.json"}
    convert(folder, tmp_path / "converted", task=task, **answers)
    settings = {"test_split": "test"} | ({"num_beams": 2, "max_gen_length": 8} if task == "caption" else {})
    for name in ("original", "converted"):
        run(task, work, tmp_path / f"{name}-out", "--do_predict", model_name_or_path=tmp_path / name, **settings)
        results[name] = (tmp_path / f"{name}-out" / WRITTEN[task]).read_text(encoding="utf-8")
    assert results["original"] == results["converted"]
    assert len(set(results["original"].splitlines())) >= 4
    if answers:
        assert "是" in results["original"]


@pytest.mark.parametrize("task", SCRIPTS)
def test_a_training_starts_from_the_original_pretrained_model(work, tmp_path, task):
    """Layout and lengths are those that the published commands give the task, tags are read, best/ is a whole repo."""
    settings = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "model_name_or_path": "x"}
    settings["model_name_or_path"] = original(tmp_path / "original", "pretrain")
    if task == "caption":
        settings |= {"objective": "masked", "num_beams": 1, "max_gen_length": 6}
    run(task, work, tmp_path / "run", "--do_train", **settings)
    best = tmp_path / "run" / "best"
    check_repo(best)
    said = processor_of(best)
    assert (said["layout"], said["max_length"], said["max_regions"]) == LENGTHS[task]
    assert said["max_tags"] is None
    assert said.get("tag_language") == (None if task == "nlvr2" else "zh")


def test_tags_are_read_as_the_checkpoint_learnt(work, tmp_path, capsys):
    """Without a flag; one that says another thing wins, and is said; so are tags of another language."""
    folder, written = original(tmp_path / "original", "caption"), {}
    cases = {"learnt": {}, "given": {"add_od_labels": "true"}, "without": {"add_od_labels": "false"}}
    cases |= {"english": {"store": "english"}}
    train = {"model_name_or_path": folder, "objective": "masked", "num_beams": 1, "max_gen_length": 8}
    run("caption", work, tmp_path / "run", "--do_train", **train, learning_rate=0.0)
    settings = {"model_name_or_path": tmp_path / "run" / "best", "num_beams": 2, "max_gen_length": 8}
    for name, changes in cases.items():
        capsys.readouterr()
        run("caption", work, tmp_path / name, "--do_predict", **settings | changes)
        told = capsys.readouterr().err
        assert ("--add_od_labels false: the checkpoint was trained with tags" in told) == (name == "without")
        assert ("its tags are English; the checkpoint learnt Chinese ones" in told) == (name == "english")
        written[name] = (tmp_path / name / "captions.jsonl").read_text(encoding="utf-8")
    assert written["learnt"] == written["given"] != written["without"]
    run("caption", work, tmp_path / "bare", "--do_train", **train, add_od_labels="false", max_img_seq_length=2)
    said = processor_of(tmp_path / "bare" / "best")
    assert (said["max_tags"], said["max_regions"]) == (0, 2)
    settings["model_name_or_path"] = tmp_path / "bare" / "best"
    run("caption", work, tmp_path / "again", "--do_predict", **settings)
    capsys.readouterr()
    run("caption", work, tmp_path / "with", "--do_predict", **settings, add_od_labels="true")
    assert "--add_od_labels true: the checkpoint was trained without tags" in capsys.readouterr().err
    assert (tmp_path / "again" / "captions.jsonl").read_text() != (tmp_path / "with" / "captions.jsonl").read_text()


@pytest.mark.parametrize("task", ["caption", "retrieval", "vqa"])
def test_a_split_is_predicted_in_every_type_of_numbers(work, tmp_path, task):
    settings = {"model_name_or_path": original(tmp_path / "original", task), "test_split": "test"}
    settings |= {"num_beams": 2, "max_gen_length": 8} if task == "caption" else {}
    if task == "vqa":
        run("vqa", work, tmp_path / "run", "--do_train", **settings)
        settings["model_name_or_path"] = tmp_path / "run" / "best"
    for dtype in ("bfloat16", "int8"):
        run(task, work, tmp_path / dtype, "--do_predict", dtype=dtype, **settings)
        assert (tmp_path / dtype / WRITTEN[task]).is_file()


def test_the_scores_say_what_they_are_of(work, tmp_path):
    """With the protocol of the AI Challenger those of its evaluator, too."""
    settings = {"model_name_or_path": original(tmp_path / "original", "caption"), "num_beams": 2, "max_gen_length": 8}
    run("caption", work, tmp_path / "run", "--do_predict", **settings, protocol="aic-icc")
    said = json.loads((tmp_path / "run" / "scores.json").read_text(encoding="utf-8"))
    lines = (tmp_path / "run" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    captions, references = [json.loads(line)["caption"] for line in lines], [[t, t[1:]] for t in SENTENCES]
    segmented = [[aic_icc_segment(text) for text in row] for row in references]
    results = {
        "char": caption_scores(captions, references),
        "word": caption_scores(captions, references, segment="jieba"),
        "aic_icc": caption_scores(captions, segmented, protocol="aic-icc"),
    }
    for level, result in results.items():
        for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor_exact", "cider_d", "tokenizer"):
            assert said[f"{level}_{name}"] == result[name]
    assert (said["dataset"], said["split"], said["images"], said["protocol"]) == ("rows", "test", 4, "aic-icc")
    assert said["char_tokenizer"] == "characters"
    assert said["aic_icc_tokenizer"].startswith("jieba 0")


def test_what_is_missing_is_said_before_the_model_is_loaded(work, tmp_path, capsys):
    rows, lacking = {"image_id": ["a"]}, "--dataset has no column"
    for split in ("train", "validation", "test"):
        file = tmp_path / "rows" / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows).to_parquet(file)
    for task in SCRIPTS:
        settings = {"model_name_or_path": tmp_path / "not there"}
        if task != "pretrain":
            with pytest.raises(SystemExit):
                run(task, work, tmp_path / "out", "--do_predict", **settings, test_split="tset")
            assert "--dataset has no split 'tset'" in capsys.readouterr().err
        if task == "caption":
            settings["references"] = "people"
        mode = "--do_train" if task == "pretrain" else "--do_predict"
        with pytest.raises(SystemExit):
            run(task, work, tmp_path / "out", mode, dataset=tmp_path / "rows", test_split="test", **settings)
        assert lacking in capsys.readouterr().err


def test_features_of_another_region_model_are_refused(work, tmp_path, capsys):
    with RegionFeatureStore.writer(tmp_path / "wide") as writer:
        for image_id in "abcd":
            writer.add(image_id, {"region_features": np.zeros((1, 23), np.float32)})
    for task in WRITTEN:
        folder = original(tmp_path / task, task)
        with pytest.raises(SystemExit):
            run(
                task,
                work,
                tmp_path / "out",
                "--do_predict",
                model_name_or_path=folder,
                features=tmp_path / "wide",
                test_split="test",
            )
        [line] = [line for line in capsys.readouterr().err.splitlines() if "wide" in line]
        assert f"{task}.py: {folder} does not fit: it has features 22 wide, --features has rows of 23" in line


def test_the_command_line_says_how_an_original_captions_photos(work, tmp_path, capsys):
    folder, photo = original(tmp_path / "original", "caption"), tmp_path / "photo.png"
    Image.new("RGB", (40, 30)).save(photo)
    for command in (["caption"], ["ask", "几只狗？"], ["match", "一只狗"]):
        command.insert(1, str(photo))
        assert main([*command, "--model", str(folder)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"mengzi-oscar convert {folder} OUTPUT --region-model" in line
    assert main(["extract", str(tmp_path), "--model", str(folder), "--output", str(tmp_path / "store")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"mengzi-oscar convert {folder} OUTPUT --region-model" in line
