"""Every builder: rows, the same streamed and through Parquet, files that change; `prepare`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import AIC_TRAIN, BUILDERS, build, builder_of, edit, without_image
from datasets import load_dataset

from datasets_scripts import prepare
from modeling_mengzi_oscar.features.store import RegionFeatureStore

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


@every_builder
def test_broken_utf8_is_named_in_every_file(data, name, capsys):
    """With its row; a row that is a line of its own can be skipped and is counted, JSON as a whole cannot."""
    folder = data(name)
    for path in map(Path, builder_of(name, folder).files.values()):
        if path.suffix in (".pt", ".pkl"):
            continue
        whole = path.read_bytes()
        path.write_bytes(whole.rstrip(b"\n") + b"\n\xe9\n")
        row = len(path.read_bytes().splitlines())
        with pytest.raises(ValueError, match=rf"{path.name}(, row {row}: broken UTF-8|: damaged)"):
            build(name, folder)
        if path.suffix not in (".json", ".yaml"):
            capsys.readouterr()
            build(name, folder, skip_bad=True)
            assert f"Skipped: 1 bad rows, the first: {path}, row {row}: broken UTF-8" in capsys.readouterr().out
        path.write_bytes(whole)


ONE_BAD_ROW = {
    "image_captions": ("captions.csv", "草地上有一条狗。", "草地，狗,猫"),
    "flickr8k_cn": ("flickr8kzhc.caption.txt", "#zhc#1 ", "#zhc#0 "),
    "coco_caption-coco_cn": ("imageid.human-written-caption.txt", "鞋架上的狗。", ""),
    "coco_caption-official": ("annotations/captions_val2014.json", '"A dog on shoes. "', '""'),
    "coco_caption-karpathy": ("dataset_coco.json", '"restval"', '"rest"'),
    "coco_caption-oscar": ("test_caption.json", '"image_id": "139"', '"image_id": "140"'),
    "aic_icc": (AIC_TRAIN, '"caption"', '"captions"'),
    "flickr30k-cn": ("flickr30kzhbbosonval/TextData/seg.flickr30kzhbbosonval.caption.txt", "03#zhb#1", "02#zhb#1"),
    "flickr30k-cna": ("test/flickr30k_cn_test.txt", "jpg#1", "jpg#0"),
    "flickr30k-en": ("dataset_flickr30k.json", '"raw": "A man repairs a roof."', '"raw": " "'),
    "coco_ir": ("test_img_keys_1k.tsv", "391895", "7"),
    "vqa-oscar": ("train2014_qla_mrcnn.json", '"an": [4]', '"an": [6]'),
    "vqa-official": ("v2_OpenEnded_mscoco_train2014_questions.json", "262146000", "5"),
    "gqa-oscar_balanced": ("gqa_bal_qla_train.json", "[3, 0]", "[3, 4]"),
    "gqa-official_all": ("train_all_questions/train_all_questions_10.json", "三？", ""),
    "nlvr2": ("nlvr2_train.json", '"label": 1', '"label": 2'),
    "vg_qa": ("question_answers.json", '"Daytime. "', '""'),
    "pretraining_corpus": ("coco_flickr30k_gqa.tsv", "coco_9\tcoco_9", "coco_10\tcoco_10"),
}


def test_every_builder_has_a_bad_row():
    assert {name.partition("-")[0] for name in ONE_BAD_ROW} == {name.partition("-")[0] for name in BUILDERS}


@pytest.mark.parametrize("name", ONE_BAD_ROW)
def test_a_bad_row_stops_the_builder_or_is_counted(data, name, capsys):
    folder = data(name)
    file, old, new = ONE_BAD_ROW[name]
    edit(folder / file, old, new)
    with pytest.raises(ValueError, match=Path(file).name) as raised:
        build(name, folder)
    capsys.readouterr()
    build(name, folder, skip_bad=True)
    assert f"Skipped: 1 bad rows, the first: {raised.value}" in capsys.readouterr().out


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
