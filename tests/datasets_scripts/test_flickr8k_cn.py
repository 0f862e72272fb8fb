"""Flickr8k-CN: the authors' files in, rows out; every way in which a file can be wrong is named with its row."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
from conftest import REPOSITORY, shared_path
from datasets import load_dataset
from PIL import Image

from datasets_scripts.flickr8k_cn import Flickr8kCN

FIXTURE = Path(__file__).parent / "fixtures" / "flickr8k_cn"
SENTENCES = "flickr8kzhc.caption.txt"


@pytest.fixture
def data_dir(tmp_path):
    """The authors' files of six photos (sentences of our own), and generated photos."""
    folder = tmp_path / "flickr8k-cn"
    shutil.copytree(FIXTURE, folder)
    (folder / "images").mkdir()
    for line in (folder / SENTENCES).read_text("utf-8").splitlines():
        Image.new("RGB", (8, 6), "green").save(folder / "images" / line.partition("#")[0])
    return folder


def build(data_dir):
    builder = Flickr8kCN(data_dir=str(data_dir), cache_dir=str(data_dir.parent / "cache"))
    builder.download_and_prepare()
    return builder


def edit(path, change):
    """Rewrite a file through a function of its bytes."""
    path.write_bytes(change(path.read_bytes()))


def test_the_example_of_data_md(data_dir, monkeypatch):
    monkeypatch.chdir(data_dir.parent)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(data_dir.parent / "cache"))
    page = (REPOSITORY / "docs" / "data.md").read_text("utf-8")
    [example] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(example, names := {})
    assert len(names["train"]) == len(list(names["stream"])) == 2


def test_rows_of_the_three_splits(data_dir, capsys):
    dataset = build(data_dir).as_dataset()
    assert {split: rows["image_id"] for split, rows in dataset.items()} == {
        "train": ["1001000002_0f1e2d3c4b", "1001000001_aa0b1c2d3e"],
        "validation": ["1001000003_9988776655"],
        "test": ["1001000005_5e4d3c2b1a", "1001000004_1a2b3c4d5e"],
    }
    row = dataset["train"][0]
    assert row["image"].size == (8, 6)
    assert row["captions"] == [
        "两个孩子在沙滩上堆沙子。",
        "沙滩上的孩子。",
        "玩沙子的小孩。",
        "两个小孩。",
        "海边玩耍的孩子。",
    ]
    assert row["translated"] == []
    assert [item["system"] for item in row["machine"]] == ["google_icmr2016"] * 5 + ["baidu_2016"] * 5
    assert row["machine"][5]["caption"] == "这里有两个孩子在沙滩上堆沙子。"
    assert dataset["test"][0]["translated"][4] == "人们在观看 LIVE 演出。"
    printed = capsys.readouterr().out
    assert "6 photos with 30 sentences, 10 translated by people, 60 by machines" in printed
    assert "Left out: 1 photos in no split, 0 photos without sentences, 10 machine translations" in printed


def test_streaming_gives_the_same_rows(data_dir):
    builder = build(data_dir)
    assert list(builder.as_streaming_dataset(split="test")) == list(builder.as_dataset(split="test"))


