"""Every builder: rows, the same streamed and through Parquet, files that change; `prepare`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import BUILDERS, build, builder_of, edit, without_image
from datasets import load_dataset

from datasets_scripts import prepare
from modeling_mengzi_oscar.region_store import RegionFeatureStore

every_builder = pytest.mark.parametrize("name", BUILDERS)


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


def test_prepare_of_pairs_of_photos(data, tmp_path, capsys):
    """A row needs the features of both photos."""
    folder = data("nlvr2")
    store = store_of(tmp_path / "store", ["train-10171-0-img0", "train-10171-0-img1", "dev-850-0-img0"])
    assert run_prepare(folder, "nlvr2", "--features", store) == 2
    assert "no features of 1 images of split train, the first in row 2: 'train-3-1-img1'" in capsys.readouterr().err
    assert run_prepare(folder, "nlvr2", "--features", store, "--skip-missing") == 0
    printed = capsys.readouterr().out
    assert "train: 1 rows, 2 images" in printed
    assert "validation: left out 1 rows of 1 images without features" in printed


def test_prepare_says_in_one_line_what_is_wrong(data, capsys):
    folder = data("image_captions")
    edit(folder / "captions.csv", "dog.jpg", "cow.jpg")
    assert run_prepare(folder, "image_captions") == 2
    assert "captions.csv, row 6: there is no photo 'cow.jpg'\n" in capsys.readouterr().err
    assert run_prepare(folder, "image_captions", "--skip-bad") == 0
    assert run_prepare(folder, "coco_caption") == 2
    assert "config_name is None instead of 'coco_cn'" in capsys.readouterr().err
