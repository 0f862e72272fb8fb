"""Questions and matches: heads in subfolders of one repo, against the heads called by hand."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from conftest import tiny_config
from PIL import Image

from modeling_mengzi_oscar import (
    MengziOscarForImageTextRetrieval,
    MengziOscarForVisualQuestionAnswering,
    MengziOscarPipeline,
    MengziOscarProcessor,
)
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.hub import assemble, check_repo, save_vocabulary
from modeling_mengzi_oscar.pipeline_mengzi_oscar import CheckpointError

ANSWERS = ["一", "两", "红", "白", "狗", "猫"]


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def with_heads(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with an ask/ and a match/ head."""
    folder = tmp_path_factory.mktemp("heads") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    processor = MengziOscarProcessor.from_pretrained(folder)
    processor.layout = "pair"
    torch.manual_seed(1)
    names = {"id2label": dict(enumerate(ANSWERS)), "label2id": {a: i for i, a in enumerate(ANSWERS)}}
    heads = {
        "ask": MengziOscarForVisualQuestionAnswering(tiny_config(img_feature_dim=262, loss_type="bce", **names)),
        "match": MengziOscarForImageTextRetrieval(tiny_config(img_feature_dim=262)),
    }
    for name, model in heads.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        save_vocabulary(processor.tokenizer, folder / name / "vocab.txt")
    assemble(folder)
    check_repo(folder)
    return folder


def by_hand(pipeline, folder, name, model_class, photo, texts):
    """The inputs as DESIGN's API makes them: processor and head of the subfolder, regions of the region model."""
    model = model_class.from_pretrained(folder, subfolder=name).eval()
    processor = MengziOscarProcessor.from_pretrained(folder, subfolder=name)
    with torch.inference_mode():
        regions = pipeline.region_model(**pipeline.image_processor([photo], return_tensors="pt"))
        tags = pipeline.region_model.tags(regions)
        rows = [model(**processor(text=[text], tags=tags, regions=regions)).logits[0] for text in texts]
    return torch.stack(rows)


def test_ask(with_heads, photo):
    pipeline = MengziOscarPipeline.from_pretrained(with_heads)
    answers = pipeline.ask(photo, "有只狗？")
    [logits] = by_hand(pipeline, with_heads, "ask", MengziOscarForVisualQuestionAnswering, photo, ["有只狗？"])
    expected = logits.sigmoid().sort(descending=True)
    assert [answer["answer"] for answer in answers] == [ANSWERS[i] for i in expected.indices[:5]]
    assert [answer["probability"] for answer in answers] == pytest.approx(expected.values[:5].tolist(), rel=1e-4)
    for rows in pipeline.ask([photo, photo], "有只狗？", top=2):
        assert [row["answer"] for row in rows] == [answer["answer"] for answer in answers[:2]]
        assert [row["probability"] for row in rows] == pytest.approx([one["probability"] for one in answers[:2]])


def test_match(with_heads, photo):
    pipeline = MengziOscarPipeline.from_pretrained(with_heads)
    texts = ["一只狗在草地上跑", "猫", "两个人骑马"]
    matches = pipeline.match(photo, texts, batch_size=2)
    logits = by_hand(pipeline, with_heads, "match", MengziOscarForImageTextRetrieval, photo, texts)
    assert [match["text"] for match in matches] == texts
    expected = logits.softmax(dim=-1)[:, 1].tolist()
    assert [match["probability"] for match in matches] == pytest.approx(expected, rel=1e-4)
    assert len(set(expected)) == 3


def test_a_missing_head_is_named(tiny_checkpoint, photo):
    pipeline = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
    with pytest.raises(CheckpointError, match="has no ask/ head"):
        pipeline.ask(photo, "有几个人？")
    with pytest.raises(CheckpointError, match="has no match/ head"):
        pipeline.match(photo, ["一只猫"])


def test_one_photo_or_a_list_and_every_kind_of_photo(tiny_checkpoint, photo, tmp_path):
    pipeline = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
    photo.save(tmp_path / "photo.png")
    one = pipeline.caption(photo)
    for same in (str(tmp_path / "photo.png"), tmp_path / "photo.png", np.asarray(photo)):
        assert pipeline.caption(same) == one
    many = pipeline.caption([photo] * 3, batch_size=2)
    assert [result["caption"] for result in many] == [one["caption"]] * 3


def test_the_commands_print_the_same(with_heads, photo, tmp_path, capsys):
    path = str(tmp_path / "photo.png")
    photo.save(path)
    pipeline = MengziOscarPipeline.from_pretrained(with_heads)
    calls = {
        ("ask", path, "有只狗？"): [(row["answer"], row["probability"]) for row in pipeline.ask(path, "有只狗？")],
        ("match", path, "一只猫", "两个人"): [
            (row["text"], row["probability"]) for row in pipeline.match(path, ["一只猫", "两个人"])
        ],
    }
    for call, rows in calls.items():
        capsys.readouterr()
        assert main([*call, "--model", str(with_heads)]) == 0
        assert capsys.readouterr().out.splitlines() == [f"{name}\t{probability:.3f}" for name, probability in rows]
        assert main([*call, "--model", str(with_heads), "--json"]) == 0
        records = json.loads(capsys.readouterr().out)
        assert [record["probability"] for record in records] == pytest.approx([p for _, p in rows], abs=6e-5)


def test_a_folder_that_says_nothing_is_searched_as_published(tiny_checkpoint, photo, tmp_path):
    """By the pipeline and by transformers' `pipeline`, as if generation_config.json said it."""
    shutil.copytree(tiny_checkpoint, tmp_path / "silent")
    (tmp_path / "silent" / "generation_config.json").unlink()
    published = {"num_beams": 5, "max_length": 20, "early_stopping": "never"}
    pipeline = MengziOscarPipeline.from_pretrained(tmp_path / "silent")
    expected = pipeline.caption(photo, **published)
    assert len(expected["captions"]) == 5
    assert pipeline.caption(photo) == expected
    assert pipeline.caption(photo, early_stopping=True, num_beams=2) != expected
    options = {"model": str(tmp_path / "silent"), "trust_remote_code": True}
    assert transformers.pipeline("mengzi-oscar-captioning", **options)(photo) == expected


def test_a_length_given_either_way_is_one_caption_with_one_score(tiny_checkpoint, photo):
    pipeline = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
    pipeline.captioner.config.tag_position_offset = 4  # so that the length says where tags stand
    assert pipeline.caption(photo, max_new_tokens=8) == pipeline.caption(photo, max_length=9)


def test_a_generation_config_says_what_arguments_say(tiny_checkpoint, photo):
    pipeline = MengziOscarPipeline.from_pretrained(tiny_checkpoint)
    pipeline.captioner.config.tag_position_offset = 4
    for settings in ({"num_beams": 2}, {"num_beams": 1}, {"num_beams": 4, "max_length": 9}):
        given = pipeline.caption(photo, generation_config=transformers.GenerationConfig(**settings))
        assert given == pipeline.caption(photo, **settings)
        assert len(given["captions"]) == settings["num_beams"]
