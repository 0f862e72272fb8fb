"""What the mini's heads learn from: rows of several data sets, photos hard to tell apart, and a grown start."""

import json
import random
from collections import Counter

import grow_head
import make_questions
import mix_captions
import mix_matches
import numpy as np
import pytest
import retrieval as retrieval_script
import torch
import vqa as vqa_script
from common.collators import PairRows
from common.matching_rows import ImageRows, InBatchRows, LikePhotos
from conftest import CHARACTERS, SPECIAL_TOKENS, tiny_captioner, tiny_config
from datasets import Dataset
from PIL import Image
from transformers import BertTokenizer

from modeling_mengzi_oscar import (
    MengziOscarForImageTextRetrieval,
    MengziOscarForVisualQuestionAnswering,
    MengziOscarProcessor,
    RegionFeatureStore,
)
from modeling_mengzi_oscar.hub import save_checkpoint

SAID = {"dogs": ["黑狗在草地上跑", "草地上的狗"], "people": ["男人骑马", "骑马的男人在街上"]}


@pytest.fixture
def folder(tmp_path):
    """Two data sets with the same image ids, and stores of them, of 4 and of 6 regions a photo, plain and flipped."""
    generator = np.random.default_rng(0)
    for name, number in (("dogs", 4), ("people", 6)):
        for kind, photos in (("", 5), ("-flipped", 4)):  # photo4 is not trained on
            with RegionFeatureStore.writer(tmp_path / f"{name}{kind}", dtype="float32") as writer:
                for photo in range(photos):
                    regions = generator.standard_normal((number, 22), dtype=np.float32)
                    writer.add(f"photo{photo}", {"region_features": regions})
    rows = [
        {"image_id": f"photo{photo}", "captions": captions, "dataset": name}
        for name, captions in SAID.items()
        for photo in range(5)
    ]
    Dataset.from_list([row for row in rows if row["image_id"] != "photo4"]).to_parquet(
        tmp_path / "matches" / "train.parquet"
    )
    Dataset.from_list(rows[4::5]).to_parquet(tmp_path / "matches" / "validation.parquet")
    (tmp_path / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS + CHARACTERS) + "\n", encoding="utf-8")
    return tmp_path


def features(folder, *kinds):
    return [f"{name}={folder / name}{kind}" for name in SAID for kind in kinds]


def opened(folder, *kinds):
    return {name: [RegionFeatureStore.open(folder / f"{name}{kind}") for kind in kinds] for name in SAID}


def test_rows_have_the_regions_of_their_data_set(folder):
    data = Dataset.from_parquet(str(folder / "matches" / "train.parquet"))
    stores = opened(folder, "", "-flipped")
    for rows in (ImageRows(data, stores), PairRows(data.rename_column("captions", "question"), stores)):
        for index, (name, photo) in ((0, ("dogs", 0)), (3, ("dogs", 3)), (5, ("people", 1))):
            expected = stores[name][0][f"photo{photo}"]["region_features"]
            assert np.array_equal(rows[index]["region_features"], expected)
    rows = PairRows(data.rename_column("captions", "question"), stores, training=True)
    either = [store["photo1"]["region_features"] for store in stores["people"]]
    drawn = set()
    for epoch in range(10):
        rows.set_epoch(epoch)
        found = rows[5]["region_features"]
        drawn.add(next(number for number, regions in enumerate(either) if np.array_equal(found, regions)))
    assert drawn == {0, 1}


def test_a_matcher_learns_from_several_data_sets(folder, capsys):
    model = MengziOscarForImageTextRetrieval(tiny_config(regions_read_text=False))
    processor = MengziOscarProcessor(BertTokenizer.from_pretrained(folder), max_tags=0)
    save_checkpoint(folder / "match", model, processor, task="retrieval")
    settings = {"model_name_or_path": folder / "match", "dataset": folder / "matches", "output_dir": folder / "run"}
    settings |= {"max_steps": 3, "per_device_train_batch_size": 2, "use_cpu": "true", "report_to": "none"}
    settings |= {"objective": "contrast", "like_photos": "true", "num_captions_per_img_train": 0}
    command = ["--do_train", *(f"--{name}={value}" for name, value in settings.items())]
    retrieval_script.main([*command, "--features", *features(folder, "", "-flipped")])
    assert (folder / "run" / "best" / "model.safetensors").exists()
    with pytest.raises(SystemExit):
        retrieval_script.main([*command, "--features", f"dogs={folder / 'dogs'}"])
    assert "--features names stores for dogs, and none for the images of people" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        retrieval_script.main([*command, "--features", *features(folder, ""), "--per_device_train_batch_size=5"])
    assert "--like_photos: no data set fills a batch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        retrieval_script.main([*command, "--features", *features(folder, ""), "--objective=pairs"])
    assert "--like_photos goes with --objective contrast" in capsys.readouterr().err


