"""Builders of questions: the original layouts in, rows out, errors with file and row."""

import pickle

import pytest
from builders import BUILDERS, FIXTURES, Dangerous, build, builder_of, names_of, wrong
from conftest import shared_path

from datasets_scripts.gqa import Gqa
from datasets_scripts.vqa import SCORES, Vqa, answer_vocabulary

# vqa


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
        (pickle.dumps(Dangerous()), "refused as a list of answers: it calls a function"),
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


# nlvr2


def test_nlvr2(data, capsys):
    dataset = build("nlvr2", data("nlvr2"))
    assert dataset["train"][1] == {
        "image_ids": ["train-10171-0-img0", "train-3-1-img1"],
        "sentence": "Two dogs lie on the grass.",
        "tags": [["dog", "dog", "grass"], []],
        "label": 1,
    }
    assert dataset["validation"].features["label"].names[dataset["validation"][0]["label"]] == "true"
    assert "nlvr2_train.json: 2 sentences on pairs of photos." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"label": 1', '"label": 2', "item 2: label 2 instead of 0 or 1"),
        ("Two dogs lie on the grass.", "", "item 2: empty sentence"),
        ('"right": "train-10171-0-img1"', '"r": 1', "item 1: 'right' is None instead of str or int"),
    ],
)
def test_nlvr2_with_an_error(data, old, new, message):
    wrong("nlvr2", data("nlvr2"), "nlvr2_train.json", old, new, message)


def test_nlvr2_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no nlvr2_train.json, nlvr2_dev.json or nlvr2_test1.json"):
        BUILDERS["nlvr2"][0](data_dir=str(tmp_path))
