"""Builders of retrieval and of the pre-training corpus: the original layouts in, rows out, errors with file and row."""

import json

import pytest
import torch
from builders import Dangerous, build, builder_of, edit, wrong
from conftest import shared_path

from datasets_scripts.coco_ir import CocoIr
from datasets_scripts.pretraining_corpus import PretrainingCorpus

# coco_ir


def test_retrieval(data):
    dataset = build("coco_ir", data("coco_ir"))
    assert dataset["test"]["image_id"][:] == ["391895", "60623", "483108"]
    assert dataset["test_1k"]["image_id"][:] == ["483108", "391895"]
    assert dataset["test_1k"][0] == {
        "image_id": "483108",
        "captions": ["一个男人骑车经过火车。", "火车旁的自行车。"],
        "candidates": [],
    }
    assert dataset["minival"]["captions"][:] == dataset["test"]["captions"][:]
    expected = [{"image_id": "391895", "caption": 0}, {"image_id": "60623", "caption": 1}]
    assert dataset["minival"]["candidates"][0] == expected


def test_retrieval_layout_of_the_original_code(tmp_path):
    """The golden of RetrievalDataset: its order of images, with and without keys, and its pairs of a short list."""
    folder = shared_path("parity/oscar/data_retrieval")
    builder = CocoIr(data_dir=str(folder), cache_dir=str(tmp_path))
    builder.download_and_prepare()
    dataset = builder.as_dataset()
    calls = {call["name"]: call["expect"] for call in json.loads((folder / "case.json").read_text("utf-8"))["calls"]}
    items = [(item["image"], item["caption_of"][1]) for item in calls["test_CLR"]["items"]]
    rows = dataset["test"]
    assert [(int(row["image_id"]), number) for row in rows for number in range(len(row["captions"]))] == items
    rows = dataset["test_keys"]
    captions = [(int(row["image_id"]), number) for row in rows for number in range(len(row["captions"]))]
    assert [[int(row["image_id"]), *caption] for row in rows for caption in captions] == calls["eval_cross"]["pairs"]
    shortlist = [
        [int(row["image_id"]), int(pair["image_id"]), pair["caption"]]
        for row in dataset["minival"]
        for pair in row["candidates"]
    ]
    assert shortlist == calls["eval_shortlist"]["pairs"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test_img_keys_1k.tsv", "483108\n7\n", ", row 2: '7' has no captions"),
        ("test_img_keys_1k.tsv", "483108\n483108\n", ", row 2: '483108' is there twice"),
        ("test_captions.pt", {7: '["狗", " "]'}, ", image 7: empty sentence"),
        ("test_captions.pt", {7: '["狗"'}, ", image 7: not JSON"),
        ("test_captions.pt", {7: "狗"}, ", image 7: not JSON"),
        ("test_captions.pt", {7: 3}, ", image 7: a int instead of a list"),
        ("test_captions.pt", ["狗"], ": holds a list instead of a dict"),
        ("test_captions.pt", {7: Dangerous()}, ": refused or damaged"),
        ("minival_captions.pt", {60623: ["女孩"]}, ": has no caption 0 of image '391895', a candidate for '391895'"),
    ],
)
def test_retrieval_with_an_error(data, capsys, file, content, message):
    folder = data("coco_ir")
    if isinstance(content, str):
        (folder / file).write_text(content)
    else:
        torch.save(content, folder / file)
    with pytest.raises(ValueError, match=file + message):
        build("coco_ir", folder)
    assert "called" not in capsys.readouterr().out


def test_retrieval_keys_saved_by_torch(data):
    folder = data("coco_ir")
    (folder / "test_img_keys_1k.tsv").unlink()
    torch.save([60623], folder / "test_img_keys_1k.pt")
    assert build("coco_ir", folder)["test_1k"]["image_id"][:] == ["60623"]


# pretraining_corpus


