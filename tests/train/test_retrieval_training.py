"""Retrieval: wrong pairs as the original draws them, all pairs of a batch against one by one, recipes on drawn data."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import retrieval as script
import torch
from common.matching_rows import (
    InBatchCollator,
    InBatchMatcher,
    OwnAndWrongCollator,
    OwnAndWrongRows,
    draw_wrong,
)
from common.write_matches import recall
from conftest import CHARACTERS, REPOSITORY, SPECIAL_TOKENS, tiny_config
from goldens import load_case
from safetensors.torch import load_file
from torch import nn
from transformers import BertTokenizer

from modeling_mengzi_oscar import MengziOscarForImageTextRetrieval, MengziOscarProcessor, RegionFeatureStore
from modeling_mengzi_oscar.hub import save_checkpoint

WORDS = ["猫", "狗", "马", "男人", "女孩", "草地", "红", "黑"]  # image k shows word k
LABELS = ["", *WORDS]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A checkpoint, COCO_ir files and a store: eight images, whose one region says which word their sentences have."""
    folder = tmp_path_factory.mktemp("retrieval")
    (folder / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS + CHARACTERS) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    model = MengziOscarForImageTextRetrieval(tiny_config(initializer_range=0.1, hidden_dropout_prob=0.0))
    processor = MengziOscarProcessor(BertTokenizer.from_pretrained(folder))
    save_checkpoint(folder / "model", model, processor, task="retrieval", dtype=torch.float32)
    captions = {number: [f"一只{word}", f"{word}在跑"] for number, word in enumerate(WORDS)}
    (folder / "data").mkdir()
    for split in ("train", "minival", "test"):
        torch.save(captions, folder / "data" / f"{split}_captions.pt")
    candidates = {number: [[number, 1], [(number + 1) % 8, 0], [(number + 2) % 8, 0]] for number in captions}
    torch.save(candidates, folder / "data" / "minival_caption_indexs_top20.pt")
    with RegionFeatureStore.writer(folder / "store", labels=LABELS) as writer:
        for number in captions:
            features = np.zeros((1 + number % 3, 22), dtype=np.float32)
            features[:, number] = 3
            ids = np.full(len(features), number + 1)
            writer.add(str(number), {"region_features": features, "class_ids": ids})
    return folder


def run(work, output, *switches, **settings):
    settings = {
        "model_name_or_path": work / "model",
        "dataset": "coco_ir",
        "data_dir": work / "data",
        "features": work / "store",
        "output_dir": output,
        "report_to": "none",
        "use_cpu": "true",
    } | settings
    script.main([*switches, *(f"--{name}={value}" for name, value in settings.items() if value is not None)])


# Wrong pairs


def test_wrong_pairs_are_the_originals():
    """The golden's draws by its seeds: which side is wrong, the tokens of both pairs."""
    folder, calls = load_case("data_retrieval")
    captions = torch.load(folder / "train_captions.pt", weights_only=True)
    tags = {}
    for line in (folder / "predictions.tsv").read_text(encoding="utf-8").splitlines():
        image_id, found = line.split("\t")
        objects = json.loads(found)
        objects = objects["objects"] if isinstance(objects, dict) else objects
        tags[int(image_id)] = " ".join(thing["class"] for thing in objects)
    images, texts = list(captions), list(captions.values())
    processor = MengziOscarProcessor(BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True), layout="pair")
    checked = 0
    for number, item in enumerate(calls["train"]["expect"]["items"]):
        image, caption = divmod(item["index"], 2)
        other, wrong_caption = draw_wrong(random.Random(item["seed"]), image, [len(row) for row in texts])
        assert item["negative_kind"] == ("image" if wrong_caption is None else "caption")
        pairs = {"pos": (texts[image][caption], image)}
        pairs["neg"] = (texts[image][caption], other) if wrong_caption is None else (texts[other][wrong_caption], image)
        for kind, (text, shown) in pairs.items():
            expected = calls["train"]["golden"][f"draw{number}_{kind}_input_ids"]
            if len(expected) > 24:  # QUIRK: a caption too long for its slot makes the original's row too long
                continue
            row = processor(text=[text], tags=[tags[images[shown]]], max_length=24)
            length = int(calls["train"]["golden"][f"draw{number}_{kind}_attention_mask"][:24].sum())
            assert row["input_ids"][0].tolist() == expected[:length].tolist()
            segments = calls["train"]["golden"][f"draw{number}_{kind}_segment_ids"]
            assert row["token_type_ids"][0].tolist() == segments[:length].tolist()
            checked += 1
    assert checked == 14


