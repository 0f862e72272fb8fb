"""N x M scoring: the fast path against one padded pair a row, the file against kills, changes and several ranks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import CHARACTERS, REPOSITORY, tiny_config

from modeling_mengzi_oscar import (
    MengziOscarForImageTextRetrieval,
    MengziOscarPipeline,
    MengziOscarProcessor,
    RegionFeatureStore,
)
from modeling_mengzi_oscar.hub import add_head, check_repo, save_checkpoint
from modeling_mengzi_oscar.matching import (
    EncodedTexts,
    Matcher,
    match_logits,
    prepare_images,
)
from modeling_mengzi_oscar.retrieval import StoredImages, encoder_scores, score_matrix, shortlist

TEXTS = [
    "一只猫",
    "两个人在草地上骑马",
    "狗",
    "大的黑猫坐着",
    "一只狗在跑。",
    "男孩",
    "女孩，马。",
    "三人",
    "一只白猫在草地上跑",
]


def make_matcher(tokenizer, batch_size=None, max_length=12, **changes):
    torch.manual_seed(3)
    model = MengziOscarForImageTextRetrieval(tiny_config(**changes)).eval()
    return Matcher(model, MengziOscarProcessor(tokenizer, max_length=max_length, max_regions=5), batch_size)


def make_images(tags=True, sizes=(3, 5, 1, 7)):
    generator = np.random.default_rng(0)
    words = (["猫", "草地"], "狗", [], ["男人", "马", "大", "红", "黑", "小"])
    return [
        {"region_features": generator.standard_normal((size, 22), dtype=np.float32)} | ({"tags": row} if tags else {})
        for size, row in zip(sizes, words, strict=True)
    ]


def plain_scores(matcher, images, texts):
    """One pair at a time through the processor and the model's own `score`, then all padded together."""
    processor, model = matcher.processor, matcher.model
    text = [text for _ in images for text in texts]
    tags = [image.get("tags", []) for image in images for _ in texts]
    regions = [image["region_features"] for image in images for _ in texts]
    inputs = processor(text=text, tags=tags, regions=regions, layout="pair")
    return model.score(inputs, batch_size=7).view(len(images), len(texts)).numpy()


def probabilities(scores):
    return torch.from_numpy(scores).sigmoid().numpy()


@pytest.mark.parametrize("regions_read_text", [True, False])
@pytest.mark.parametrize("batch_size", [2, 4, 100])
@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_equal_the_plain_loop(tokenizer, regions_read_text, batch_size, tags, attention):
    """Texts too long for `max_length`, more regions than `max_regions`, images without tags included."""
    matcher = make_matcher(tokenizer, batch_size, regions_read_text=regions_read_text, attn_implementation=attention)
    images = make_images(tags)
    expected = plain_scores(matcher, images, TEXTS)
    assert expected.std() > 0.05
    np.testing.assert_allclose(probabilities(matcher.scores(images, TEXTS)), expected, atol=1e-5)


def test_regression_scores_are_raw(tokenizer):
    matcher = make_matcher(tokenizer, num_labels=1)
    images = make_images()
    np.testing.assert_allclose(matcher.scores(images, TEXTS), plain_scores(matcher, images, TEXTS), atol=1e-5)


@pytest.mark.parametrize("regions_read_text", [True, False])
def test_several_images_at_once_and_gradients(tokenizer, regions_read_text):
    """Training scores I images x n texts in one pass, regions padded: as image by image, gradients too."""
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    matcher = make_matcher(tokenizer, regions_read_text=regions_read_text, **no_dropout)
    images, texts = make_images(tags=False), EncodedTexts(matcher.processor, TEXTS)
    padded = matcher.processor(text=[""] * 4, regions=[image["region_features"] for image in images])
    (numbers, batch), *rest = texts.batches([], batch_size=100)
    assert not rest
    assert "attention_mask" in batch
    prepared = prepare_images(matcher.model, padded["region_features"], padded["region_attention_mask"])
    logits = match_logits(matcher.model.train(), prepared, **batch)  # (4, 9, 2)
    together = torch.autograd.grad(logits.square().sum(), list(matcher.model.bert.encoder.parameters()))
    found = (logits[..., 1] - logits[..., 0])[:, np.argsort(numbers)]
    np.testing.assert_allclose(
        found.detach(), Matcher(matcher.model, matcher.processor).scores(images, TEXTS), atol=1e-4
    )

    pairs = matcher.processor(
        text=[TEXTS[n] for _ in images for n in numbers],
        regions=[image["region_features"] for image in images for _ in numbers],
        layout="pair",
    )
    plain = matcher.model(**pairs).logits
    apart = torch.autograd.grad(plain.square().sum(), list(matcher.model.bert.encoder.parameters()))
    for ours, theirs in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4 * max(1.0, theirs.abs().max().item()), rtol=0)


