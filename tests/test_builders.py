"""Every builder: the original layout in, rows out, the same streamed and through Parquet, errors with file and row."""

import json
import pickle
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import shared_path
from datasets import load_dataset
from PIL import Image

from datasets_scripts import prepare
from datasets_scripts.aic_icc import AicIcc, retrieval_keys
from datasets_scripts.coco_caption import CocoCaption
from datasets_scripts.coco_ir import CocoIr
from datasets_scripts.flickr30k import Flickr30k, join_words
from datasets_scripts.gqa import Gqa
from datasets_scripts.image_captions import ImageCaptions
from datasets_scripts.pretraining_corpus import PretrainingCorpus
from datasets_scripts.vg_qa import VgQa
from datasets_scripts.vqa import SCORES, Vqa, answer_vocabulary
from modeling_mengzi_oscar import cli
from modeling_mengzi_oscar.region_store import RegionFeatureStore

FIXTURES = Path(__file__).parent / "fixtures"


OWN_PHOTOS = [f"images/{name}" for name in ("cat.jpg", "dog.jpg", "bird.jpg", "trip/IMG_0001.png", "trip/IMG_0002.png")]
COCO_PHOTOS = [
    *(f"train2014/COCO_train2014_{number:012d}.jpg" for number in (9, 25, 30)),
    *(f"val2014/COCO_val2014_{number:012d}.jpg" for number in (42, 73, 139)),
]
AIC = FIXTURES / "aic_icc"
AIC_TRAIN = "ai_challenger_caption_train_20170902/caption_train_annotations_20170902.json"
AIC_VALIDATION = "ai_challenger_caption_validation_20170910/caption_validation_annotations_20170910.json"
AIC_PHOTOS = [
    f"{file.rpartition('/')[0]}/{file.rpartition('/')[2].replace('annotations', 'images')[:-5]}/{row['image_id']}"
    for file in (AIC_TRAIN, AIC_VALIDATION)
    for row in json.loads((AIC / file).read_text("utf-8"))
]
FLICKR_PHOTOS = [f"flickr30k-images/{number}.jpg" for number in range(1000000001, 1000000006)]
VQA_PHOTOS = [
    *(f"train2014/COCO_train2014_{number:012d}.jpg" for number in (458752, 262146)),
    "val2014/COCO_val2014_000000262148.jpg",
    "test2015/COCO_test2015_000000000001.jpg",
]

# fixture (up to the hyphen) -> builder, its arguments, photos to generate, rows of every split
BUILDERS = {
    "image_captions": (ImageCaptions, {}, OWN_PHOTOS, {"train": 3, "validation": 1}),
    "coco_caption-coco_cn": (
        CocoCaption,
        {"config_name": "coco_cn"},
        COCO_PHOTOS,
        {"train": 2, "validation": 1, "test": 1, "extension": 2},
    ),
    "coco_caption-official": (CocoCaption, {"config_name": "official"}, COCO_PHOTOS, {"train": 2, "validation": 2}),
    "coco_caption-karpathy": (
        CocoCaption,
        {"config_name": "karpathy"},
        COCO_PHOTOS,
        {"train": 2, "validation": 1, "test": 1},
    ),
    "coco_caption-oscar": (CocoCaption, {"config_name": "oscar"}, [], {"train": 3, "test": 2}),
    "aic_icc": (AicIcc, {}, AIC_PHOTOS, {"train": 2, "validation": 3, "retrieval_1k": 3}),
    "flickr30k-cn": (Flickr30k, {"config_name": "cn"}, FLICKR_PHOTOS, {"train": 2, "validation": 1, "test": 1}),
    "flickr30k-cna": (Flickr30k, {"config_name": "cna"}, FLICKR_PHOTOS, {"train": 2, "validation": 1, "test": 1}),
    "flickr30k-en": (Flickr30k, {"config_name": "en"}, FLICKR_PHOTOS, {"train": 2, "validation": 1, "test": 1}),
    "coco_ir": (CocoIr, {}, [], {"train": 1, "minival": 3, "test": 3, "test_1k": 2}),
    "vqa-oscar": (Vqa, {"config_name": "oscar"}, [], {"train": 2, "validation": 1, "vg": 1, "test": 1}),
    "vqa-official": (Vqa, {"config_name": "official"}, VQA_PHOTOS, {"train": 2, "validation": 1, "test": 1}),
    "gqa-oscar_balanced": (Gqa, {"config_name": "oscar_balanced"}, [], {"train": 2, "validation": 1, "testdev": 1}),
    "gqa-oscar_all": (Gqa, {"config_name": "oscar_all"}, [], {"validation": 1, "submission": 2}),
    "gqa-official_balanced": (
        Gqa,
        {"config_name": "official_balanced"},
        ["images/2354786.jpg", "images/2354787.jpg"],
        {"train": 1, "validation": 1},
    ),
    "gqa-official_all": (Gqa, {"config_name": "official_all"}, [], {"train": 2, "submission": 1}),
    "vg_qa": (VgQa, {}, ["VG_100K_2/1.jpg", "VG_100K/2.jpg", "VG_100K/3.jpg"], {"train": 3}),
    "pretraining_corpus": (PretrainingCorpus, {}, [], {"train": 5}),
    "pretraining_corpus-cc": (PretrainingCorpus, {"yaml_file": "coco_flickr30k_gqa_cc.yaml"}, [], {"train": 4}),
}
every_builder = pytest.mark.parametrize("name", BUILDERS)


