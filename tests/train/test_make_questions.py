"""Questions made from captions: what the rules ask and answer, and what they leave alone."""

import json
import random
from collections import Counter

import make_questions
import pytest
from question_rules import CHOICES, MANY, Count, agreed_number, choose, count_dogs, count_people, questions_about

from datasets_scripts.vqa import Vqa

DOG = ["一只黑狗在草地上奔跑。", "草地上奔跑的狗。", "一只狗在草坪上跑。", "奔跑的小黑狗。", "一只狗。"]
COUPLE = [
    "一男一女在海边骑自行车。",
    "一对情侣在沙滩上骑自行车。",
    "两个人骑着自行车。",
    "骑车的情侣。",
    "海边的两人。",
]


def answers_of(captions):
    return {question.name: question.answer for question in questions_about(captions, random.Random(0))}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("一个男人和两个小孩在玩耍。", Count(3, 3)),
        ("一个戴着红帽子的小女孩。", Count(1, 1)),
        ("一个拿着两个球的男人。", Count(2, 2)),  # the last number before a noun counts: a limit of the rule
        ("两个人骑着一辆自行车。", Count(2, 2)),
        ("一个小孩抱着另一个小孩。", Count(2, 2)),
        ("一男一女在跳舞。", Count(2, 2)),
        ("两个男的和一个女的。", Count(3, 3)),
        ("一对情侣。", Count(2, 2)),
        ("草地上的情侣。", Count(2, 2)),
        ("男人抱着小孩。", Count(None, 2)),
        ("一个男人抱着小孩。", Count(None, 2)),
        ("一群人在打球。", Count(MANY, 3)),
        ("很多穿红衣服的男人。", Count(MANY, 3)),
        ("人们在海边。", Count(MANY, 3)),
        ("一只狗在草地上。", Count(None, 0)),
        ("一个机器人和一个雪人。", Count(None, 0)),
    ],
)
def test_people_in_a_caption(caption, expected):
    assert count_people(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("两只狗在雪地里打架。", Count(2, 2)),
        ("一只黑狗和一条白狗。", Count(2, 2)),
        ("黑狗追白狗。", Count(None, 2)),
        ("一群小狗。", Count(MANY, 3)),
        ("一个人在吃热狗。", Count(None, 0)),
    ],
)
def test_dogs_in_a_caption(caption, expected):
    assert count_dogs(caption) == expected


def test_a_number_needs_two_and_no_contradiction():
    one, two, open_one, open_two, many = Count(1, 1), Count(2, 2), Count(None, 1), Count(None, 2), Count(MANY, 3)
    assert agreed_number([one, one, open_one]) == 1
    assert agreed_number([one, open_one, open_one]) is None  # only one says it
    assert agreed_number([one, one, two]) is None
    assert agreed_number([one, one, open_two]) is None  # 男人抱着小孩 needs two
    assert agreed_number([two, two, many]) is None
    assert agreed_number([many, many, open_two]) == MANY


def test_all_that_five_captions_of_a_dog_answer():
    answers = answers_of(DOG)
    expected = {"几只狗": "一只", "几个人": "没有", "动物": "狗", "颜色 狗": "黑色", "狗在做": "奔跑", "地点": "草地"}
    assert {name: answers[name] for name in expected} == expected
    assert (answers["有狗"], answers["有人"], answers["有自行车"], answers["有雪"]) == ("有", "没有", "没有", "没有")
    # Dogs that run may well play with a ball that nobody mentions; a photo without people has no sport of theirs.
    assert not {"有球", "运动", "人在做", "手里"} & answers.keys()


def test_all_that_five_captions_of_a_couple_answer():
    answers = answers_of(COUPLE)
    expected = {"几个人": "两个", "运动": "骑自行车", "骑": "自行车", "地点": "海边", "有自行车": "有", "有狗": "没有"}
    assert {name: answers[name] for name in expected} == expected
    assert "几只狗" in answers
    assert "有水" not in answers or answers["有水"] == "有"  # the sea is named
    assert answers["有草地"] == "没有"  # two name a beach, none anything that grows
    assert not {"有摩托车", "有汽车"} & answers.keys()  # a bicycle leaves wheels in doubt


