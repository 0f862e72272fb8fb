"""Pre-training data against the original's items, draw by draw, and the script on drawn photos."""

import json
import random
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from conftest import shared_path
from pretraining_data import (
    PretrainingCollator,
    PretrainingRows,
    contrast_classes,
    maskable,
    one_row_per_text,
)
from safetensors.torch import load_file
from transformers import BertTokenizer

from datasets_scripts.pretraining_corpus import PretrainingCorpus
from modeling_mengzi_oscar import MengziOscarProcessor, RegionFeatureStore
from modeling_mengzi_oscar.oscar_tsv import import_tsv


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """Rows and stores of the original's files, its calls and its tensors."""
    folder = shared_path("parity/oscar/data_pretrain")
    work = tmp_path_factory.mktemp("corpus")
    builder = PretrainingCorpus(data_dir=str(folder), cache_dir=str(work / "cache"))
    builder.download_and_prepare()
    stores = {}
    for name in ("coco", "flickr30k", "gqa"):
        import_tsv(folder / "feats" / name / "features.tsv", work / name, dtype="float32", assumed_size=(480, 640))
        stores[name] = RegionFeatureStore.open(work / name)
    calls = {call["name"]: call for call in json.loads((folder / "case.json").read_text("utf-8"))["calls"]}
    processor = MengziOscarProcessor(BertTokenizer.from_pretrained(folder))
    return builder.as_dataset(split="train"), stores, calls, load_file(folder / "outputs.safetensors"), processor


MODES = ["mode1_false025", "mode0_false0", "mode2_false025", "mode1_false025_nolossunmatched"]


@pytest.mark.parametrize("name", MODES)
def test_items_of_the_original_from_its_seeds(golden, name):
    rows, stores, calls, tensors, processor = golden
    settings, items = calls[name]["scalar_inputs"], calls[name]["expect"]["items"]
    sampling = {key: settings[key] for key in ("texta_false_prob", "textb_sample_mode", "use_b")}
    dataset = PretrainingRows(rows, stores, **sampling)
    assert dataset.wrong_text == settings["num_contrast_classes"] - 1
    processor.max_length, processor.max_regions = settings["seq_len"], settings["max_img_seq_length"]
    collator = PretrainingCollator(processor, bool(settings["mask_loss_for_unmatched"]))
    drawn = [dataset.item(item["item"], random.Random(item["seed"])) for item in items]
    for ours, item in zip(drawn, items, strict=True):
        assert (ours["text"], ours["tags"]) == (item["text_a"], item["text_b"])
        assert (ours["next_sentence_label"], ours["foreign"]) == (item["contrast_label"], item["image_mismatch"])
    batch = collator(drawn)
    length = batch["input_ids"].shape[1]

    def text(key):
        golden = tensors[f"{name}/{key}"]
        assert not (golden[:, length : settings["seq_len"]] > 0).any()  # only padding is cut
        return golden[:, :length]

    assert torch.equal(batch["input_ids"], text("input_ids"))
    assert torch.equal(batch["attention_mask"], text("input_mask"))
    assert torch.equal(batch["token_type_ids"], text("segment_ids"))
    assert torch.equal(batch["labels"], text("lm_label_ids").masked_fill(text("lm_label_ids") == -1, -100))
    assert torch.equal(batch["next_sentence_label"], tensors[f"{name}/is_next"])
    regions = tensors[f"{name}/input_mask"][:, settings["seq_len"] :]
    assert torch.equal(batch["region_attention_mask"], regions[:, : batch["region_features"].shape[1]])
    if f"{name}/img_feat" in tensors:
        golden_features = tensors[f"{name}/img_feat"][:, : batch["region_features"].shape[1]]
        torch.testing.assert_close(batch["region_features"][:8], golden_features, rtol=0, atol=0)


def test_classes_of_the_contrast(golden):
    for row in golden[2]["num_contrast_classes"]["expect"]["table"]:
        assert contrast_classes(row["texta_false_prob"], row["use_b"]) == row["num_contrast_classes"]


def test_a_row_draws_anew_every_epoch_and_the_same_again(rows, store):
    dataset = PretrainingRows(rows, {None: store})

    def items():
        return [(item["text"], item["tags"], item["random"].random()) for item in map(dataset.__getitem__, range(6))]

    first = items()
    assert items() == first
    dataset.set_epoch(1)
    assert items() != first
    dataset.set_epoch(0)
    assert items() == first