@pytest.fixture
def data(tmp_path):
    """data(name): a copy of a fixture with generated photos."""

    def copy(name):
        fixture, photos = name.partition("-")[0], BUILDERS[name][2]
        folder = tmp_path / name
        shutil.copytree(FIXTURES / fixture, folder)
        for photo in photos:
            (folder / photo).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 6), "green").save(folder / photo)
        return folder

    return copy


def builder_of(name, folder, **changes):
    cls, arguments, *_ = BUILDERS[name]
    cache = {"cache_dir": str(folder.parent / "cache")}
    return cls(data_dir=str(folder), **(cache | arguments | changes))


def build(name, folder, **changes):
    builder = builder_of(name, folder, **changes)
    builder.download_and_prepare()
    return builder.as_dataset()


def edit(path, old, new):
    data = path.read_bytes()
    old, new = (text.encode() if isinstance(text, str) else text for text in (old, new))
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def without_image(row):
    return {key: value for key, value in row.items() if key != "image"}


@every_builder
def test_rows_streamed_and_through_parquet(data, tmp_path, name):
    """What `as_dataset` has is what is streamed, and what plain `load_dataset` reads from Parquet elsewhere."""
    folder = data(name)
    dataset = build(name, folder)
    assert {split: len(rows) for split, rows in dataset.items()} == BUILDERS[name][3]
    streamed = {split: list(rows) for split, rows in builder_of(name, folder).as_streaming_dataset().items()}
    assert streamed == {split: list(rows) for split, rows in dataset.items()}
    builder = builder_of(name, folder, cache_dir=str(tmp_path / "other_cache"))
    builder.download_and_prepare(str(tmp_path / "parquet"), file_format="parquet")
    shutil.rmtree(folder)
    for split, rows in streamed.items():
        files = sorted(map(str, (tmp_path / "parquet").glob(f"*-{split}[-.]*parquet")))
        read = load_dataset("parquet", data_files={split: files}, cache_dir=str(tmp_path / "cache"), split=split)
        assert read.features == dataset[split].features
        for row, wanted in zip(read, rows, strict=True):
            assert without_image(row) == without_image(wanted)
            assert bool(row.get("image")) == bool(wanted.get("image"))


@every_builder
def test_an_edited_file_is_seen_and_an_unedited_one_is_not_read_again(data, name, capsys):
    folder = data(name)
    build(name, folder)
    assert capsys.readouterr().out
    build(name, folder)
    assert capsys.readouterr().out == ""
    for path in builder_of(name, folder).files.values():
        Path(path).touch()
    build(name, folder)
    assert capsys.readouterr().out


@every_builder
def test_byte_order_mark_and_crlf_change_nothing(data, name):
    folder = data(name)
    expected = {split: list(rows) for split, rows in build(name, folder).items()}
    for path in folder.rglob("*"):
        if path.suffix in (".txt", ".json", ".csv", ".tsv", ".yaml"):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert {split: list(rows) for split, rows in build(name, folder).items()} == expected


