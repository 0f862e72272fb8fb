"""A trained mini becomes the folder of checkpoints/: whole or not at all, in float16, with heads and a card."""

import json
import os
import shutil

import finish_mini
import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image
from safetensors.torch import load_file

from modeling_mengzi_oscar import (
    MengziOscarForImageTextRetrieval,
    MengziOscarForVisualQuestionAnswering,
    MengziOscarPipeline,
    MengziOscarProcessor,
)
from modeling_mengzi_oscar.hub import save_checkpoint

RECALL = {f"{side}_r{rank}": 0.125 for side in ("image_to_text", "text_to_image") for rank in (1, 5, 10)}
SCORES = {
    "captions": {"split": "test", "char_cider_d": 1.5, "distinct": 500},
    "match": {"images": 1000, "texts": 5000} | RECALL,
    "ask": {"split": "test", "questions": 4000, "accuracy": 0.75, "usual_answer_to_the_question": {"accuracy": 0.5}},
}


@pytest.fixture
def command(tiny_checkpoint, tmp_path):
    """The flags for an older folder, whose weights have a second name, and two heads."""
    shutil.copytree(tiny_checkpoint, tmp_path / "mini")
    os.link(tmp_path / "mini" / "model.safetensors", tmp_path / "second-name")
    processor = MengziOscarProcessor.from_pretrained(tiny_checkpoint)
    config = {"img_feature_dim": 262, "region_model": None}
    answers = {"id2label": {0: "一只", 1: "两只"}}
    match = MengziOscarForImageTextRetrieval(tiny_config(**config))
    ask = MengziOscarForVisualQuestionAnswering(tiny_config(**config, **answers))
    save_checkpoint(tmp_path / "match", match, processor, task="retrieval")
    save_checkpoint(tmp_path / "ask", ask, processor, task="vqa")
    for name, scores in SCORES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(scores), encoding="utf-8")
    flags = {"model": tiny_checkpoint, "scores": tmp_path / "captions.json", "output": tmp_path / "mini"}
    for head in ("match", "ask"):
        flags |= {head: tmp_path / head, f"{head}_scores": tmp_path / f"{head}.json"}
    return [f"--{name}={value}" for name, value in flags.items()]


def test_the_folder_does_everything(command, tmp_path):
    before = (tmp_path / "second-name").read_bytes()
    finish_mini.main(command)
    assert (tmp_path / "second-name").read_bytes() == before  # new files took the names of the old
    for part in (".", "region_model", "match", "ask"):
        weights = load_file(tmp_path / "mini" / part / "model.safetensors")
        assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float16}
    pipeline = MengziOscarPipeline.from_pretrained(tmp_path / "mini")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    assert isinstance(pipeline.caption(photo)["caption"], str)
    assert {row["answer"] for row in pipeline.ask(photo, "有几个人？")} == {"一只", "两只"}
    assert len(pipeline.match(photo, ["一只猫", "一只狗"])) == 2
    card = (tmp_path / "mini" / "README.md").read_text(encoding="utf-8")
    for said in ("research use only", "NanoDet-g", "1.5000", "R@10 12.5%", "out of 2 answers", "4,000 such questions"):
        assert said in card


def test_what_cannot_be_finished_leaves_the_folder_as_it_was(command, tmp_path):
    before = sorted(path.relative_to(tmp_path / "mini") for path in (tmp_path / "mini").rglob("*"))
    shutil.rmtree(tmp_path / "ask")
    with pytest.raises(SystemExit):
        finish_mini.main(command)
    assert sorted(path.relative_to(tmp_path / "mini") for path in (tmp_path / "mini").rglob("*")) == before