def test_pretraining_corpus(data, capsys):
    rows = build("pretraining_corpus", data("pretraining_corpus"))["train"]
    assert list(zip(rows["dataset"], rows["image_id"], rows["question_id"], rows["tags"], strict=True)) == [
        ("coco", "42", None, "小狗"),
        ("coco", "9", None, "食物 盒子"),
        ("flickr30k", "7", None, "男人 屋顶"),
        ("gqa", "2354786", "02930152", "左边"),
        ("coco", "42", "q5", "睡觉 休息"),
    ]
    assert rows["text"][3] == "马在左边还是右边？"
    assert (rows["image_height"][2], rows["image_width"][2]) == (500, 333)
    printed = capsys.readouterr().out
    assert "3 captions and 2 questions of coco, flickr30k, gqa. Left out: 1 rows of other data sets." in printed


def test_pretraining_corpus_with_chunks_and_detected_objects(data):
    rows = build("pretraining_corpus-cc", data("pretraining_corpus-cc"), ground_truth=False)["train"]
    assert rows["tags"][:] == ["狗 鞋 墙", "食物 盒子", "睡觉 休息", "海 太阳"]
    assert (rows["dataset"][3], rows["chunk"][3], rows["image_id"][3]) == ("googlecc", "3", "77")


@pytest.mark.parametrize(("call", "ground_truth"), [("docs", True), ("docs_no_gtlabels", False)])
def test_pretraining_layout_of_the_original_code(tmp_path, call, ground_truth):
    """The golden of OscarTSVDataset: its documents, with annotated and with detected objects."""
    folder = shared_path("parity/oscar/data_pretrain")
    calls = {call["name"]: call["expect"] for call in json.loads((folder / "case.json").read_text("utf-8"))["calls"]}
    builder = PretrainingCorpus(data_dir=str(folder), cache_dir=str(tmp_path), ground_truth=ground_truth)
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train")
    assert rows["text"][:] == [text for _, text, _ in calls["docs"]["docs"]]
    expected = calls[call].get("text_b") or [tags for *_, tags in calls["docs"]["docs"]]
    assert rows["tags"][:] == expected
    assert sum(question is not None for question in rows["question_id"]) == calls["docs"]["n_qa_docs"]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "coco_flickr30k_gqa.tsv",
            "coco_9\tcoco_9",
            "coco_10\tcoco_10",
            "row 2: image '10' has no row in .*labels/coco",
        ),
        ("coco_flickr30k_gqa.tsv", "coco_qa_42_q5", "coco_qa_42_q6", "row 5: question 'q6' has no row"),
        ("coco_flickr30k_gqa.tsv", "flickr30k_7\t男人", "男人", "row 3: 2 columns instead of 3"),
        ("coco_flickr30k_gqa.tsv", "gqa_2354786\t", "gqa\t", "row 4: 'gqa' is not of the form"),
        ("labels/gqa/QA_fileB.tsv", '"左边"', "左边", "row 1: not JSON"),
        ("labels/flickr30k/predictions_gt.tsv", '"objects"', '"object"', "row 1: 'objects' is None instead of list"),
    ],
)
def test_pretraining_corpus_with_an_error(data, file, old, new, message):
    wrong("pretraining_corpus", data("pretraining_corpus"), file, old, new, message)


def test_pretraining_corpus_with_an_empty_text(data):
    folder = data("pretraining_corpus")
    edit(folder / "labels" / "gqa" / "QA_fileB.tsv", '["左边"]', "[]")
    edit(folder / "coco_flickr30k_gqa.tsv", "\t餐盒里装着食物。", "\t \t")
    with pytest.raises(ValueError, match="coco_flickr30k_gqa.tsv, row 2: empty sentence"):
        build("pretraining_corpus", folder)
    edit(folder / "coco_flickr30k_gqa.tsv", "\t \t", "\t餐盒")
    with pytest.raises(ValueError, match="row 4, its tags or answers: empty sentence"):
        build("pretraining_corpus", folder)


def test_pretraining_corpus_without_a_file(data):
    folder = data("pretraining_corpus")
    (folder / "labels" / "gqa" / "predictions_gt.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="needs .*labels/gqa/predictions_gt.tsv"):
        builder_of("pretraining_corpus", folder)
    with pytest.raises(FileNotFoundError, match="no other.yaml"):
        builder_of("pretraining_corpus", folder, yaml_file="other.yaml")
