"""Builders of photos with sentences: the original layouts in, rows out, errors with file and row."""

import json
import shutil
from pathlib import Path

import pytest
from builders import AIC_TRAIN, build, builder_of, edit, without_image, wrong
from conftest import shared_path
from PIL import Image

from datasets_scripts.aic_icc import retrieval_keys
from datasets_scripts.coco_caption import CocoCaption
from datasets_scripts.flickr30k import join_words

# image_captions


def test_own_photos(data, capsys):
    dataset = build("image_captions", data("image_captions"), validation_share=0)
    assert {row["image_id"]: row["captions"] for row in dataset["train"]} == {
        "cat": ["一只猫趴在窗台上。", "窗台上的猫，看着外面。"],
        "trip/IMG_0001": ["两个人\n在湖边散步。"],
        "dog": ["草地上有一条狗。"],
        "trip/IMG_0002": ["山顶的日出。"],
    }
    assert dataset["train"][0]["image"].size == (8, 6)
    printed = capsys.readouterr().out
    assert "4 photos with 5 sentences; train 4." in printed
    assert "Left out: 1 photos without sentences; columns photographer." in printed


def test_own_photos_as_json_lines_with_splits(data):
    folder = data("image_captions")
    (folder / "captions.csv").unlink()
    rows = [
        {"file_name": "images/cat.jpg", "captions": ["猫。", "窗台上的猫。"], "split": "train"},
        {"file_name": "dog.jpg", "caption": " 狗。 ", "split": "val"},
        {"file_name": "bird.jpg", "caption": "鸟。", "split": "test"},
    ]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = build("image_captions", folder)
    found = {split: dict(zip(rows["image_id"], rows["captions"], strict=True)) for split, rows in dataset.items()}
    assert found == {
        "train": {"cat": ["猫。", "窗台上的猫。"]},
        "validation": {"dog": ["狗。"]},
        "test": {"bird": ["鸟。"]},
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dog.jpg", "cow.jpg", "row 6: there is no photo 'cow.jpg'"),
        ("dog.jpg", "dog.png", "row 6: there is no photo 'dog.png'"),
        ("dog.jpg", "../captions.csv", "row 6: there is no photo"),
        ("草地上有一条狗。", " ", "row 6: empty sentence"),
        ("草地上有一条狗。", "草地，狗,猫", "row 6: not 3 columns"),
        ("file_name", "path", "row 1: no column file_name, but path"),
        ("草地".encode(), "草地".encode("gb18030"), "row 6: broken UTF-8 .* 'CSV UTF-8'"),
    ],
)
def test_own_photos_with_an_error(data, old, new, message):
    wrong("image_captions", data("image_captions"), "captions.csv", old, new, message)


def test_bad_rows_are_skipped_and_counted_only_when_asked(data, capsys):
    folder = data("image_captions")
    edit(folder / "captions.csv", "dog.jpg", "cow.jpg")
    dataset = build("image_captions", folder, skip_bad=True)
    assert "dog" not in [image_id for rows in dataset.values() for image_id in rows["image_id"]]
    assert "Skipped: 1 bad rows, the first: " in capsys.readouterr().out


def test_own_photos_missing_or_ambiguous(data):
    folder = data("image_captions")
    Image.new("RGB", (8, 6)).save(folder / "images" / "cat.png")
    with pytest.raises(ValueError, match="the same id 'cat'"):
        build("image_captions", folder)
    shutil.copy(folder / "captions.csv", folder / "metadata.csv")
    with pytest.raises(ValueError, match="captions.csv and metadata.csv: keep one"):
        builder_of("image_captions", folder)
    for path in folder.glob("*.csv"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="none of captions.csv"):
        builder_of("image_captions", folder)


# coco_caption


def test_coco_cn(data, capsys):
    dataset = build("coco_caption-coco_cn", data("coco_caption-coco_cn"))
    assert without_image(dataset["train"][1]) == {
        "image_id": "COCO_val2014_000000000042",
        "captions": ["一只小狗趴在鞋架上睡觉", "鞋架上的狗。"],
        "translated": [],
        "machine": ["狗睡在鞋上"],
        "tags": ["狗", "鞋", "睡觉"],
    }
    assert dataset["test"][0]["translated"][4] == "摩托车的侧面。"
    assert dataset["extension"]["image_id"][:] == ["COCO_val2014_000000000139", "COCO_train2014_000000000030"]
    assert dataset["extension"]["captions"][0] == ["客厅里摆着电视和沙发。", "一间客厅"]
    printed = capsys.readouterr().out
    assert "train 2 photos with 3 sentences, validation 1" in printed
    assert "extension 2 photos with 3 sentences; 0 of the photos have none." in printed
    assert "0 photos without a row; 1 photos of the extension that are in an official split." in printed