@pytest.mark.parametrize(("name", "images"), [("eval_cross", 3), ("eval_synthetic", 12)])
def test_recall_is_the_originals(name, images):
    folder, calls = load_case("data_retrieval")
    scores = load_file(folder / "inputs.safetensors")[f"{name}/similarities"].view(images, -1).numpy()
    found = recall(scores, np.repeat(np.arange(images), scores.shape[1] // images))
    for short, ours in (("i2t", "image_to_text"), ("t2i", "text_to_image")):
        for k, value in calls[name]["expect"]["result"][f"{short}_retrieval"].items():
            assert found[f"{ours}_r{k.removeprefix('R@')}"] == pytest.approx(value)


def test_wrong_pairs_are_drawn_evenly():
    """Half of them wrong on either side; every other image, every caption as often as the next; never the own one."""
    counts, sides, others = [2, 1, 3, 2], Counter(), Counter()
    draws = random.Random(0)
    for _ in range(6000):
        other, number = draw_wrong(draws, 1, counts)
        sides[number is None] += 1
        others[other] += 1
        assert number is None or 0 <= number < counts[other]
    assert abs(sides[True] - 3000) < 200
    assert set(others) == {0, 2, 3}
    assert all(abs(count - 2000) < 200 for count in others.values())


def small_rows(work, **settings):
    from datasets_scripts.coco_ir import CocoIr

    builder = CocoIr(data_dir=str(work / "data"), cache_dir=str(work / "cache"))
    builder.download_and_prepare()
    return OwnAndWrongRows(builder.as_dataset(split="train"), [RegionFeatureStore(work / "store")], **settings)


def test_pairs_own_first_tags_go_with_the_image(work):
    rows = small_rows(work, labels=LABELS, training=True)
    items = [rows[index] for index in range(16)]
    for item, text in zip(items, rows.texts, strict=True):
        own, wrong = item["own"], item["wrong"]
        assert own["text"] == text
        assert own["tags"][0] in text
        for side in (own, wrong):  # tags belong to the regions
            assert side["region_features"][0, LABELS.index(side["tags"][0]) - 1] == 3
        assert (wrong["text"] == own["text"]) != (wrong["tags"][0] == own["tags"][0])  # wrong on one side only
    batch = OwnAndWrongCollator(MengziOscarProcessor(BertTokenizer.from_pretrained(work)))(items)
    assert batch["labels"].tolist() == [1] * 16 + [0] * 16
    assert len(batch["input_ids"]) == len(batch["region_features"]) == 32
    again = [small_rows(work, labels=LABELS, training=True)[index]["wrong"] for index in range(16)]
    assert [item["wrong"]["text"] for item in items] == [wrong["text"] for wrong in again]


def test_hard_negatives_are_what_the_matrix_likes(work):
    scores = np.zeros((8, 16), dtype=np.float16)
    scores[np.arange(8), (2 * np.arange(8) + 4) % 16] = 1  # the first text of the image after the next
    rows = small_rows(work, hard_negatives=scores, hard_top=1, training=True)
    kinds = Counter()
    for index in range(16):
        item, image = rows[index], index // 2
        if item["wrong"]["text"] != item["own"]["text"]:
            kinds["text"] += 1
            assert item["wrong"]["text"] == rows.texts[(2 * image + 4) % 16]
        elif index % 2 == 0:
            kinds["image"] += 1
            assert item["wrong"]["region_features"][0, (image - 2) % 8] == 3
    assert kinds["text"]
    assert kinds["image"]
    with pytest.raises(ValueError, match="scores of 3 images and 4 texts, the training split has 8 and 16"):
        small_rows(work, hard_negatives=np.zeros((3, 4)))


# All pairs of a batch


@pytest.mark.parametrize("regions_read_text", [True, False])
@pytest.mark.parametrize("tags", [True, False])
def test_contrast_equals_pair_by_pair(tokenizer, regions_read_text, tags):
    config = tiny_config(regions_read_text=regions_read_text, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    matcher = MengziOscarForImageTextRetrieval(config)
    generator = np.random.default_rng(0)
    texts = ["一只猫", "两个人在草地上骑马", "狗", "大的黑猫坐着", "女孩，马。"]
    items = [
        {"text": text, "region_features": generator.standard_normal((size, 22), dtype=np.float32)}
        | ({"tags": words} if tags else {})
        for text, size, words in zip(
            texts, (3, 5, 1, 3, 4), (["猫"], ["草地", "马"], [], ["黑"], ["女孩"]), strict=True
        )
    ]
    processor = MengziOscarProcessor(tokenizer, max_length=14)
    found = InBatchMatcher(matcher)(**InBatchCollator(processor)(items))
    pairs = processor(
        text=[text for _ in items for text in texts],
        regions=[item["region_features"] for item in items for _ in texts],
        tags=[item["tags"] for item in items for _ in texts] if tags else None,
        layout="pair",
    )
    logits = matcher(**pairs).logits.view(5, 5, 2)
    scores = logits[..., 1] - logits[..., 0]
    torch.testing.assert_close(found["scores"], scores, atol=1e-4, rtol=1e-4)
    labels = torch.arange(5)
    own = nn.functional.cross_entropy(logits[labels, labels], torch.ones(5, dtype=torch.long))
    wrong = nn.functional.cross_entropy(logits[~torch.eye(5).bool()], torch.zeros(20, dtype=torch.long))
    choice = nn.functional.cross_entropy(scores, labels) + nn.functional.cross_entropy(scores.T, labels)
    torch.testing.assert_close(found["loss"], (choice + own + wrong) / 2, atol=1e-4, rtol=1e-4)


# Runs


def test_contrast_learns_and_predict_writes(work, tmp_path):
    steps = {"max_steps": 100, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "save_steps": 60}
    steps |= {"lr_scheduler_type": "constant", "regions_read_text": "false", "logging_steps": 20}
    steps["add_od_labels"] = "false"
    run(work, tmp_path / "run", "--do_train", objective="contrast", **steps)
    card = (tmp_path / "run" / "best" / "README.md").read_text(encoding="utf-8")
    assert "image_to_text_r1" in card
    settings = json.loads((tmp_path / "run" / "best" / "processor_config.json").read_text())
    assert settings["max_tags"] == 0  # it learnt without tags
    again = {"model_name_or_path": tmp_path / "run" / "best", "results_pt": "true"}
    run(work, tmp_path / "scores", "--do_predict", "--cross_image_eval", **again)
    results = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert results["image_to_text_r1"] > 0.8
    assert results["text_to_image_r1"] > 0.8
    original = json.loads((tmp_path / "scores" / "eval.json").read_text())
    assert original["i2t_retrieval"]["R@5"] == results["image_to_text_r5"]
    scores = np.load(tmp_path / "scores" / "scores.npy")
    lines = [json.loads(line) for line in (tmp_path / "scores" / "matches.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 8 + 16
    best = lines[3]["texts"][0]
    assert best["own"]
    assert best["probability"] == pytest.approx(1 / (1 + np.exp(-scores[3].max().astype(float))), abs=1e-5)
    assert lines[8]["images"][0]["image_id"] == "0"
    probabilities = torch.load(tmp_path / "scores" / "results.pt", weights_only=True)
    assert list(probabilities) == list(range(8 * 16))
    assert probabilities[3 * 16 + 6] == pytest.approx(1 / (1 + np.exp(-float(scores[3, 6]))), abs=1e-5)


@pytest.mark.parametrize("objective", ["pairs", "contrast"])
def test_resuming_gives_the_same_weights(work, tmp_path, objective):
    """One epoch of the published settings with tags; interrupted after two of four steps, and at once: bit-equal."""
    recipe = f"--recipe={REPOSITORY / 'train' / 'recipes' / 'retrieval_coco.yaml'}"
    common = {
        "objective": objective,
        "per_device_train_batch_size": 4,
        "save_steps": 2,
        "lr_scheduler_type": "constant",
    }
    common |= {"eval_steps": 2, "num_train_epochs": 1, "logging_steps": 1}
    for output, steps in {"whole": [4], "parts": [2, 4]}.items():
        for max_steps in steps:
            run(work, tmp_path / output, "--do_train", recipe, **common, max_steps=max_steps)
    whole, parts = (load_file(tmp_path / name / "checkpoint-4" / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logged = (tmp_path / "whole" / "scores.md").read_text()
    assert "image_to_text_r1" in logged
    assert "text_to_image" not in logged  # a short list of texts per image


def test_published_evaluation_and_a_first_stage(work, tmp_path):
    """The AIC-ICC recipe's settings on the test split, exact and from the best of a stored matrix."""
    recipe = f"--recipe={REPOSITORY / 'train' / 'recipes' / 'retrieval_aic_icc.yaml'}"
    run(work, tmp_path / "exact", recipe, test_split="test")
    exact = np.load(tmp_path / "exact" / "scores.npy")
    assert np.isfinite(exact).all()
    first = {"first_stage": tmp_path / "exact" / "scores.npy", "shortlist": 2}
    run(work, tmp_path / "short", recipe, test_split="test", **first)
    short = np.load(tmp_path / "short" / "scores.npy")
    scored = np.isfinite(short)
    np.testing.assert_allclose(short[scored], exact[scored], rtol=1e-2, atol=1e-3)
    assert (scored.sum(axis=1) >= 2).all()
    results = json.loads((tmp_path / "short" / "scores.json").read_text())
    assert results["pairs"] == 128
    assert results["pairs_scored"] == scored.sum()
    with pytest.raises(SystemExit, match="needs the photos"):
        run(work, tmp_path / "clip", recipe, test_split="test", first_stage="some/clip")
    np.save(tmp_path / "other.npy", np.zeros((2, 3)))
    with pytest.raises(SystemExit, match="is 2 x 3, the split has 8 images and 16 texts"):
        run(work, tmp_path / "other", recipe, test_split="test", first_stage=tmp_path / "other.npy")


def test_a_split_that_is_not_there_is_said(work, tmp_path):
    with pytest.raises(SystemExit, match="no split 'val'; it has minival, test, train"):
        run(work, tmp_path, "--do_predict", test_split="val")