def test_share_of_what_is_wrong_and_masked(rows, store, tokenizer):
    """50 / 25 / 25 % over 4,000 draws (3,973 / 1,987 / 2,040 of the original's 8,000); 15 % masked, 80 / 10 / 10."""
    dataset = PretrainingRows(rows, {None: store})
    collator = PretrainingCollator(MengziOscarProcessor(tokenizer))
    counts, words, kinds = Counter(), 0, Counter()
    for epoch in range(500):
        dataset.set_epoch(epoch)
        items = [dataset[index] for index in range(len(dataset))]
        counts.update(item["next_sentence_label"] for item in items)
        batch = collator(items)
        texts = {name: [item[name] for item in items] for name in ("text", "tags")}
        plain = collator.processor(**texts, layout="pair")["input_ids"]
        asked = batch["labels"] != -100
        assert torch.equal(batch["labels"][asked], plain[asked])
        assert torch.equal(batch["input_ids"][~asked], plain[~asked])
        assert not (asked & ((plain == tokenizer.cls_token_id) | (plain == tokenizer.sep_token_id))).any()
        assert not (asked & (batch["attention_mask"] == 0)).any()
        words += (plain > tokenizer.mask_token_id).sum().item()
        masked = batch["input_ids"] == tokenizer.mask_token_id
        kinds["masked"] += (asked & masked).sum().item()
        kinds["kept"] += (asked & ~masked & (batch["input_ids"] == plain)).sum().item()
        kinds["other"] += (asked & ~masked & (batch["input_ids"] != plain)).sum().item()
    total = counts.total()
    assert [counts[label] / total for label in range(3)] == pytest.approx([0.5, 0.25, 0.25], abs=0.03)
    assert kinds.total() / words == pytest.approx(0.15, abs=0.01)
    shares = [kinds[kind] / kinds.total() for kind in ("masked", "other", "kept")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_wrong_things_come_from_another_image(rows, store):
    dataset = PretrainingRows(rows, {None: store})
    texts = {row["text"]: row["image_id"] for row in rows}
    for epoch in range(30):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            item = dataset[index]
            assert item["foreign"] == (item["next_sentence_label"] > 0)
            assert (texts[item["text"]] == rows[index]["image_id"]) == (item["next_sentence_label"] != 2)
            np.testing.assert_array_equal(
                item["region_features"], store[rows[index]["image_id"]]["region_features"]
            )  # the image never changes


def test_without_tags_only_texts_are_wrong(rows, store):
    dataset = PretrainingRows(rows, {None: store}, texta_false_prob=0.0, use_b=False)
    items = [dataset.item(0, random.Random(seed)) for seed in range(200)]
    assert {item["tags"] for item in items} == {""}
    assert {item["next_sentence_label"] for item in items} == {0, 2}
    bare = rows.map(lambda row: {"tags": "" if row["image_id"] == "b" else row["tags"]})
    dataset = PretrainingRows(bare, {None: store})
    items = [dataset.item(0, random.Random(seed)) for seed in range(200)]
    assert "" not in {item["tags"] for item in items}  # a row without tags is not what wrong tags are drawn from


def test_answers_are_the_wrong_tags_of_mode_2(rows, store):
    dataset = PretrainingRows(rows, {None: store}, textb_sample_mode=2)
    wrong = [dataset.item(7, random.Random(seed)) for seed in range(200)]
    answers = {row["tags"] for row in rows if row["question_id"]}
    assert {item["tags"] for item in wrong if item["next_sentence_label"] == 1} == answers - {rows[7]["tags"]}
    captions = rows.filter(lambda row: row["question_id"] is None)
    with pytest.raises(ValueError, match="no question in this data"):
        PretrainingRows(captions, {None: store}, textb_sample_mode=2)
    with pytest.raises(ValueError, match="0, 1 or 2, not 3"):
        PretrainingRows(rows, {None: store}, textb_sample_mode=3)


def test_places_that_can_be_masked():
    assert maskable(7, [0, 0, 0, 0, 1, 1, 1, 0, 0]) == [1, 2, 4, 5]
    assert maskable(7, [0, 0, 0, 0, 1, 1, 1, 0, 0], tags=False) == [1, 2]
    assert maskable(4, [0, 0, 0, 0, 0]) == [1, 2]


def test_rows_of_any_builder():
    captions = {"image_id": ["a", "b"], "captions": [["一只狗", "狗在跑"], ["两个人"]]}
    rows = one_row_per_text(datasets.Dataset.from_dict(captions), {"a": ["狗"], "b": []}.get)
    assert set(rows.column_names) == {"dataset", "image_id", "question_id", "text", "tags"}
    assert rows["text"][:] == ["一只狗", "狗在跑", "两个人"]
    assert rows["image_id"][:] == ["a", "a", "b"]
    assert rows["tags"][:] == ["狗", "狗", ""]
    with_tags = datasets.Dataset.from_dict(captions | {"tags": [["狗", "草地"], ["人"]]})
    assert one_row_per_text(with_tags)["tags"][:] == ["狗 草地", "狗 草地", "人"]
    questions = datasets.Dataset.from_dict(
        {"image_id": ["a"], "question_id": ["7"], "question": ["几只狗？"], "labels": [[1, 0]]},
        features=datasets.Features(
            {
                "image_id": datasets.Value("string"),
                "question_id": datasets.Value("string"),
                "question": datasets.Value("string"),
                "labels": datasets.List(datasets.ClassLabel(names=["两只", "一只"])),
            }
        ),
    )
    [row] = one_row_per_text(questions)
    assert (row["question_id"], row["text"], row["tags"]) == ("7", "几只狗？", "一只 两只")
    [row] = one_row_per_text(datasets.Dataset.from_dict({"image_id": ["a"], "text": ["狗"], "tags": ["狗"]}))
    assert row == {"image_id": "a", "text": "狗", "tags": "狗", "question_id": None, "dataset": None}


@pytest.fixture
def rows():
    """Six captions and two questions of four images; every text and every tag tells its image."""
    table = [
        *(("a", None, "一只狗", "狗"), ("a", None, "狗在草地上", "狗"), ("b", None, "一只猫", "猫 红色")),
        *(("b", None, "猫坐着", "猫 红色"), ("c", None, "两个人", "人"), ("d", None, "马在跑", "马 草地")),
        *(("c", "q1", "个个", "两个"), ("d", "q2", "马的", "白色")),
    ]
    names = ("image_id", "question_id", "text", "tags")
    columns = dict(zip(names, map(list, zip(*table, strict=True)), strict=True))
    return datasets.Dataset.from_dict(columns | {"dataset": [None] * len(table)})


@pytest.fixture
def store(tmp_path):
    with RegionFeatureStore.writer(tmp_path / "store") as writer:
        for number, image_id in enumerate("abcd"):
            writer.add(image_id, {"region_features": np.full((number + 1, 22), number, np.float32)})
    return RegionFeatureStore.open(tmp_path / "store")