def wrong(name, folder, file, old, new, message, **changes):
    edit(folder / file, old, new)
    with pytest.raises(ValueError, match=f"{Path(file).name}, {message}"):
        build(name, folder, **changes)


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


def test_the_code_of_the_tutorial(data, tmp_path, tiny_checkpoint, monkeypatch):
    """docs/own_photos.md, from the photos to a caption, with a tiny checkpoint in place of the mini."""
    data("image_captions").rename(tmp_path / "my-photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert (
        cli.main(["extract", "my-photos/images", "--output", "stores/my-photos", "--model", str(tiny_checkpoint)]) == 0
    )
    text = (Path(__file__).parents[1] / "docs" / "own_photos.md").read_text("utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        code = code.replace("checkpoints/mengzi-oscar-mini", str(tiny_checkpoint))
        exec(code.replace("num_train_epochs=10", "num_train_epochs=1, use_cpu=True, report_to=[]"), {})
    photo = "my-photos/images/cat.jpg"
    assert cli.main(["caption", photo, "--model", "outputs/my-photos/final"]) == 0


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


class Dangerous:
    def __reduce__(self):
        return print, ("called",)


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


# vqa


def names_of(dataset, row):
    return [dataset.features["labels"].feature.int2str(label) for label in row["labels"]]


def test_vqa_in_oscars_files(data, capsys):
    dataset = build("vqa-oscar", data("vqa-oscar"))
    row = dataset["train"][0]
    assert names_of(dataset["train"], row) == ["red", "马"]
    assert row["scores"] == pytest.approx([1, 0.3])
    assert (row["question_id"], row["image_id"], row["tags"]) == ("458752000", "458752", ["人", "马", "草地"])
    assert dataset["validation"][0]["tags"] == ["person", "person", "surfboard"]
    assert dataset["validation"][0]["question_id"] is None
    assert dataset["test"][0]["labels"] == []
    assert "VQA train: 3 questions. Left out: 1 without an answer of the vocabulary." in capsys.readouterr().out


def test_vqa_as_published(data, capsys):
    dataset = build("vqa-official", data("vqa-official"))
    first, second = dataset["train"]
    assert names_of(dataset["train"], first) == ["red", "马"]
    assert first["scores"] == pytest.approx([1, 0.3])
    assert names_of(dataset["train"], second) == ["冲浪", "2"]
    assert second["scores"] == pytest.approx([0.9, 0.6])
    assert second["answers"].count("surfing") == 5
    assert first["image_id"] == "COCO_train2014_000000458752"
    assert dataset["validation"][0]["answer_type"] == "yes/no"
    assert "VQA train: 3 questions. Left out: 1 without" in capsys.readouterr().out


@pytest.mark.parametrize("count", range(11))
def test_soft_scores_are_the_mean_of_the_official_rule(count):
    answers = ["yes"] * count + ["no"] * (10 - count)
    accuracies = [min((answers[:i] + answers[i + 1 :]).count("yes") / 3, 1) for i in range(10)]
    assert SCORES[min(count, 4)] == pytest.approx(sum(accuracies) / 10)


def test_vocabulary_of_annotations():
    paths = [str(FIXTURES / "vqa" / f"v2_mscoco_{part}_annotations.json") for part in ("train2014", "val2014")]
    assert answer_vocabulary(*paths, minimum=1) == ["here", "red", "surfing", "yes"]
    assert answer_vocabulary(*paths, paths[1], minimum=2) == ["yes"]


def test_vqa_layout_of_the_original_code(tmp_path):
    """The golden of VQADataset: which questions stay, their first label and the whole target vector."""
    from safetensors.numpy import load_file

    folder = shared_path("parity/oscar/data_vqa")
    builder = Vqa(config_name="oscar", data_dir=str(folder), cache_dir=str(tmp_path))
    builder.download_and_prepare()
    dataset, golden = builder.as_dataset(), load_file(folder / "outputs.safetensors")
    assert len(dataset["validation"]) == 4
    assert len(dataset["test"]) == 5
    for number, row in enumerate(dataset["validation"]):
        target = [0.0] * 7
        for label, score in zip(row["labels"], row["scores"], strict=True):
            target[label] = score
        assert golden[f"val_pt/item{number}_target_scores"].tolist() == pytest.approx(target)
        assert golden[f"val_pt/item{number}_label_id"].tolist() == [row["labels"][0]]
    for number, row in enumerate(dataset["test"]):
        assert golden[f"test2015/item{number}_q_id"].tolist() == [int(row["question_id"])]


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("oscar", "train2014_qla_mrcnn.json", '"an": [4]', '"an": [6]', "item 2: answer 6 is not among the 6"),
        ("oscar", "train2014_qla_mrcnn.json", "[1, 0.3]", "[1]", "item 1: 2 answers, but 1 scores"),
        ("oscar", "train2014_qla_mrcnn.json", '"an": [4], ', "", "item 2: 'an' is None instead of list"),
        ("oscar", "test2015_qla_mrcnn.json", "天气好吗？", "", "item 1: empty sentence"),
        (
            "official",
            "v2_OpenEnded_mscoco_val2014_questions.json",
            "262148000",
            "5",
            "item 1: question 5 has no annotation",
        ),
        (
            "official",
            "v2_OpenEnded_mscoco_val2014_questions.json",
            "262148,",
            "5,",
            "item 1: there is no photo of 'COCO_val",
        ),
    ],
)
def test_vqa_with_an_error(data, name, file, old, new, message):
    wrong(f"vqa-{name}", data(f"vqa-{name}"), file, old, new, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Dangerous()), "refused as a list of answers: it calls builtins.print"),
        (b"not a pickle", "trainval_ans2label.pkl: "),
        (pickle.dumps({"yes": 0, "no": 2}), "the ids of its 2 answers are not 0 to 1"),
        (pickle.dumps(["yes", "yes"]), "nor a list of different answers"),
    ],
)
def test_a_vocabulary_that_is_refused(data, capsys, content, message):
    folder = data("vqa-oscar")
    (folder / "trainval_ans2label.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        builder_of("vqa-oscar", folder)
    assert "called" not in capsys.readouterr().out


def test_vqa_files_missing(data):
    folder = data("vqa-official")
    (folder / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(FileNotFoundError, match="no v2_mscoco_val2014_annotations.json"):
        builder_of("vqa-official", folder)
    for path in folder.glob("*.pkl"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no vocabulary of answers"):
        builder_of("vqa-oscar", folder)


# gqa


def test_gqa(data, capsys):
    oscar = build("gqa-oscar_balanced", data("gqa-oscar_balanced"))
    assert names_of(oscar["train"], oscar["train"][1]) == ["马", "yes"]
    assert oscar["train"][0]["tags"] == ["人", "马", "草地"]
    official = build("gqa-official_balanced", data("gqa-official_balanced"))
    row = official["train"][0]
    assert (row["question_id"], row["answer"], row["full_answer"]) == ("02930152", "left", "马在左边。")
    assert names_of(official["train"], row) == ["left"]
    assert (row["structural"], row["semantic"], row["detailed"]) == ("query", "rel", "directWhich")
    assert "GQA train: 2 questions. Left out: 1 without an answer of the vocabulary." in capsys.readouterr().out


def test_gqa_in_chunks_and_without_answers(data):
    dataset = build("gqa-official_all", data("gqa-official_all"))
    assert dataset["train"]["question"][:] == ["二？", "三？"]
    assert dataset["submission"][0]["answer"] is None
    assert build("gqa-oscar_all", data("gqa-oscar_all"))["submission"]["question_id"][:] == ["201971873", "201971874"]


def test_gqa_layout_of_the_original_code(tmp_path):
    from safetensors.numpy import load_file

    folder = shared_path("parity/oscar/data_gqa")
    golden = load_file(folder / "outputs.safetensors")
    builder = Gqa(config_name="oscar_balanced", data_dir=str(folder), cache_dir=str(tmp_path))
    builder.download_and_prepare()
    rows = builder.as_dataset(split="validation")
    assert [row["labels"][0] for row in rows] == [int(golden[f"val/item{n}_label_id"][0]) for n in range(3)]


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("oscar_balanced", "gqa_bal_qla_train.json", "[3, 0]", "[3, 4]", "item 2: answer 4 is not among the 4"),
        (
            "official_balanced",
            "val_balanced_questions.json",
            "2354787",
            "1",
            "question '05515938': there is no photo of '1'",
        ),
        ("official_balanced", "val_balanced_questions.json", "Is it red?", "", "question '05515938': empty sentence"),
    ],
)
def test_gqa_with_an_error(data, name, file, old, new, message):
    wrong(f"gqa-{name}", data(f"gqa-{name}"), file, old, new, message)


# vg_qa


def test_vg_qa(data, capsys):
    rows = build("vg_qa", data("vg_qa"))["train"]
    assert rows["question_id"][:] == ["986769", "986768", "986770"]
    assert rows["answer"][:] == ["绿色。", "Daytime.", "两辆。"]
    assert rows["coco_id"][:] == [None, None, 91236]
    assert "VG-QA: 3 questions on 3 photos, 1 of them known to be COCO's." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"Daytime. "', '""', "item 1, question 986768: empty sentence"),
        ('"id": 2', '"id": 7', "item 2, question 986770: there is no photo of '7'"),
        ('"qas": []', '"qas": {}', "item 3: 'qas' is {} instead of list"),
    ],
)
def test_vg_qa_with_an_error(data, old, new, message):
    wrong("vg_qa", data("vg_qa"), "question_answers.json", old, new, message)


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


