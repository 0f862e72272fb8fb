"""A match head, or one that answers: alone as a checkpoint of its own, and below a captioner, through every door."""

import json
import os
import re
import shutil
import time

import pytest
import torch
import transformers
from conftest import CHARACTERS, SPECIAL_TOKENS, tiny_config
from engine import Engine
from PIL import Image
from safetensors.torch import load_file, save_file
from words import UserError

from modeling_mengzi_oscar import (
    MengziOscarForImageTextRetrieval,
    MengziOscarForPreTraining,
    MengziOscarForVisualQuestionAnswering,
    MengziOscarForVisualReasoning,
    MengziOscarPipeline,
    MengziOscarProcessor,
)
from modeling_mengzi_oscar.checkpoint_folder import CheckpointError, CheckpointFolder
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.convert.oscar import convert
from modeling_mengzi_oscar.hub import check_repo, save_checkpoint

ANSWERS = ["一个", "两个", "三个", "有", "没有", "红色"]
HEADS = {  # task -> class, fields of its config, Auto class
    "match": (MengziOscarForImageTextRetrieval, {"num_labels": 2}, "AutoModelForSequenceClassification"),
    "ask": (
        MengziOscarForVisualQuestionAnswering,
        {"num_labels": len(ANSWERS), "loss_type": "bce"},
        "AutoModelForVisualQuestionAnswering",
    ),
    "nlvr2": (MengziOscarForVisualReasoning, {"num_labels": 2, "classifier": "mlp"}, "AutoModelForMultipleChoice"),
    "pretrain": (MengziOscarForPreTraining, {"num_contrast_classes": 3}, "AutoModelForPreTraining"),
}
WORDS = {"match": {"texts": ["一只猫在草地上", "两个人骑着马"]}, "ask": {"question": "有只狗？"}}
PIPELINES = {"match": "mengzi-oscar-matching", "ask": "mengzi-oscar-answering"}


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.linear_gradient("L").resize((80, 60)).convert("RGB").save(path)
    return str(path)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Original folders of every head, tiny."""
    folder = tmp_path_factory.mktemp("originals")
    for task, (model_class, fields, _) in HEADS.items():
        torch.manual_seed(1)
        model = model_class(tiny_config(img_feature_dim=262, **fields)).eval()
        write_original(folder / task, model, fields)
    (folder / "answers.json").write_text(json.dumps({answer: number for number, answer in enumerate(ANSWERS)}))
    return folder


def write_original(folder, model, fields):
    names = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings"
    said = {name: getattr(model.config, name) for name in [*names.split(), "img_feature_dim", "use_img_layernorm"]}
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(said | fields))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in SPECIAL_TOKENS + CHARACTERS), encoding="utf-8")


@pytest.fixture(scope="module")
def alone(originals, tiny_checkpoint, tmp_path_factory):
    """Each of them converted, with the region model of the tiny captioner."""
    folder = tmp_path_factory.mktemp("alone")
    for task in HEADS:
        options = ["--answers", str(originals / "answers.json")] if task == "ask" else []
        options += ["--region-model", str(tiny_checkpoint / "region_model")]
        assert main(["convert", str(originals / task), str(folder / task), *options]) == 0
        check_repo(folder / task)
    return folder


@pytest.fixture(scope="module")
def both(originals, alone, tiny_checkpoint, tmp_path_factory):
    """The captioner with both heads: one from the original, one converted before."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("both") / "both")
    assert main(["convert", str(originals / "match"), str(folder / "match")]) == 0
    assert main(["convert", str(alone / "ask"), str(folder / "ask")]) == 0
    return folder


def run_card(folder, capsys):
    """The code of README.md as it stands there."""
    card = (folder / "README.md").read_text("utf-8").replace('= "…", "…"', f"= {str(folder)!r}, None")
    names = {"features": torch.zeros(3, 262)}
    for block in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        exec(block, names)
    return card