def test_batches_hold_no_padding_where_there_are_many_texts(tokenizer):
    matcher = make_matcher(tokenizer, max_length=30)
    generator = np.random.default_rng(1)
    texts = ["".join(generator.choice(CHARACTERS[:20], size=generator.integers(4, 8))) for _ in range(300)]
    batches = list(matcher.encode(texts).batches([], batch_size=32))
    assert sorted(np.concatenate([numbers for numbers, _ in batches])) == list(range(300))
    slots = sum(batch["input_ids"].numel() for _, batch in batches)
    padding = sum((batch["attention_mask"] == 0).sum().item() for _, batch in batches if "attention_mask" in batch)
    assert padding < 0.02 * slots


def test_matrix_on_disk(tokenizer, tmp_path):
    matcher, images = make_matcher(tokenizer), make_images()
    whole = score_matrix(matcher, images, TEXTS, tmp_path / "scores.npy")
    assert whole.dtype == np.float16
    assert isinstance(whole, np.memmap)
    np.testing.assert_allclose(whole, matcher.scores(images, TEXTS), rtol=2e-3, atol=1e-4)
    assert {path.name for path in tmp_path.iterdir() if path.name != "vocab.txt"} == {"scores.npy", "scores.npy.json"}

    class NoModel:
        def row(self, *arguments):
            raise AssertionError("a finished matrix is not computed again")

    matcher.row = NoModel().row
    np.testing.assert_array_equal(score_matrix(matcher, images, TEXTS, tmp_path / "scores.npy"), whole)


@pytest.mark.parametrize("what", ["texts", "images", "weights", "candidates", "settings"])
def test_other_inputs_are_refused(tokenizer, tmp_path, what):
    matcher, images, texts, candidates = make_matcher(tokenizer), make_images(), list(TEXTS), None
    score_matrix(matcher, images, texts, tmp_path / "scores.npy")
    if what == "texts":
        texts[3] = "一只狗"
    if what == "images":
        images[2]["tags"] = ["马"]
    if what == "weights":
        matcher.model.classifier.bias.data += 1
    if what == "candidates":
        candidates = [[0]] * len(images)
    if what == "settings":
        matcher.processor.max_length = 20
    with pytest.raises(ValueError, match=f"scores.npy was made from something else \\(.*{what}"):
        score_matrix(matcher, images, texts, tmp_path / "scores.npy", candidates)


def test_ranks_share_the_rows(tokenizer, tmp_path):
    matcher, images = make_matcher(tokenizer), make_images()
    seen = []
    row = matcher.row
    matcher.row = lambda image, *rest: (
        seen.append(next(n for n, one in enumerate(images) if one is image)) or row(image, *rest)
    )
    parts = [score_matrix(matcher, images, TEXTS, tmp_path / "scores.npy", rank=rank, num_ranks=3) for rank in range(3)]
    assert seen == [0, 3, 1, 2]
    assert parts[0] is None
    assert parts[1] is None
    np.testing.assert_allclose(parts[2], matcher.scores(images, TEXTS), rtol=2e-3, atol=1e-4)


SLOW_RUN = """
import sys, time
sys.path[:0] = [{tests!r}, {tests!r} + "/library", {repository!r}]
import modeling_mengzi_oscar.retrieval.score_file as score_file
from transformers import BertTokenizer
from test_matching import TEXTS, make_images, make_matcher
score_file.SECONDS_PER_FLUSH = 0
matcher, row = make_matcher(BertTokenizer.from_pretrained({folder!r})), None
row = matcher.row
def slow(*arguments):
    time.sleep(0.3)
    return row(*arguments)
matcher.row = slow
print("ready", flush=True)
score_file.score_matrix(matcher, make_images() * 10, TEXTS, {path!r})
"""


