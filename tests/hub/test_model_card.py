"""README.md of a checkpoint: metadata that the Hub and transformers know, lines of Python that run as they stand."""

import contextlib
import io
import re

import pytest
from conftest import REPOSITORY, tiny_config
from huggingface_hub import ModelCard
from transformers.pipelines import PIPELINE_REGISTRY

from modeling_mengzi_oscar import VinVLConfig
from modeling_mengzi_oscar.demo.samples import sample_photos
from modeling_mengzi_oscar.hub import AUTO_MAPS
from modeling_mengzi_oscar.hub.model_card import CAT, METRICS, TASKS, detector_card, head_section, model_card

MINI = REPOSITORY / "checkpoints" / "mengzi-oscar-mini"
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Tags that the Hub filters by (huggingface.js, packages/tasks/src/pipelines.ts), those that our cards use.
OF_THE_HUB = {"fill-mask", "image-text-to-text", "object-detection", "zero-shot-image-classification"}
OF_EVALUATE = {"accuracy", "bleu", "meteor", "recall", "rouge"}  # hf.co/evaluate-metric


def cards():
    photos = tiny_config(region_model="region_model")
    yield from ((task, model_card(task, photos, "x", photo=CAT, printed="一只猫")) for task in TASKS)
    yield "detector", detector_card(VinVLConfig(), "x")


@pytest.mark.parametrize(("task", "text"), [pytest.param(*card, id=card[0]) for card in cards()])
def test_the_hub_and_transformers_know_what_a_card_says(task, text):
    data = ModelCard(text).data
    assert data.pipeline_tag in OF_THE_HUB & set(PIPELINE_REGISTRY.get_supported_tasks())
    assert data.widget
    for example in data.widget:
        assert example.get("text") or example["src"].startswith("https://")
    assert re.findall("trust_remote_code=True", text)
    for call in re.findall(r"\(([^()]*trust_remote_code=True)", text):
        assert "revision=revision" in call
    if task in TASKS:
        assert TASKS[task][0] in AUTO_MAPS["mengzi_oscar"]
        assert TASKS[task][0] in text


def test_scores_become_a_model_index_as_far_as_the_hub_knows_them():
    scores = {"split": "test", "punctuation": "dropped", "distinct": 7, "char_cider_d": 0.51234, "word_bleu_4": 0.25}
    text = model_card("caption", tiny_config(), "mini", "Langboat/mengzi-bert-base", ["user/flickr8k-cn"], scores)
    data = ModelCard(text).data
    assert (data.license, data.language, data.library_name) == ("apache-2.0", "zh", "transformers")
    assert (data.pipeline_tag, data.base_model) == ("image-text-to-text", "Langboat/mengzi-bert-base")
    assert (data.datasets, data.metrics) == (["user/flickr8k-cn"], ["bleu"])
    [result] = data.eval_results
    assert (result.task_type, result.dataset_name, result.dataset_split) == (data.pipeline_tag, *data.datasets, "test")
    assert (result.metric_type, result.metric_name, result.metric_value) == ("bleu", "BLEU-4, jieba words", 0.25)
    assert "| char_cider_d | 0.5123 |" in text
    assert "| word_bleu_4 | 0.2500 |" in text
    assert "punctuation dropped" in text
    assert {kind for kind, _ in METRICS.values()} <= OF_EVALUATE


def test_a_card_without_scores_that_the_hub_knows_has_no_model_index():
    data = ModelCard(model_card("caption", tiny_config(), "x", scores={"char_cider_d": 0.5})).data
    assert data.eval_results is None
    assert data.metrics is None


@pytest.mark.parametrize("task", ["caption", "retrieval", "vqa"])
def test_lines_for_a_photo_run_as_they_stand(task, tmp_path, monkeypatch):
    photos = tiny_config(region_model="region_model")
    lines = PYTHON.findall(model_card(task, photos, "x") if task == "caption" else head_section(task))[0]
    printed = run_lines(lines, "photo.jpg", tmp_path, monkeypatch)
    assert re.search("[\u4e00-\u9fff]|\\d", printed)


def test_the_card_of_the_mini_prints_what_it_says(tmp_path, monkeypatch):
    text = (MINI / "README.md").read_text(encoding="utf-8")
    lines = next(block for block in PYTHON.findall(text) if "pipeline(" in block)
    assert CAT in lines
    said = re.search(r'print\(captioner\("chelsea\.png"\)\["caption"\]\)  # (.+)', lines)[1]
    assert run_lines(lines, "chelsea.png", tmp_path, monkeypatch).strip() == said
    example = ModelCard(text).data.widget[0]
    assert (example["src"], example["output"]) == (CAT, {"text": said})


def run_lines(lines, photo, folder, monkeypatch) -> str:
    """What they print, with the mini as the repo and the cat as the photo."""
    (folder / photo).write_bytes(sample_photos()["cat"][0].read_bytes())
    monkeypatch.chdir(folder)
    lines, found = re.subn('= "…", "…"', f"= {str(MINI)!r}, None", lines)
    assert found == 1
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(lines, {})
    return printed.getvalue()
