"""What a caller may reasonably pass is taken; what cannot be meant is one line that says what to pass instead."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch
import transformers
from conftest import rounded, tiny_captioner
from PIL import Image
from test_pipeline import with_heads  # noqa: F401  (a fixture)

from modeling_mengzi_oscar import MengziOscarForImageCaptioning, MengziOscarPipeline, MengziOscarProcessor
from modeling_mengzi_oscar.checkpoint_folder import CheckpointError, CheckpointFolder
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.loading import load_region_model

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipeline(with_heads):  # noqa: F811
    return MengziOscarPipeline.from_pretrained(with_heads)


def refused(said, function, *arguments, **options):
    with pytest.raises(ValueError, match=said) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)


def test_texts_of_match(pipeline):
    [row] = pipeline.match(PHOTO, "一只猫")
    assert row["text"] == "一只猫"
    expected = pipeline.match(PHOTO, ["一只猫", "狗"])
    assert expected[0]["probability"] == pytest.approx(row["probability"], abs=1e-6)
    texts = ["一只猫", "狗"]
    for same in (
        tuple(texts),
        (text for text in texts),
        pandas.Series(texts),
        np.array(texts),
        dict.fromkeys(texts).keys(),
    ):
        assert pipeline.match(PHOTO, same) == expected
    assert pipeline.match(PHOTO, np.str_("一只猫")) == [row]
    assert type(pipeline.match(PHOTO, np.array(texts))[0]["text"]) is str
    assert pipeline.match(PHOTO, []) == []
    assert pipeline.match([PHOTO, PHOTO], []) == [[], []]
    assert pipeline.match([], texts) == []
    for given, said in [
        (None, "texts is of the type NoneType"),
        (3, "texts is of the type int"),
        (b"cat", "texts is of the type bytes"),
        ({"一只猫": 1}, "texts is of the type dict"),
        (["一只猫", 3, None], r"texts\[1\] is of the type int, \[2\] is of the type NoneType"),
        ([["一只猫"]], r"texts\[0\] is of the type list"),
        (pandas.Series(["一只猫", None]), r"texts\[1\] is of the type"),
        (["一只猫", " \n"], r"texts\[1\] is empty"),
        ("", "texts is empty"),
        (["\udcc4"], r"texts\[0\] is no Unicode text"),
        ([0] * 9, r"\[4\] is of the type int and 4 more"),
    ]:
        refused(said, pipeline.match, PHOTO, given)
    refused("batch_size must be", pipeline.match, PHOTO, texts, batch_size=0)


def test_questions(pipeline):
    questions = ["有只狗？", "什么颜色？"]
    expected = [pipeline.ask(PHOTO, question) for question in questions]
    for same in (questions, tuple(questions), np.array(questions), pandas.Series(questions)):
        assert rounded(pipeline.ask(PHOTO, same)) == rounded(expected)
    assert rounded(pipeline.ask([PHOTO, PHOTO], questions)) == rounded([expected, expected])
    assert rounded(pipeline.ask((PHOTO, PHOTO), questions[0])) == rounded([expected[0], expected[0]])
    assert pipeline.ask(PHOTO, []) == []
    assert len(pipeline.ask(PHOTO, questions[0], top=10**9)) == 6
    assert pipeline.ask(PHOTO, questions[0], top=np.int64(1)) == expected[0][:1]
    for top in (0, -1, 2.5, "3", True, None):
        refused("top must be a whole number from 1 on", pipeline.ask, PHOTO, questions[0], top=top)
    for given, said in [("", "question is empty"), ([" "], "question.0. is empty"), (None, "NoneType"), (7, "int")]:
        refused(said, pipeline.ask, PHOTO, given)


def test_settings_of_another_type(pipeline):
    refused("generation_config is of the type dict", pipeline.caption, PHOTO, generation_config={"num_beams": 2})
    for name in ("length_penalty", "top_p", "top_k", "repetition_penalty", "temperature", "min_length"):
        refused(f"{name} must be a number, not 'a'", pipeline.caption, [], **{name: "a"})


def test_empty_paths(capsys, tmp_path):
    """What a shell makes of a variable that is not set is not the folder here."""
    store = str(tmp_path / "store")
    for command in (
        ["extract", "", "--output", store],
        ["extract", str(tmp_path), "--output", ""],
        ["extract", str(tmp_path), "--output", store, "--model", ""],
        ["caption", "a.jpg", "--model", ""],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(command)
        assert "is empty; give a name" in capsys.readouterr().err
    assert main(["caption", "a.jpg", "--picture", ""]) == 2
    assert "pictures are PNG files" in capsys.readouterr().err


def test_photos_in_whatever_holds_them(pipeline, tmp_path):
    path = tmp_path / "photo.png"
    PHOTO.save(path)
    one = pipeline.caption(PHOTO, num_beams=2)
    names = [str(path), str(path)]
    for several in (
        names,
        tuple(names),
        iter(names),
        pandas.Series(names),
        np.array(names),
        [PHOTO, np.asarray(PHOTO)],
    ):
        results = pipeline.caption(several, num_beams=2)
        assert [result["caption"] for result in results] == [one["caption"]] * 2
    for nothing in ([], (), iter([])):
        assert pipeline.caption(nothing) == []


def test_arguments_of_the_processor(tokenizer):
    processor, features = MengziOscarProcessor(tokenizer), np.ones((3, 22), np.float32)
    plain = processor(text=["一只狗", "狗"], tags=[["狗"], []], regions=[features, features])
    for options in ({"padding": True, "truncation": True}, {"padding": "longest", "truncation": "longest_first"}):
        same = processor(text=("一只狗", "狗"), tags=[("狗",), ""], regions=np.stack([features] * 2), **options)
        assert all(torch.equal(same[name], plain[name]) for name in plain)
    padded = processor(text=["一只狗", "狗"], padding="max_length", max_length=12)
    assert padded["input_ids"].shape == padded["attention_mask"].shape == (2, 12)
    assert isinstance(processor(text="狗", return_tensors="np")["input_ids"], np.ndarray)
    assert processor(text=np.array(["狗", "猫"]))["input_ids"].shape == (2, 3)
    for options, said in [
        ({"text": "狗", "padding": False}, "padding must be True or 'longest' or 'max_length', not False"),
        ({"text": "狗", "truncation": False}, "truncation must be True"),
        ({"text": "狗", "return_tensors": "tf"}, "return_tensors must be 'pt' or 'np'"),
        ({"text": "狗", "return_tensors": None}, "return_tensors must be 'pt' or 'np'"),
        ({"text": "狗", "layout": "pairs"}, "layout must be 'caption' or 'pair'"),
        ({"text": "狗", "images": [PHOTO]}, "images: .* takes regions; MengziOscarPipeline"),
        ({"text": "狗", "text_pair": "猫"}, "does not know 'text_pair'; it takes text, tags, regions"),
        ({"text": "狗", "max_length": 2}, "max_length must be a whole number from 3 on"),
        ({"text": "狗", "max_length": 9.0}, "max_length must be a whole number"),
        ({"text": "狗", "max_regions": -1}, "max_regions must be a whole number from 1 on"),
        ({"text": PHOTO}, "text is of the type Image"),
        ({"text": ["狗", None]}, r"text\[1\] is of the type NoneType"),
        ({"text": []}, "there is no image: text are empty"),
        ({}, "same number of images, got nothing"),
        ({"tags": [[["狗"]]]}, r"tags\[0\] is \[\['狗'\]\]; give per image a list of words"),
        ({"tags": [["狗", 3]]}, r"tags\[0\] is \['狗', 3\]"),
        ({"tags": [None]}, r"tags\[0\] is None"),
        ({"tags": 3}, "tags are of the type int"),
        ({"regions": [np.ones(22)]}, r"regions\[0\] has the shape \(22,\); give \(R, D\)"),
        ({"regions": [features, features[None]]}, r"regions\[1\] has the shape \(1, 3, 22\)"),
        ({"regions": [features, []]}, r"regions\[1\] has the shape \(0,\)"),
        ({"regions": [[[1, 2], [3]]]}, "regions are no array"),
        ({"regions": [np.full((3, 22), np.nan)]}, r"regions\[0\] has numbers that are not finite"),
        ({"regions": [np.full((3, 22), "a")]}, r"regions\[0\] is of the type <U1"),
        ({"regions": [{"features": features}]}, r"regions\[0\] has no region_features; it has features"),
        ({"regions": 5}, "regions are of the type int"),
        (
            {"regions": {"region_features": torch.ones(1, 3, 22), "region_attention_mask": torch.ones(1, 2)}},
            r"region_attention_mask has the shape \(1, 2\), region_features \(1, 3, 22\)",
        ),
    ]:
        refused(said, processor, **options)


def test_a_short_row_keeps_no_tags_instead_of_wrong_ones(tokenizer):
    processor = MengziOscarProcessor(tokenizer)  # tags from position 40 on
    batch = processor(text=["一只狗"], tags=[["狗"] * 30], max_length=30)
    assert batch["input_ids"].shape == (1, 5)
    assert processor(tags=[["狗"] * 30], max_length=30)["tag_input_ids"].shape == (1, 0)


def test_shapes_for_generate():
    captioner, features = tiny_captioner(), torch.randn(2, 3, 22)
    ids, mask = torch.full((2, 1), 2), torch.ones(2, 3)
    for options, said in [
        ({"region_features": features[0]}, r"region_features \(B, R, D\), got the shape \(3, 22\)"),
        ({"region_features": features.numpy()}, "region_features is a ndarray: generate takes tensors"),
        ({"region_features": features, "input_ids": ids[:1]}, r"input_ids has the shape \(1, 1\): 2 images"),
        ({"region_features": features, "input_ids": ids[0]}, r"input_ids has the shape \(1,\): 2 images"),
        ({"region_features": features, "tag_input_ids": ids[:1]}, r"tag_input_ids has the shape \(1, 1\): 2 images"),
        ({"region_features": features, "region_attention_mask": mask[:, :2]}, "2 columns, region_features has 3"),
        ({"region_features": features, "tag_input_ids": ids, "tag_attention_mask": mask}, "3 columns, tag_input_ids"),
        ({"region_features": features, "max_length": 81}, "max_length is 81, but this model has 80 positions"),
        ({"region_features": features, "num_beams": 10**6}, "num_beams must be a whole number from 1 to 100"),
        ({"region_features": features, "max_length": 1}, "max_length must be a whole number from 2 on"),
    ]:
        refused(said, captioner.generate, **options)


def same_pipeline(folder, expected):
    pipeline = MengziOscarPipeline.from_pretrained(folder)
    assert pipeline.caption(PHOTO)["captions"] == expected["captions"]
    return pipeline


def test_what_was_saved_can_be_loaded(with_heads, pipeline, tmp_path):  # noqa: F811
    expected = pipeline.caption(PHOTO)
    classes = {
        "ours": (MengziOscarForImageCaptioning, MengziOscarProcessor, {}),
        "auto": (
            transformers.AutoModelForImageTextToText,
            transformers.AutoProcessor,
            {"trust_remote_code": True},
        ),
    }
    for name, (model_class, processor_class, options) in classes.items():
        model = model_class.from_pretrained(with_heads, **options)
        model.save_pretrained(tmp_path / name)
        processor_class.from_pretrained(with_heads, **options).save_pretrained(tmp_path / name)
        same_pipeline(tmp_path / name, expected)
        assert model.config.region_model == "region_model"
    pipeline.save_pretrained(tmp_path / "all")
    saved = same_pipeline(tmp_path / "all", expected)
    assert [row["answer"] for row in saved.ask(PHOTO, "有只狗？")] == [
        row["answer"] for row in pipeline.ask(PHOTO, "有只狗？")
    ]
    assert saved.match(PHOTO, "狗") == pipeline.match(PHOTO, "狗")
    assert not (tmp_path / "all" / "ask" / "region_model").exists()
    saved.captioner.save_pretrained(tmp_path / "again", state_dict=saved.captioner.state_dict())  # as a training does
    assert not (tmp_path / "again" / "region_model").exists()
    shutil.copyfile(tmp_path / "all" / "processor_config.json", tmp_path / "again" / "processor_config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tmp_path / "all" / name, tmp_path / "again" / name)
    for load in (MengziOscarPipeline.from_pretrained, load_region_model):
        refused("names the region model region_model/, which is not there: copy that folder", load, tmp_path / "again")


def test_without_this_package_too(with_heads, tmp_path):  # noqa: F811
    """Saved by the Auto classes, or as transformers' pipeline, in a process that has only the repo's code."""
    script = f"""