def test_goes_on_after_kill_9(tokenizer, tmp_path):
    path = tmp_path / "scores.npy"
    script = SLOW_RUN.format(
        tests=str(REPOSITORY / "tests"), repository=str(REPOSITORY), folder=str(tmp_path), path=str(path)
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    rows = tmp_path / "scores.npy.rows"
    while process.poll() is None and not (rows.exists() and np.count_nonzero(np.load(rows)[1:]) >= 2):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = int(np.count_nonzero(np.load(rows)[1:]))
    assert 2 <= done < 40
    assert not path.exists()
    matcher, images, computed = make_matcher(tokenizer), make_images() * 10, []
    row = matcher.row
    matcher.row = lambda image, *rest: computed.append(1) or row(image, *rest)
    matrix = score_matrix(matcher, images, TEXTS, path)
    assert len(computed) == 40 - done
    np.testing.assert_allclose(matrix, matcher.scores(images, TEXTS), rtol=2e-3, atol=1e-4)


def test_shortlist_takes_the_best_of_rows_and_columns(tokenizer):
    first = np.random.default_rng(0).standard_normal((6, 11)).astype(np.float16)
    found = np.zeros(first.shape, dtype=bool)
    for image, chosen in enumerate(shortlist(first, top=2, columns=4)):
        found[image, chosen] = True
    by_row = np.argsort(np.argsort(-first, axis=1), axis=1) < 2
    by_column = np.argsort(np.argsort(-first, axis=0), axis=0) < 2
    np.testing.assert_array_equal(found, by_row | by_column)


def test_shortlisted_scores_are_the_full_ones(tokenizer, tmp_path):
    matcher, images = make_matcher(tokenizer, batch_size=2), make_images()
    full = matcher.scores(images, TEXTS)
    candidates = [np.array([7, 0, 3]), np.arange(9), np.array([5]), np.array([8, 1])]
    partial = score_matrix(matcher, images, TEXTS, tmp_path / "scores.npy", candidates)
    for image, chosen in enumerate(candidates):
        np.testing.assert_allclose(partial[image, chosen], full[image, chosen], rtol=2e-3, atol=1e-4)
        assert np.isneginf(np.delete(partial[image], chosen)).all()


def test_stored_images(tmp_path):
    with RegionFeatureStore.writer(tmp_path / "store") as writer:
        for name, image in zip("abcd", make_images(), strict=True):
            writer.add(name, {"region_features": image["region_features"]})
    store = RegionFeatureStore.open(tmp_path / "store")
    images = StoredImages(store, ["d", "a"], tags={"a": ["猫"]})
    assert images[1]["region_features"].shape == (3, 22)
    assert images[1]["tags"] == ["猫"]
    with pytest.raises(KeyError, match="'d' has no tags"):
        images[0]


def test_first_stage_of_chinese_clip(tokenizer, tmp_path):
    """A tiny random Chinese-CLIP: cosines equal those of its own forward, whatever the batches."""
    from PIL import Image
    from transformers import ChineseCLIPConfig, ChineseCLIPImageProcessor, ChineseCLIPModel, ChineseCLIPProcessor

    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    sizes = {"intermediate_size": 24, "projection_dim": 8}
    config = ChineseCLIPConfig(text_config=text | sizes, vision_config=vision | sizes, projection_dim=8)
    model = ChineseCLIPModel(config).eval()
    square = {"height": 32, "width": 32}
    processor = ChineseCLIPProcessor(ChineseCLIPImageProcessor(size=square, do_center_crop=False), tokenizer)
    colours = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "white")]
    found = encoder_scores(model, processor, colours, TEXTS[:4], batch_size=2)
    inputs = processor(text=TEXTS[:4], images=colours, padding=True, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    expected = outputs.image_embeds @ outputs.text_embeds.T
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.std() > 1e-4
    assert json.dumps(found.tolist())


def test_a_head_joins_a_repo_and_the_pipeline_finds_it(tiny_checkpoint, tmp_path):
    """Twice, with a note in the card: the later one counts, sections behind it stay."""
    from PIL import Image

    repo = shutil.copytree(tiny_checkpoint, tmp_path / "repo")
    processor = MengziOscarProcessor.from_pretrained(repo)
    for note in ("first", "second"):
        torch.manual_seed(len(note))
        head = MengziOscarForImageTextRetrieval(tiny_config(img_feature_dim=262, regions_read_text=False)).eval()
        save_checkpoint(tmp_path / note, head, processor, task="retrieval", dtype=torch.float32)
        add_head(repo, tmp_path / note, "match", note)
        (repo / "README.md").write_text((repo / "README.md").read_text() + "\n## more\n\nkept\n")
    card = (repo / "README.md").read_text()
    assert "first" not in card
    assert "## match/\n\nsecond" in card
    assert card.count("kept") == 2
    check_repo(repo)
    photo = Image.new("RGB", (80, 60), "green")
    pipeline = MengziOscarPipeline.from_pretrained(repo)
    found = [match["probability"] for match in pipeline.match(photo, TEXTS)]
    image = pipeline.look(photo)
    inputs = processor(text=TEXTS, tags=[image.tags] * 9, regions=[image.region_features] * 9, layout="pair")
    assert found == pytest.approx(head.score(inputs).tolist(), abs=1e-5)