def test_batches_are_of_one_data_set_and_of_photos_that_are_alike():
    kinds = ["一只黑狗在水里游", "两匹马在草地上", "一个女孩吃面包", "街上的红色汽车"]
    rows = [
        {"image_id": str(number), "captions": [kinds[number % 4]], "dataset": "ab"[number % 3 == 0]}
        for number in range(100)
    ]
    rows = InBatchRows(Dataset.from_list(rows), {"a": [], "b": []})
    ordered = LikePhotos(rows, 8)
    orders = [ordered.draw_order(random.Random(seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len(orders[0]) == len(set(orders[0])) == len(ordered) == 64 + 32
    alike = 0
    for first in range(0, len(ordered), 8):
        batch = orders[0][first : first + 8]
        assert len({rows.stores.datasets[index] for index in batch}) == 1
        alike += Counter(index % 4 for index in batch).most_common(1)[0][1] >= 7
    assert alike >= 8  # of 12: the last ones of a chunk are what is left; at random none would be


# A grown start


def test_a_head_grows_by_the_captioners_characters(folder):
    processor = MengziOscarProcessor(BertTokenizer.from_pretrained(folder), max_regions=9)
    head = MengziOscarForVisualQuestionAnswering(tiny_config(num_labels=3))
    save_checkpoint(folder / "ask", head, processor, task="vqa", dtype=torch.float32)
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("铠\n鹦\n")
    grown = MengziOscarProcessor(BertTokenizer.from_pretrained(folder), max_regions=12)
    captioner = tiny_captioner(vocab_size=len(SPECIAL_TOKENS + CHARACTERS) + 2)
    save_checkpoint(folder / "captioner", captioner, grown, dtype=torch.float32)
    names = ["--head", "ask", "--captioner", "captioner", "--output", "start"]
    grow_head.main([name if name.startswith("--") else str(folder / name) for name in names])
    start = MengziOscarForVisualQuestionAnswering.from_pretrained(folder / "start")
    words, old = start.get_input_embeddings().weight, head.get_input_embeddings().weight
    assert torch.equal(words[: len(old)], old)
    assert torch.equal(words[len(old) :], captioner.get_input_embeddings().weight[len(old) :])
    assert torch.equal(start.classifier.weight, head.classifier.weight)
    found = MengziOscarProcessor.from_pretrained(folder / "start")
    assert (len(found.tokenizer), found.max_regions) == (len(words), 12)
    with pytest.raises(SystemExit):  # the other way round
        grow_head.main(["--head", str(folder / "start"), "--captioner", str(folder / "ask"), "--output", "x"])


# Their data


@pytest.fixture
def thing_rows(tmp_path):
    """Six red cats on white to train on, a photo to validate on; of two kinds."""
    rows, found = [], []
    for number in range(12):
        photo = Image.new("RGB", (100, 100), "white")
        photo.paste((220, 20, 20), (25, 25, 75, 75))
        (tmp_path / "photos" / "a").mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / "photos" / "a" / f"{number}.png")
        word = ["猫", "飞机"][number % 2]
        row = {"image": f"a/{number}.png", "split": "validation" if number > 9 else "train", "words": [word]}
        found.append({"image": f"images/a/{number}.png", "person": [0.0, 0.9, 0.3][number % 3]})
        rows.append(row | {"short": [f"一只{word}。"], "detailed": [f"一只红色的{word}。"]})
    (tmp_path / "things.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "teacher.jsonl").write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
    return tmp_path


def test_matches_of_three_data_sets(data, thing_rows):
    command = ["--flickr8k_cn", str(data("flickr8k_cn")), "--aic_icc", str(data("aic_icc"))]
    command += ["--things", str(thing_rows / "things.jsonl"), "--alike", "2", "--machine", "1", "--aic_held_out", "1"]
    mix_matches.main([*command, "--output", str(thing_rows / "matches")])
    train, validation = (
        Dataset.from_parquet(str(thing_rows / "matches" / f"{split}.parquet")) for split in ("train", "validation")
    )
    things = [row for row in train if row["dataset"] == "things"]
    assert [row["image_id"] for row in things] == ["a/0", "a/1", "a/2", "a/3"]  # two of each kind
    assert things[0]["captions"] == ["一只猫。", "一只红色的猫。"]
    counts = Counter(row["dataset"] for row in validation)
    assert counts["aic_icc"] == 1
    assert "things" not in counts
    ids = {(row["dataset"], row["image_id"]) for row in validation}
    assert not ids & {(row["dataset"], row["image_id"]) for row in train}


def test_captions_of_three_data_sets_in_two_styles(data, thing_rows):
    command = ["--flickr8k_cn", str(data("flickr8k_cn")), "--aic_icc", str(data("aic_icc")), "--aic_held_out", "1"]
    command += ["--things", str(thing_rows / "things.jsonl")]
    found = {}
    for rounds in (1, 2):
        folder = thing_rows / f"captions{rounds}"
        mix_captions.main([*command, "--flickr8k_rounds", str(rounds), "--output", str(folder)])
        found[rounds] = [Dataset.from_parquet(str(folder / f"{split}.parquet")) for split in ("train", "validation")]
    train, validation = found[1]
    counts, twice = (Counter(zip(rows["dataset"], rows["style"], strict=True)) for rows in (train, found[2][0]))
    short = ("flickr8k_cn", "short")
    assert counts[short] > 0
    assert twice == counts | {short: 2 * counts[short]}
    assert counts[("things", "short")] == counts[("things", "detailed")] == 10  # the validation photos are not there
    assert {row["dataset"] for row in validation} == {"flickr8k_cn", "aic_icc"}
    ids = {(row["dataset"], row["image_id"]) for row in validation}
    assert not ids & {(row["dataset"], row["image_id"]) for row in train}
    assert all(text.endswith("。") for row in train for text in row["captions"])


def test_further_questions_leave_the_first_ones_as_they_are(captions_dir, data, thing_rows, monkeypatch):
    monkeypatch.setattr(make_questions, "FEWEST_ANSWERS", 1)
    monkeypatch.setattr(make_questions, "FEWEST_ROWS", 1)
    command = ["--data_dir", str(captions_dir), "--output"]
    make_questions.main([*command, str(thing_rows / "plain")])
    sources = ["--machine_colours", "--aic_icc", str(data("aic_icc")), "--things", str(thing_rows / "things.jsonl")]
    sources += ["--photos", str(thing_rows / "photos"), "--teacher", str(thing_rows / "teacher.jsonl")]
    make_questions.main([*command, str(thing_rows / "more"), *sources])

    def rows_of(name, file):
        folder = thing_rows / name
        answers = {number: word for word, number in json.loads((folder / "ans2label.json").read_text("utf-8")).items()}
        rows = json.loads((folder / file).read_text("utf-8"))
        return [(row["q"], answers[row["an"][0]], row["q_id"], row["dataset"]) for row in rows]

    assert rows_of("plain", "test2015_qla.json") == rows_of("more", "test2015_qla.json")
    plain, more = (rows_of(name, "train2014_qla.json") for name in ("plain", "more"))
    assert more[: len(plain)] == plain
    further = more[len(plain) :]
    translated = [row for row in further if row[3] == "flickr8k_cn" and row not in plain]
    assert {row[2].split("/")[-1] for row in translated} == {"颜色-帽子"}  # what no person had said
    assert {row[1] for row in translated} == {"红色"}
    things = [row for row in further if row[3] == "things"]
    assert {(row[2].split("/")[-1], row[1]) for row in things} >= {
        ("什么东西", "猫"),
        ("什么东西", "飞机"),
        ("颜色-东西", "红色"),
    }
    for question, answer, name, _ in things:
        number = int(name.split("/")[2])
        if "人" in question:  # only where the teacher is sure, and how many only of none
            assert answer == ("没有" if number % 3 == 0 else "有")
            assert number % 3 < 2
            continue
        said = "猫" if number % 2 == 0 else "飞机"
        if answer in ("有", "是", "没有", "不是"):
            assert (said in question) == (answer in ("有", "是"))
    colours = Counter(row[2] for row in more if "/颜色" in row[2])
    assert set(colours.values()) == {make_questions.COLOUR_ROUNDS}
    splits = vqa_script_splits(thing_rows / "more")
    assert set(splits["train"]["dataset"]) >= {"flickr8k_cn", "things"}


def vqa_script_splits(folder):
    options = vqa_script.VqaArguments(model_name_or_path="x", data_dir=str(folder), dataset_config="oscar")
    from common.arguments import load_splits

    return load_splits(options)


@pytest.fixture
def captions_dir(tmp_path):
    """Flickr8k-CN's layout: black dogs and white ones; a man, of whose red hat only machines speak."""
    folder = tmp_path / "flickr8k-cn"
    (folder / "images").mkdir(parents=True)
    ids = [f"photo{number}" for number in range(30)]
    for image_id in ids:
        (folder / "images" / f"{image_id}.jpg").touch()
    people = ["一只{}狗在{}上奔跑。", "{1}上奔跑的狗。", "一个男人和一只狗。", "奔跑的小{}狗。", "一只狗。"]
    lines = [
        f"{image_id}.jpg#zhc#{i} {caption.format(*(('黑', '草地'), ('白', '雪地'))[number % 2])}"
        for number, image_id in enumerate(ids)
        for i, caption in enumerate(people)
    ]
    (folder / "flickr8kzhc.caption.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    machine = ["一个戴着红色帽子的男人和一只狗。", "一个戴着蓝色和白色帽子的男人。"]  # the latter is left out
    lines = [f"{image_id}.jpg#zhb#{i} {caption}" for image_id in ids for i, caption in enumerate(machine)]
    (folder / "flickr8kzhb.caption.txt.v20160815").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, members in {"train": ids[:20], "val": ids[20:25], "test": ids[25:]}.items():
        (folder / f"flickr8k{split}.txt").write_text("\n".join(members) + "\n", encoding="utf-8")
    return folder