def test_coco_cn_without_photos_and_without_the_optional_files(data, capsys):
    folder = data("coco_caption-coco_cn")
    for path in (folder / "train2014", folder / "val2014"):
        shutil.rmtree(path)
    for name in (
        "manually-translated-caption.txt",
        "machine-translated-caption.bosonseg.txt",
        "human-written-tags.txt",
    ):
        (folder / f"imageid.{name}").unlink()
    row = build("coco_caption-coco_cn", folder)["test"][0]
    assert row["image"] is None
    assert row["translated"] == []
    assert "no photos here: the column image is empty" in capsys.readouterr().out


def test_coco_english(data):
    official = build("coco_caption-official", data("coco_caption-official"))
    assert official["validation"]["captions"][0] == ["A puppy sleeps on a shoe rack.", "A dog on shoes."]
    karpathy = build("coco_caption-karpathy", data("coco_caption-karpathy"))
    assert karpathy["train"]["image_id"][:] == ["COCO_val2014_000000000042", "COCO_train2014_000000000009"]
    assert karpathy["train"]["captions"][0] == official["validation"]["captions"][0]


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        (
            "coco_cn",
            "coco-cn_val.txt",
            "COCO_train2014_000000000025",
            "COCO_val2014_000000000042",
            "row 1: .* already in",
        ),
        ("coco_cn", "imageid.human-written-caption.txt", "000009#0", "000008#0", "row 1: there is no photo or no sen"),
        ("coco_cn", "imageid.human-written-caption.txt", "鞋架上的狗。", "", "row 3: empty sentence"),
        ("coco_cn", "imageid.human-written-caption.txt", "鞋架上的狗。", b"\xe9", "row 3: broken UTF-8"),
        ("coco_cn", "coco-cn_ext.icap2020.txt", "000000139#1", "000000139#0", "row 2: sentence 0 of .* twice"),
        ("coco_cn", "coco-cn_ext.icap2020.txt", "\t花", "：花", "row 3: not of the form"),
        ("coco_cn", "imageid.human-written-tags.txt", "000042", "000043", "row 2: .* is in no split"),
        (
            "official",
            "annotations/captions_val2014.json",
            '"image_id": 73',
            '"image_id": 74',
            "item 2: image 74 is not",
        ),
        ("official", "annotations/captions_val2014.json", '"A dog on shoes. "', '""', "item 3: empty sentence"),
        (
            "official",
            "annotations/captions_val2014.json",
            '"annotations"',
            '"x"',
            "[^,]*not a JSON list under 'annotations'",
        ),
        ("karpathy", "dataset_coco.json", '"restval"', '"rest"', "item 2: split 'rest' instead of train"),
        ("oscar", "test.label.tsv", "139\t", "73\t", "row 2: '73' is already in .*row 1"),
        (
            "oscar",
            "test_caption.json",
            '"image_id": "139"',
            '"image_id": "140"',
            "item 2: '140' has no row in .*test.label",
        ),
    ],
)
def test_coco_with_an_error(data, name, file, old, new, message):
    message = message.replace("[^,]*", "")
    folder = data(f"coco_caption-{name}")
    edit(folder / file, old, new)
    with pytest.raises(ValueError, match=f"{Path(file).name}[,:] {message}"):
        build(f"coco_caption-{name}", folder)