def test_parquet_needs_neither_code_nor_photos(data_dir, tmp_path):
    """What push_to_hub uploads: Parquet with the photos in it, read by plain load_dataset."""
    expected = list(build(data_dir).as_dataset(split="test"))
    builder = Flickr8kCN(data_dir=str(data_dir), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare(str(tmp_path / "parquet" / "data"), file_format="parquet")
    files = {"test": [str(path) for path in (tmp_path / "parquet" / "data").glob("*test*.parquet")]}
    shutil.rmtree(data_dir)
    rows = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"), split="test")
    for row, wanted in zip(rows, expected, strict=True):
        assert row["image"].size == (8, 6)
        assert {**row, "image": None} == {**wanted, "image": None}


def test_edited_file_is_seen_and_unedited_is_cached(data_dir, capsys):
    folder = build(data_dir).cache_dir
    capsys.readouterr()
    assert build(data_dir).cache_dir == folder
    assert capsys.readouterr().out == ""  # nothing was read again
    edit(data_dir / SENTENCES, lambda data: data.replace("草地上的狗。".encode(), "雪地上的狗。".encode()))
    assert build(data_dir).as_dataset(split="train")[1]["captions"][1] == "雪地上的狗。"


def test_byte_order_mark_and_crlf_change_nothing(data_dir, tmp_path):
    expected = list(build(data_dir).as_dataset(split="test").remove_columns("image"))
    for path in data_dir.glob("flickr8k*"):
        edit(path, lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"))
    assert list(build(data_dir).as_dataset(split="test").remove_columns("image")) == expected


def test_clone_of_the_authors_repository_and_archive_of_the_photos(data_dir):
    expected = build(data_dir).as_dataset()["test"]["captions"]
    (data_dir / "data").mkdir()
    for path in data_dir.glob("flickr8k*"):
        path.rename(data_dir / "data" / path.name)
    (data_dir / "images").rename(data_dir / "Flicker8k_Dataset")
    assert build(data_dir).as_dataset()["test"]["captions"] == expected


def test_captions_jsonl_supplies_systems_that_the_authors_files_do_not(data_dir):
    machine = {"google_2016": ["狗跑。"], "baidu_2016": ["不用。"]}
    record = {"image_id": "1001000001_aa0b1c2d3e", "machine": machine}
    (data_dir / "captions.jsonl").write_text(json.dumps(record) + "\n", "utf-8")
    row = build(data_dir).as_dataset(split="train")[1]
    assert [item["system"] for item in row["machine"]] == ["google_icmr2016"] * 5 + ["baidu_2016"] * 5 + ["google_2016"]
    assert row["machine"][-1]["caption"] == "狗跑。"


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (SENTENCES, "骑车的人。".encode(), "骑车的人。".encode()[:-2], "row 9: broken UTF-8"),
        (SENTENCES, "#zhc#1 骑车的人。".encode(), b"#zhc#1 ", "row 9: empty sentence"),
        (SENTENCES, "#zhc#1 骑车的人。".encode(), "#zhc#0 骑车的人。".encode(), "row 9: sentence 0 of .* twice"),
        (SENTENCES, "#zhc#1 骑车的人。".encode(), "\t骑车的人。".encode(), "row 9: not of the form"),
        (SENTENCES, b"1001000003_9988776655.jpg#zhc#1", b"7_7.jpg#zhc#1", "row 9: there is no photo .* '7_7'"),
        ("flickr8kzhmtest.captions.txt", b"1001000005_5e4d3c2b1a.jpg#zhm#2", b"7_7.jpg#zhm#2", "row 8: .*'7_7'"),
        ("flickr8ktest.txt", b"1001000004_1a2b3c4d5e", b"7_7", "row 2: '7_7' has no sentences"),
        ("flickr8kval.txt", b"1001000003_9988776655", b"1001000001_aa0b1c2d3e", "row 1: .* already in .*train.*row 2"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_row(data_dir, name, old, new, message):
    assert old in (data_dir / name).read_bytes()
    edit(data_dir / name, lambda data: data.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"{name}, {message}"):
        build(data_dir)


def test_bad_rows_are_skipped_and_counted_when_asked(data_dir, capsys):
    edit(data_dir / SENTENCES, lambda data: data.replace("#zhc#1 骑车的人。".encode(), b"#zhc#1 "))
    builder = Flickr8kCN(data_dir=str(data_dir), cache_dir=str(data_dir.parent / "cache"), skip_bad=True)
    builder.download_and_prepare()
    assert "骑车的人。" not in builder.as_dataset(split="validation")[0]["captions"]
    printed = capsys.readouterr().out
    assert "6 photos with 29 sentences" in printed
    assert f"Skipped: 1 bad rows, the first: {data_dir / SENTENCES}, row 9: empty sentence" in printed


def test_missing_files_and_photos(data_dir):
    (data_dir / "images" / "1001000006_deadbeef00.jpg").unlink()
    with pytest.raises(ValueError, match=f"{SENTENCES}, row 6: there is no photo .*'1001000006_deadbeef00'"):
        build(data_dir)
    shutil.rmtree(data_dir / "images")
    with pytest.raises(FileNotFoundError, match="no folder images/"):
        build(data_dir)
    (data_dir / "flickr8kval.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no flickr8kval.txt: get them from https"):
        build(data_dir)


def test_the_whole_data_set(tmp_path, capsys):
    """Against captions.jsonl, which somebody else made of the same files."""
    data_dir = shared_path("data/flickr8k-cn")
    builder = Flickr8kCN(data_dir=str(data_dir), cache_dir=str(tmp_path))
    builder.download_and_prepare()
    assert "Left out: 91 photos in no split, 0 photos without" in capsys.readouterr().out
    dataset = builder.as_dataset()
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 6000, "validation": 1000, "test": 1000}
    with open(data_dir / "captions.jsonl", encoding="utf-8") as file:
        records = {record["image_id"]: record for record in map(json.loads, file)}
    for split, rows in dataset.items():
        rows = rows.remove_columns("image")
        for row in rows:
            record = records[row["image_id"]]
            assert record["split"] == {"validation": "val"}.get(split, split)
            assert row["captions"] == [caption.strip() for caption in record["captions"]]
            assert row["translated"] == [caption.strip() for caption in record.get("translated", [])]
            machine = {item["system"]: [] for item in row["machine"]}
            for item in row["machine"]:
                machine[item["system"]].append(item["caption"])
            assert machine == record["machine"]
    assert dataset["test"][0]["image"].size == (224, 224)
