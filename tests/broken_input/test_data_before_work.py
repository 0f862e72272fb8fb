"""Data are judged before the work, in all six trainings: one table, then one line that names everything, or flags."""

import json

import caption
import datasets
import gqa
import nlvr2
import numpy as np
import pretrain
import pytest
import retrieval
import vqa
from builders import build, copy_files
from common.usable_rows import image_ids_of
from PIL import Image

from modeling_mengzi_oscar import RegionFeatureStore


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write_store(folder, image_ids):
    draws = np.random.default_rng(0)
    with RegionFeatureStore.writer(folder, labels=["", "狗", "猫"]) as writer:
        for image_id in image_ids:
            features = draws.standard_normal((3, 262)).astype(np.float32)
            writer.add(image_id, {"region_features": features, "class_ids": np.array([1, 2, 0])})
    return folder


ROWS = {  # photo: split, sentences
    "a": ("train", ["一只猫", "猫在跑"]),
    "b": ("train", ["一只狗"]),
    "c": ("train", ["……", "一个人"]),  # only that sentence goes
    "d": ("train", ["……"]),  # and here the photo
    "e": ("train", ["两只狗"]),  # without features
    "f": ("validation", ["一匹马"]),  # 2000 x 2 pixels
    "g": ("validation", ["两个人"]),  # cut short
    "h": ("validation", ["草地上"]),
}


@pytest.fixture
def own_photos(tmp_path):
    """A folder as docs/own_photos.md has it, with one of everything that is wrong, and a store."""
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    lines = ["file_name,caption,split"]
    for name, (split, sentences) in ROWS.items():
        draws = np.random.default_rng(ord(name))
        size = (2, 2000, 3) if name == "f" else (40, 50, 3)
        path = folder / "images" / f"{name}.jpg"
        Image.fromarray(draws.integers(0, 255, size, dtype=np.uint8)).save(path)
        if name == "g":
            path.write_bytes(path.read_bytes()[:-700])
        lines += [f"{name}.jpg,{sentence},{split}" for sentence in sentences]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_store(tmp_path / "store", [name for name in ROWS if name != "e"])
    return folder


def flags(tmp_path, *switches, **settings):
    settings = {
        "output_dir": tmp_path / "run",
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": "true",
        "disable_tqdm": "true",
    } | settings
    return [*switches, *(f"--{name}={value}" for name, value in settings.items())]