# prepare


def store_of(path, image_ids):
    with RegionFeatureStore.writer(path) as writer:
        for image_id in image_ids:
            writer.add(image_id, {"region_features": np.ones((2, 8), np.float32)})
    return str(path)


def run_prepare(folder, *arguments):
    return prepare.main(["--data-dir", str(folder), "--cache-dir", str(folder.parent / "cache"), *map(str, arguments)])


def test_every_builder_has_its_name_in_prepare():
    modules = {path.stem for path in Path(prepare.__file__).parent.glob("*.py")}
    assert set(prepare.NAMES) == modules - {"__init__", "prepare", "reading"}
    for name, (cls, *_) in BUILDERS.items():
        assert prepare.builder_class(name.partition("-")[0]) is cls


def test_prepare_writes_what_load_dataset_reads(data, tmp_path, capsys):
    folder = data("vqa-oscar")
    store = store_of(tmp_path / "store", ["458752", "262148", "2345", "1", "extra"])
    output = tmp_path / "rows"
    assert run_prepare(folder, "vqa", "--config", "oscar", "--features", store, "--output", output) == 0
    printed = capsys.readouterr().out
    assert "train: 2 rows, 1 images" in printed
    assert "store: 1 images without a row" in printed
    rows = load_dataset(str(output), cache_dir=str(tmp_path / "other_cache"))
    assert {split: list(part) for split, part in rows.items()} == {
        split: list(part) for split, part in build("vqa-oscar", folder).items()
    }
    assert rows["train"].features["labels"].feature.names[4] == "冲浪"