def test_contradictions_and_single_mentions_ask_nothing():
    assert "颜色 狗" not in answers_of(["一只黑狗。", "一只白狗。", "狗。"])
    assert "颜色 狗" not in answers_of(["一只黑狗和一只白狗。", "两只狗。"])
    assert "地点" not in answers_of(["雪地里的狗。", "草地上的狗。"])
    assert "有马" not in answers_of(["一匹马。", "动物在草地上。"])  # one mention is neither yes nor no
    assert "有马" not in answers_of(["两只动物。", "草地。"])  # 动物 may be a horse


def test_held_things_belong_to_their_verb():
    counts = {"people": [Count(1, 1)], "dogs": [Count(None, 0)]}
    assert choose(CHOICES["手里"], ["一个男人手里拿着一把伞。"], counts) == "伞"
    assert choose(CHOICES["手里"], ["伞下的男人拿着东西。"], counts) is None
    assert choose(CHOICES["嘴里"], ["狗叼着一根木棍。", "一只狗咬着树枝。"], counts) == "木棍"
    assert choose(CHOICES["头上"], ["戴安全帽的男人。"], counts) == "头盔"


def test_wrong_sports_are_other_sports():
    asked = Counter()
    for number in range(200):
        for question in questions_about(COUPLE, random.Random(number)):
            if question.name.startswith("在"):
                asked[question.name, question.answer] += 1
    assert 70 < asked["在骑自行车", "是"] < 130
    assert all(answer == ("是" if name == "在骑自行车" else "不是") for name, answer in asked)
    assert len(asked) == 13


def test_balance_leaves_the_usual_answer_half():
    rows = [{"name": "有狗", "answer": "没有" if number < 80 else "有", "row": number} for number in range(100)]
    rows += [{"name": "动物", "answer": answer} for answer in ["狗"] * 10 + ["马"] * 3 + ["牛"] * 2]
    kept = make_questions.balance(rows, seed=0)
    counts = Counter((row["name"], row["answer"]) for row in kept)
    assert counts == {("有狗", "没有"): 20, ("有狗", "有"): 20, ("动物", "狗"): 5, ("动物", "马"): 3, ("动物", "牛"): 2}
    assert kept == make_questions.balance(rows, seed=0)
    assert kept != make_questions.balance(rows, seed=1)


@pytest.fixture
def captions_dir(tmp_path):
    """Flickr8k-CN's layout: 40 photos to train on, dogs and couples by turns, and ten for each other split."""
    folder = tmp_path / "flickr8k-cn"
    (folder / "images").mkdir(parents=True)
    ids = [f"photo{number}" for number in range(60)]
    lines = []
    for number, image_id in enumerate(ids):
        (folder / "images" / f"{image_id}.jpg").touch()
        captions = COUPLE if number % 2 else DOG
        lines += [f"{image_id}.jpg#zhc#{i} {caption}" for i, caption in enumerate(captions)]
    (folder / "flickr8kzhc.caption.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, members in {"train": ids[:40], "val": ids[40:50], "test": ids[50:]}.items():
        (folder / f"flickr8k{split}.txt").write_text("\n".join(members) + "\n", encoding="utf-8")
    return folder


def test_files_that_the_vqa_builder_reads(captions_dir, tmp_path, capsys):
    for output in ("questions", "again"):
        make_questions.main(["--data_dir", str(captions_dir), "--output", str(tmp_path / output)])
    for path in (tmp_path / "questions").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    rows = json.loads((tmp_path / "questions" / "train2014_qla.json").read_text(encoding="utf-8"))
    assert all(row["generated"] and row["q_id"].startswith("generated/") for row in rows)
    builder = Vqa(config_name="oscar", data_dir=str(tmp_path / "questions"), cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    splits = builder.as_dataset()
    assert {split: len(set(rows["image_id"])) for split, rows in splits.items()} == {
        "train": 40,
        "validation": 10,
        "test": 10,
    }
    names = splits["train"].features["labels"].feature.names
    for split in splits.values():  # test keeps its answers: it is for scoring, not for a server
        assert all(len(row["labels"]) == 1 for row in split)
        dogs = [row for row in split if row["question_id"].endswith("/有狗")]
        assert {names[row["labels"][0]] for row in dogs} == {"有", "没有"}
        assert all(row["answer_type"] == "yes/no" for row in dogs)
    with pytest.raises(SystemExit):
        make_questions.main(["--data_dir", str(captions_dir), "--output", str(tmp_path / "questions")])
    assert "exists; give another --output" in capsys.readouterr().err