import transformers
options = {{"trust_remote_code": True}}
model = transformers.AutoModelForImageTextToText.from_pretrained({str(with_heads)!r}, **options)
model.save_pretrained({str(tmp_path / "model")!r})
transformers.AutoProcessor.from_pretrained({str(with_heads)!r}, **options).save_pretrained({str(tmp_path / "model")!r})
captioning = transformers.pipeline("mengzi-oscar-captioning", model={str(tmp_path / "model")!r}, **options)
captioning.save_pretrained({str(tmp_path / "pipeline")!r})
transformers.pipeline("mengzi-oscar-captioning", model={str(tmp_path / "pipeline")!r}, **options)
"""
    (tmp_path / "script.py").write_text(script)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    MengziOscarPipeline.from_pretrained(tmp_path / "pipeline")


def test_a_model_of_the_hub_names_its_region_model_by_commit(with_heads, tmp_path):  # noqa: F811
    model = MengziOscarForImageCaptioning.from_pretrained(with_heads)
    model.config.name_or_path, model.config._commit_hash = "org/captioner", "0123abc"
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["region_model"] == "org/captioner@0123abc"
    assert model.config.region_model == "region_model"


def test_a_training_is_no_model(with_heads, tmp_path, capsys):  # noqa: F811
    state = tmp_path / "run" / "checkpoint-20"
    MengziOscarForImageCaptioning.from_pretrained(with_heads).save_pretrained(state)
    (state / "trainer_state.json").write_text("{}")
    PHOTO.save(tmp_path / "photo.png")
    capsys.readouterr()  # transformers' bar
    for folder, said in [
        (state, f"{state}: a training state to resume from.*name the best/"),
        (state, f"name {tmp_path / 'run' / 'best'}"),
        (tmp_path / "run", f"name {tmp_path / 'run' / 'best'}"),
    ]:
        for command in (["caption", str(tmp_path / "photo.png")], ["extract", str(tmp_path), "--output", "x"]):
            assert main([*command, "--model", str(folder)]) == 2
            [line] = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
            assert re.search(said, line)
        shutil.copytree(with_heads, tmp_path / "run" / "best", dirs_exist_ok=True)
    MengziOscarPipeline.from_pretrained(tmp_path / "run" / "best")


def test_a_revision_stands_behind_the_name(tmp_path, monkeypatch):
    asked = []

    def download(name, revision, allow_patterns, local_files_only):
        asked.append((name, revision))
        raise OSError("not today")

    monkeypatch.setattr("modeling_mengzi_oscar.checkpoint_folder.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    PHOTO.save("photo.png")
    refused("org/name: no such folder here", CheckpointFolder, "org/name@v1.0")
    refused("org/name: no such folder here", CheckpointFolder, "org/name@v1.0", revision="v1.0")
    refused("org/name: no such folder here", MengziOscarPipeline.from_pretrained, "org/name", revision="v1.0")
    refused("org/name: no such folder here", MengziOscarPipeline.from_pretrained, "org/name@v1.0")
    refused("org/name: no such folder here", load_region_model, "org/name@v1.0")
    for command in ("caption", "extract"):
        given = ["photo.png"] if command == "caption" else [".", "--output", "x"]
        assert main([command, *given, "--model", "org/name@v1.0"]) == 2
    assert asked == [("org/name", "v1.0")] * 7
    with pytest.raises(CheckpointError, match="org/name@v1.0: revision 'v2' is another one; give it once"):
        MengziOscarPipeline.from_pretrained("org/name@v1.0", revision="v2")
    (tmp_path / "org" / "name@v1.0").mkdir(parents=True)
    refused("config.json: no such file", CheckpointFolder("org/name@v1.0").json, "config.json")  # a folder goes first