def test_a_configuration_must_be_named(tmp_path):
    with pytest.raises(ValueError, match="config_name is None instead of 'coco_cn' or 'official'"):
        CocoCaption(data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no imageid.human-written-caption.txt, coco-cn_train.txt"):
        CocoCaption(config_name="coco_cn", data_dir=str(tmp_path))


def test_coco_photo_missing(data):
    folder = data("coco_caption-official")
    (folder / "val2014" / "COCO_val2014_000000000073.jpg").unlink()
    with pytest.raises(
        ValueError, match="captions_val2014.json, item 2: there is no photo of 'COCO_val2014_000000000073'"
    ):
        build("coco_caption-official", folder)


def test_coco_layout_of_the_original_code(tmp_path):
    """The golden of CaptionTSVDataset: images in the order of the label file, their captions, strings as ids."""
    builder = CocoCaption(
        config_name="oscar", data_dir=str(shared_path("parity/oscar/data_caption")), cache_dir=str(tmp_path)
    )
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train")
    assert rows["image_id"][:] == ["img_a", "img_b", "图c", "4"]
    assert [len(captions) for captions in rows["captions"]] == [2, 2, 1, 2]


def test_another_test_set_without_captions(data):
    """The published inference names one by its file: test_ch.yaml."""
    folder = data("coco_caption-oscar")
    (folder / "test_ch.yaml").write_text("label: test.label.tsv\n", encoding="utf-8")
    splits = build("coco_caption-oscar", folder)
    assert splits["test_ch"]["image_id"][:] == splits["test"]["image_id"][:]
    assert not any(splits["test_ch"]["captions"])
    assert any(splits["test"]["captions"])


def test_the_whole_extension_of_coco_cn(tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copy(shared_path("data/coco-cn_ext.icap2020.txt"), tmp_path / "data")
    builder = CocoCaption(config_name="coco_cn", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    rows = builder.as_dataset(split="extension")
    assert (len(rows), sum(map(len, rows["captions"]))) == (4573, 4712)


# aic_icc


def test_aic_icc(data, capsys):
    dataset = build("aic_icc", data("aic_icc"))
    row = dataset["train"][0]
    assert row["image_id"] == "8f00f3d0f1008e085ab660e70dffced16a8259f6"
    assert row["captions"][1] == "球场上有两个追球的男人"
    assert row["url"].startswith("http://")
    assert row["image"].size == (8, 6)
    assert "AIC-ICC train: 2 photos with 10 sentences. Left out: 0 photos without a row." in capsys.readouterr().out


def test_the_keys_of_the_retrieval_test():
    hashes = {"a": "ca978112", "b": "3e23e816", "c": "2e7d2c03"}  # printf a | sha256sum
    assert retrieval_keys("abc", 2) == sorted(hashes, key=hashes.get)[:2] == ["c", "b"]
    assert retrieval_keys(["b", "c", "a"], 3) == ["c", "b", "a"]


def test_aic_icc_retrieval_split_is_in_the_order_of_the_hashes(data):
    dataset = build("aic_icc", data("aic_icc"))
    assert dataset["retrieval_1k"]["image_id"][:] == retrieval_keys(dataset["validation"]["image_id"][:])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "b96ff46ba5b1cbe5bb4cc32b566431132ca71a64",
            "8f00f3d0f1008e085ab660e70dffced16a8259f6",
            "item 2: .* came before",
        ),
        ("b96ff46ba5b1cbe5bb4cc32b566431132ca71a64", "b96f", "item 2: there is no photo of 'b96f'"),
        ('"caption"', '"captions"', "item 1: 'caption' is None instead of list"),
        ('"caption": [', '"caption": [], "old": [', r"item 1: \[\] instead of a list of sentences"),
    ],
)
def test_aic_icc_with_an_error(data, old, new, message):
    wrong("aic_icc", data("aic_icc"), AIC_TRAIN, old, new, message)


def test_aic_icc_cut_off(data):
    folder = data("aic_icc")
    path = folder / AIC_TRAIN
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="caption_train_annotations_20170902.json: not JSON"):
        build("aic_icc", folder)


# flickr30k


def test_words_are_joined():
    assert join_words("两个 孩子 在 玩  旁边 有 狗") == "两个孩子在玩，旁边有狗"
    assert join_words("一个:m 女孩:n 在:p 弹:v 吉他:n") == "一个女孩在弹吉他"
    assert join_words("比分 是 3:2") == "比分是3:2"


def test_flickr30k(data):
    names = ("flickr30k-cn", "flickr30k-cna", "flickr30k-en")
    cn, cna, en = (build(name, data(name)) for name in names)
    for split in ("train", "validation", "test"):
        assert cn[split]["image_id"][:] == cna[split]["image_id"][:] == en[split]["image_id"][:]
    assert cn["train"]["captions"][0] == ["两个孩子在草地上玩，旁边有一条狗", "草地上的孩子"]
    assert cn["test"]["captions"][0] == cna["test"]["captions"][0] == ["一个女孩在弹吉他", "弹吉他的女孩"]
    assert en["train"]["captions"][0] == ["Two children play on the grass.", "Children and a dog."]


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("cn", "flickr30kzhbbosonval/TextData/seg.flickr30kzhbbosonval.caption.txt", "03#zhb#1", "02#zhb#1", "row 2"),
        (
            "cn",
            "flickr30kzhbbosonval/ImageSets/flickr30kzhbbosonval.txt",
            "03",
            "02",
            "row 1: .* already in .*train.txt",
        ),
        (
            "cna",
            "val/flickr30k_cna_val.txt",
            "1000000003.jpg#1",
            "1000000001.jpg#1",
            "row 2: there is no photo or no sen",
        ),
        ("cna", "test/flickr30k_cn_test.txt", "jpg#1", "jpg#0", "row 2: sentence 0 of '1000000004' is there twice"),
        ("en", "dataset_flickr30k.json", '"raw": "A man repairs a roof."', '"raw": " "', "item 2: empty sentence"),
    ],
)
def test_flickr30k_with_an_error(data, name, file, old, new, message):
    folder = data(f"flickr30k-{name}")
    wrong(f"flickr30k-{name}", folder, file, old, new, message)


def test_flickr30k_split_without_sentences(data):
    folder = data("flickr30k-cn")
    path = folder / "flickr30kzhbbosontrain" / "ImageSets" / "flickr30kzhbbosontrain.txt"
    path.write_text(path.read_text() + "1000000005\n")
    with pytest.raises(ValueError, match="flickr30kzhbbosontrain.txt: '1000000005' has no sentences"):
        build("flickr30k-cn", folder)