def test_prepare_names_a_row_without_features(data, tmp_path, capsys):
    folder = data("flickr30k-cna")
    store = store_of(tmp_path / "store", ["1000000001", "1000000003", "1000000004"])
    output = tmp_path / "rows"
    arguments = ("flickr30k", "--config", "cna", "--features", store, "--output", output)
    assert run_prepare(folder, *arguments) == 2
    error = capsys.readouterr().err
    assert "no features of 1 images of split train, the first in row 2: '1000000002'" in error
    assert not output.exists()
    assert run_prepare(folder, *arguments, "--skip-missing") == 0
    assert "train: left out 1 rows of 1 images without features" in capsys.readouterr().out
    rows = load_dataset(str(output), cache_dir=str(tmp_path / "other_cache"))
    assert rows["train"]["image_id"][:] == ["1000000001"]
    assert "image" not in rows["train"].column_names
    assert run_prepare(folder, *arguments) == 2
    assert "exists" in capsys.readouterr().err


def test_prepare_says_in_one_line_what_is_wrong(data, capsys):
    folder = data("image_captions")
    edit(folder / "captions.csv", "dog.jpg", "cow.jpg")
    assert run_prepare(folder, "image_captions") == 2
    assert "captions.csv, row 6: there is no photo 'cow.jpg'\n" in capsys.readouterr().err
    assert run_prepare(folder, "image_captions", "--skip-bad") == 0
    assert run_prepare(folder, "coco_caption") == 2
    assert "config_name is None instead of 'coco_cn'" in capsys.readouterr().err