@pytest.mark.parametrize("task", ["match", "ask"])
def test_a_checkpoint_that_is_a_head_works_through_every_door(task, alone, photo, capsys, monkeypatch):
    folder, (model_class, _, auto_class), words = alone / task, HEADS[task], WORDS[task]
    pipe = MengziOscarPipeline.from_pretrained(folder)
    expected = getattr(pipe, task)(photo, **words)
    probabilities = pytest.approx([row["probability"] for row in expected], abs=1e-4)
    assert len({row["probability"] for row in expected}) > 1
    capsys.readouterr()
    said = words.get("texts") or [words["question"]]
    assert main([task, photo, *said, "--model", str(folder), "--json"]) == 0
    assert [row["probability"] for row in json.loads(capsys.readouterr().out)] == probabilities
    piped = transformers.pipeline(PIPELINES[task], model=str(folder), trust_remote_code=True)
    assert [row["probability"] for row in piped(photo, **words)] == probabilities
    [one, error, two] = piped([photo, "nowhere.png", photo], **words, batch_size=2)
    assert one == two
    assert "nowhere.png" in error["error"]
    with pytest.raises(ValueError, match="missing: call it with"):
        piped(photo)
    auto = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
    assert type(auto).__name__ == model_class.__name__
    engine = Engine(str(folder))
    assert engine.tasks == engine.describe()["tasks"] == [task]
    with Image.open(photo) as opened:
        rows = engine.match(opened, said)["matches"] if task == "match" else engine.ask(opened, said[0])["answers"]
        assert sorted(row["probability"] for row in rows) == pytest.approx(
            sorted(row["probability"] for row in expected), abs=1e-4
        )
        with pytest.raises(UserError):
            engine.caption(opened)
    monkeypatch.chdir(os.path.dirname(photo))
    Image.open(photo).save("photo.jpg")
    assert PIPELINES[task] in run_card(folder, capsys)