def refused(script, arguments, capsys) -> str:
    """The one line that a start ends with; nothing was trained."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as refusal:
        script.main(arguments)
    assert refusal.value.code == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    return line


def test_own_photos_with_features(own_photos, tiny_checkpoint, tmp_path, capsys):
    """The documented command: everything is named at once; with both flags it is left out, and there is a best/."""
    settings = {"model_name_or_path": tiny_checkpoint, "dataset": "image_captions", "data_dir": own_photos}
    settings |= {"features": tmp_path / "store", "eval_strategy": "epoch", "save_strategy": "epoch"}
    settings |= {"num_beams": 1, "max_gen_length": 6}
    line = refused(caption, flags(tmp_path, "--do_train", **settings), capsys)
    for part in ("train row 3 (c ……), train row 4 (d ……)", f"(e in {tmp_path}/store)", "--skip_bad --skip_missing"):
        assert part in line
    assert "--skip_missing" not in refused(caption, flags(tmp_path, "--do_train", "--skip_missing", **settings), capsys)
    assert not list(tmp_path.glob("run/checkpoint-*"))

    caption.main(flags(tmp_path, "--do_train", "--skip_bad", "--skip_missing", **settings))
    told = capsys.readouterr().err
    assert "usable                               3             3" in told
    assert "left out: without features: train row 5 (e in" in told
    assert "left out: g of samples.png (PhotoError" in told  # what is only looked at
    listed = (tmp_path / "run" / "unusable_rows.tsv").read_text(encoding="utf-8").splitlines()
    assert [row.split("\t")[:2] for row in listed[1:]] == [["train", "5"], ["train", "3"], ["train", "4"]]
    assert (tmp_path / "run" / "checkpoint-1" / "no_weight_average").is_file()
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    with Image.open(tmp_path / "run" / "samples.png") as image:
        assert image.width > 100


@pytest.mark.parametrize("script", [caption, retrieval])
def test_a_table_without_rows(script, own_photos, tiny_checkpoint, tmp_path, capsys):
    (own_photos / "captions.csv").write_text("file_name,caption\n", encoding="utf-8")
    settings = {"model_name_or_path": tiny_checkpoint, "dataset": "image_captions", "data_dir": own_photos}
    line = refused(script, flags(tmp_path, "--do_train", **settings, features=tmp_path / "store"), capsys)
    assert f"{own_photos}/captions.csv has no row of a photo and a sentence" in line
    text = "file_name,caption\na.jpg,窗台上的猫\n".encode("gb18030")
    (own_photos / "captions.csv").write_bytes(text)
    line = refused(script, flags(tmp_path, "--do_train", **settings, features=tmp_path / "store"), capsys)
    assert "row 2: broken UTF-8" in line
    assert line.endswith("'CSV UTF-8'; --skip_bad leaves bad rows out")
    settings |= {"skip_bad": True}
    line = refused(script, flags(tmp_path, "--do_train", **settings, features=tmp_path / "store"), capsys)
    assert "no row of a photo and a sentence; the first bad one: " in line


def test_own_photos_from_pixels(own_photos, tiny_checkpoint, tmp_path, capsys):
    settings = {"model_name_or_path": tiny_checkpoint, "dataset": "image_captions", "data_dir": own_photos}
    settings |= {"num_beams": 1, "max_gen_length": 6}
    line = refused(caption, flags(tmp_path, "--do_train", **settings), capsys)
    assert "unreadable photos: validation row 2" in line
    assert "g.jpg: damaged" in line
    assert "--skip_missing" not in line
    caption.main(flags(tmp_path, "--do_train", "--skip_bad", **settings))
    assert "usable                               4             2" in capsys.readouterr().err
    assert (tmp_path / "run" / "best").is_dir()


def test_captions_of_a_split_without_references(tiny_checkpoint, tmp_path, capsys):
    """Are written; status 0; no scores, which is said. Of a split that is not there one hears before the model."""
    write_store(tmp_path / "store", "ab")
    rows = {"some": ["一只猫", "……"], "none": ["……", ""]}
    for split, sentences in rows.items():
        table = {"image_id": ["a", "b"], "captions": [[text] for text in sentences]}
        file = tmp_path / "rows" / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(table).to_parquet(file)
    (tmp_path / "bare" / "data").mkdir(parents=True)
    datasets.Dataset.from_dict({"image_id": ["a"]}).to_parquet(
        tmp_path / "bare" / "data" / "test-00000-of-00001.parquet"
    )
    settings = {"model_name_or_path": tiny_checkpoint, "features": tmp_path / "store", "num_beams": 1}
    written, scores = tmp_path / "run" / "captions.jsonl", tmp_path / "run" / "scores.json"
    cases = [("rows", "some", 2, "1 of 2 photos have no reference"), ("rows", "none", 2, "no scores")]
    for dataset, split, count, said in [*cases, ("bare", "test", 1, "no scores")]:
        arguments = flags(tmp_path, "--do_predict", dataset=tmp_path / dataset, test_split=split, **settings)
        caption.main(arguments)
        assert said in capsys.readouterr().err
        assert written.read_text(encoding="utf-8").count("\n") == count
        assert scores.exists() == (split == "some")
    settings["model_name_or_path"] = tmp_path / "not there"
    arguments = flags(tmp_path, "--do_predict", dataset=tmp_path / "rows", test_split="tset", **settings)
    assert "--dataset has no split 'tset'; it has" in refused(caption, arguments, capsys)


def parquet(folder, **splits):
    for split, table in splits.items():
        datasets.Dataset.from_dict(table).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("objective", ["pairs", "contrast"])
def test_retrieval_with_one_validation_image(tiny_checkpoint, tmp_path, capsys, objective):
    """The default of eight own photos: it trains, and says what such a validation is worth."""
    train = {"image_id": list("abcde"), "captions": [["一只猫"], ["一只狗"], ["两个人"], [], ["一匹马"]]}
    rows = parquet(tmp_path / "rows", train=train, validation={"image_id": ["f"], "captions": [["草地", "马"]]})
    settings = {"model_name_or_path": tiny_checkpoint, "dataset": rows, "objective": objective}
    settings |= {"features": write_store(tmp_path / "store", "abcdf"), "max_steps": 3}  # a batch of one image, too
    line = refused(retrieval, flags(tmp_path, "--do_train", **settings), capsys)
    assert "without features: train row 5 (e in" in line
    retrieval.main(flags(tmp_path, "--do_train", "--skip_missing", **settings, save_steps=3))
    told = capsys.readouterr().err
    assert "without a sentence: train row 4 (d)" in told  # nobody described it: it goes without a flag
    assert "one validation image: its recall is always 1" in told
    state = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert np.isfinite(losses).all()
    assert (tmp_path / "run" / "best").is_dir()
    one = parquet(tmp_path / "one", train={"image_id": ["a"], "captions": [["猫"]]}, validation=train)
    arguments = flags(tmp_path, "--do_train", "--skip_missing", **settings | {"dataset": one})
    assert "train has 1 usable rows, 2 are needed: a wrong pair" in refused(retrieval, arguments, capsys)


@pytest.mark.parametrize(
    ("script", "fixture", "file", "settings"),
    [
        (vqa, "vqa-oscar", "train2014_qla_mrcnn.json", {"dataset_config": "oscar"}),
        (gqa, "gqa-oscar_balanced", "gqa_bal_qla_train.json", {"dataset_config": "oscar_balanced"}),
        (nlvr2, "nlvr2", "nlvr2_train.json", {}),
    ],
)
def test_questions_and_sentences(script, fixture, file, settings, tiny_checkpoint, tmp_path, capsys):
    """Without features: named, then left out. A split of which nothing is left ends the start, too."""
    folder = copy_files(fixture, tmp_path)
    ids = [image_id for rows in build(fixture, folder).values() for row in image_ids_of(rows) for image_id in row]
    rows = json.loads((folder / file).read_text(encoding="utf-8"))
    lost = {"left": "lost", "right": ids[0]} if script is nlvr2 else "lost"
    (folder / file).write_text(json.dumps([*rows, rows[0] | {"img_id": lost}]), encoding="utf-8")
    store = write_store(tmp_path / "store", sorted(set(ids)))
    common = {"model_name_or_path": tiny_checkpoint, "data_dir": folder, **settings}
    line = refused(script, flags(tmp_path, "--do_train", features=store, **common), capsys)
    assert f"without features: train row 3 (lost in {store})" in line
    script.main(flags(tmp_path, "--do_train", "--skip_missing", features=store, **common))
    assert (tmp_path / "run" / "best").is_dir()
    nothing = write_store(tmp_path / "nothing", ["x"])
    line = refused(script, flags(tmp_path, "--do_train", "--skip_missing", features=nothing, **common), capsys)
    assert "split train has 0 usable rows" in line


def test_pretraining(tiny_checkpoint, tmp_path, capsys):
    captions = {"image_id": list("abcd"), "captions": [["一只猫"], ["一只狗"], [], ["马"]]}
    rows = parquet(tmp_path / "rows", train=captions)
    store = write_store(tmp_path / "store", "abc")
    settings = {"model_name_or_path": tiny_checkpoint, "dataset": rows, "features": store, "validation_images": 1}
    line = refused(pretrain, flags(tmp_path, "--do_train", **settings), capsys)
    assert "without features: train row 4 (d in" in line
    line = refused(pretrain, flags(tmp_path, "--do_train", "--skip_missing", **settings), capsys)
    assert "2 usable images are too few" in line
    settings["features"] = write_store(tmp_path / "whole", "abcd")
    pretrain.main(flags(tmp_path, "--do_train", **settings))
    assert "without a sentence: train row 3 (c)" in capsys.readouterr().err
    assert (tmp_path / "run" / "best").is_dir()