@pytest.mark.parametrize("task", ["match", "ask"])
def test_a_head_says_what_it_does_not_do(task, alone, photo, capsys):
    other = {"match": "ask", "ask": "match"}[task]
    for command, said in (
        (["caption", photo], "writes no captions: use"),
        ([other, photo, "有只狗？"], f"has no {other}/ head"),
    ):
        capsys.readouterr()
        assert main([*command, "--model", str(alone / task)]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert said in line
        assert str(alone / task) in line


@pytest.mark.parametrize(("task", "said"), [("nlvr2", "AutoModelForMultipleChoice"), ("pretrain", "fine-tune it")])
def test_a_checkpoint_for_no_single_photo_says_so(task, said, alone, photo, capsys):
    for command in (["match", photo, "一只猫"], ["ask", photo, "有只狗？"], ["caption", photo]):
        capsys.readouterr()
        assert main([*command, "--model", str(alone / task)]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert said in line
    run_card(alone / task, capsys)
    with pytest.raises(CheckpointError, match=said):
        Engine(str(alone / task))


def test_an_original_says_the_command_that_makes_it_useful(originals, photo, capsys):
    assert main(["match", photo, "一只猫", "--model", str(originals / "match")]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert f"mengzi-oscar convert {originals / 'match'} OUTPUT" in line


def test_heads_below_a_captioner(both, alone, photo, capsys, monkeypatch):
    """The folder goes to the Hub as it is, and its heads say what they say alone."""
    capsys.readouterr()
    assert main(["push", str(both), "me/x", "--dry-run"]) == 0
    assert "match/model.safetensors" in capsys.readouterr().out
    assert [path.name for task in HEADS for path in both.glob(f"{task}/*.py")] == []
    pipe = MengziOscarPipeline.from_pretrained(both)
    for task, words in WORDS.items():
        expected = getattr(MengziOscarPipeline.from_pretrained(alone / task), task)(photo, **words)
        assert getattr(pipe, task)(photo, **words) == expected
        piped = transformers.pipeline(PIPELINES[task], model=str(both), trust_remote_code=True)
        assert [row["probability"] for row in piped(photo, **words)] == pytest.approx(
            [row["probability"] for row in expected], abs=1e-4
        )
        processors = [MengziOscarProcessor.from_pretrained(folder) for folder in (both / task, alone / task)]
        assert len({repr(vars(one) | {"tokenizer": None}) for one in processors}) == 1
    assert Engine(str(both)).tasks == ["caption", "match", "ask"]
    monkeypatch.chdir(os.path.dirname(photo))
    Image.open(photo).save("photo.jpg")
    card = run_card(both, capsys)
    assert re.findall("^## .*", card, flags=re.MULTILINE) == ["## Use", "## match/", "## ask/"]


def test_a_head_that_was_trained_keeps_its_processor_and_type(tiny_checkpoint, tmp_path):
    """`best/` of a training: float16, lengths of its own, a float16 copy of the region model."""
    captioner = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
    both = tmp_path / "both"
    parts = (captioner.region_model, captioner.image_processor)
    save_checkpoint(both, captioner.captioner, captioner.processor, *parts, torch.float32)
    processor = MengziOscarProcessor(captioner.processor.tokenizer, layout="pair", max_length=33, max_regions=7)
    head = MengziOscarForImageTextRetrieval(tiny_config(img_feature_dim=262))
    save_checkpoint(tmp_path / "outputs" / "best", head, processor, *parts, task="retrieval")
    convert(tmp_path / "outputs" / "best", both / "match")
    check_repo(both)
    found = MengziOscarProcessor.from_pretrained(both / "match")
    assert (found.max_length, found.max_regions, found.layout) == (33, 7, "pair")
    weights = [load_file(folder / "model.safetensors") for folder in (both / "match", tmp_path / "outputs" / "best")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    assert {tensor.dtype for tensor in weights[0].values()} == {torch.float16}


def other_regions(alone, tmp_path):
    head = shutil.copytree(alone / "match", tmp_path / "other")
    weights = load_file(head / "region_model/model.safetensors")
    name = sorted(weights)[0]
    save_file(weights | {name: weights[name] + 1}, head / "region_model/model.safetensors")
    return head


def other_width(alone, tmp_path):
    head = MengziOscarForImageTextRetrieval(tiny_config(img_feature_dim=30))
    write_original(tmp_path / "wide", head, {"num_labels": 2})
    return tmp_path / "wide"


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        (other_regions, "match", "was trained with another region model"),
        (other_width, "match", "reads features 30 wide"),
        (lambda alone, _: alone / "match", "ask", "match: name that"),
        (lambda alone, _: alone / "nlvr2", "match", "is no head for photos"),
    ],
)
def test_what_does_not_belong_below_a_captioner_is_refused(
    source, name, said, alone, tiny_checkpoint, tmp_path, capsys
):
    both = shutil.copytree(tiny_checkpoint, tmp_path / "both")
    before = sorted(both.rglob("*"))
    assert main(["convert", str(source(alone, tmp_path)), str(both / name)]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert sorted(both.rglob("*")) == before
    check_repo(both)


def by_save_pretrained(both, folder):
    MengziOscarPipeline.from_pretrained(both).save_pretrained(folder)


def copied(change):
    return lambda both, folder: change(shutil.copytree(both, folder))


@pytest.mark.parametrize(
    "make",
    [
        by_save_pretrained,
        copied(lambda folder: (folder / "README.md").unlink()),
        copied(lambda folder: (folder / "photos.py").unlink()),
        copied(lambda folder: (folder / "extra.py").write_text("")),
        copied(lambda folder: (folder / "loading.py").write_text("old")),
        copied(lambda folder: shutil.copy(folder / "loading.py", folder / "match")),
        copied(lambda folder: shutil.rmtree(folder / "match")),
        copied(lambda folder: (folder / "ask/vocab.txt").unlink()),
    ],
)
def test_what_push_says_that_assembling_mends_it_mends(make, both, tmp_path, capsys):
    folder = tmp_path / "folder"
    make(both, folder)
    capsys.readouterr()
    assert main(["push", str(folder), "me/x", "--dry-run"]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "--assemble mends it" in line
    assert main(["push", str(folder), "me/x", "--dry-run", "--assemble"]) == 0
    check_repo(folder)


def test_files_follow_the_umask(alone, tiny_checkpoint, tmp_path):
    """Weights, too, which safetensors writes for their owner only."""
    before = os.umask(0o022)
    try:
        pipe = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
        pipe.save_pretrained(tmp_path / "pipeline")
        pipe.captioner.save_pretrained(tmp_path / "model", state_dict=pipe.captioner.state_dict())
        convert(alone / "match", tmp_path / "pipeline" / "match")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert len(modes) > 10
    assert {path.name for path, mode in modes.items() if mode != (0o755 if path.is_dir() else 0o644)} == set()


@pytest.mark.parametrize("name", ["me/mistyped", "me/mistyped@" + "a" * 40])
def test_a_mistyped_name_is_told_at_once_where_there_is_no_network(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="no such folder here, and as a Hub id it cannot be loaded"):
        CheckpointFolder(name)
    assert time.perf_counter() - start < 5
