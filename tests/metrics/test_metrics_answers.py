"""VQA and GQA scores: the official rules by hand, their oddities, the Chinese normalisation, bad input."""

import itertools
import json

import pytest
from conftest import REPOSITORY

from metrics.gqa_accuracy.answers import gqa_scores
from metrics.vqa_accuracy.answers import answer_score, normalize_chinese, normalize_english, vqa_scores

METRICS = REPOSITORY / "metrics"


@pytest.mark.parametrize(("same", "score"), list(enumerate([0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1])))
def test_ten_answers(same, score):
    """The scores that VQA v2's training targets are made of."""
    answers = ["red"] * same + [f"other {number}" for number in range(10 - same)]
    assert answer_score("red", answers) == pytest.approx(score)
    nines = list(itertools.combinations(answers, 9))
    assert sum(min(1, nine.count("red") / 3) for nine in nines) / len(nines) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("The two dogs.", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),  # two apostrophes forgotten are one too many
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("girl's hat", "girl's hat"),
        ("red/blue", "red blue"),
        ("red, blue", "red blue"),
        ("2:50 p.m.", "2:50 pm"),
        ("2.5", "2.5"),
        ("100,978", "100978"),
        (
            "black-and-white, 1,000",
            "blackandwhite 1000",
        ),  # the comma in the number makes the hyphens go without a space
        ("." * 40, "." * 8),  # 32 periods at most
    ],
)
def test_english_normalization(answer, normalized):
    assert normalize_english(answer) == normalized


def test_nothing_is_normalized_where_all_agree():
    assert answer_score("Yes", ["yes"] * 10) == 0
    assert answer_score("Yes", ["yes"] * 9 + ["no"]) == 1
    assert answer_score(" yes\n", ["yes"] * 10) == 1


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("两个。", "2"),
        ("２", "2"),
        ("三只", "3"),
        ("二十三", "23"),
        ("一百零五", "105"),
        ("一万二千", "12000"),
        ("十万", "100000"),
        ("二〇一七", "2017"),
        ("10,000", "10000"),
        ("三明治", "三明治"),
        ("十字路口", "十字路口"),
        ("红色的", "红色"),
        ("的", "的"),
        (" T恤 ！", "t恤"),
        ("３．５米", "3.5米"),
        ("下午2:50。", "下午2:50"),
        ("“左边”", "左边"),
        ("。", ""),
    ],
)
def test_chinese_normalization(answer, normalized):
    assert normalize_chinese(answer) == normalized


def test_vqa_scores():
    references = [["两个"] * 4 + ["2"] * 3 + ["三个"] * 3, ["是"] * 10, ["红"] * 9 + ["红色"]]
    result = vqa_scores(
        ["2个。", "是的", ""],
        references,
        normalization="zh",
        answer_types=["number", "yes/no", "other"],
        question_types=["几", "是否", "什么"],
    )
    assert result == {
        "accuracy": pytest.approx(2 / 3),
        "by_answer_type": {"number": 1.0, "other": 0.0, "yes/no": 1.0},
        "by_question_type": {"几": 1.0, "是否": 1.0, "什么": 0.0},
        "normalization": "zh",
        "questions": 3,
        "answers_min": 10,
        "answers_max": 10,
    }
    assert vqa_scores(["2个。"], references[:1], normalization="none")["accuracy"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": ["a"], "references": []}, "1 predictions but 0 references"),
        ({"predictions": [], "references": []}, "nothing to score"),
        (
            {"predictions": ["a", "b"], "references": [["a"] * 10, ["a"] * 3]},
            r"references\[1\] must be a list of at least 4",
        ),
        ({"predictions": ["a"], "references": ["aaaaaaaaaa"]}, r"references\[0\] must be a list"),
        ({"predictions": [1], "references": [["a"] * 10]}, "row 0: an answer is a int"),
        ({"predictions": ["a"], "references": [["a"] * 9 + [None]]}, "row 0: an answer is a NoneType"),
        ({"predictions": ["a"], "references": [["a"] * 10], "answer_types": []}, "0 answer_types"),
        ({"predictions": ["a"], "references": [["a"] * 10], "normalization": "cn"}, "normalization='cn'"),
    ],
)
def test_vqa_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        vqa_scores(**arguments)


def question(answer, structural="query", entailed=(), balanced=True, detailed="color"):
    types = {"structural": structural, "semantic": "attr", "detailed": detailed}
    return {"answer": answer, "isBalanced": balanced, "types": types, "entailed": list(entailed)}


QUESTIONS = {
    "1": question("red", entailed=["1", "2", "3"]),  # a question entails itself, which does not count
    "2": question("yes", "verify", balanced=False),
    "3": question("no", "verify", balanced=False),
    "4": question("left", "choose", entailed=["2"]),
    "5": question("color", "compare", detailed="twoCommon"),
}
PREDICTIONS = {"1": "red", "2": "yes", "3": "yes", "4": "right", "5": "shape"}
CHOICES = {
    "1": {"valid": ["red", "blue"], "plausible": ["red"]},
    "4": {"valid": ["left", "right"], "plausible": ["left"]},
    "5": {"valid": [], "plausible": []},
}


def gqa(predictions=PREDICTIONS, **arguments):
    golds = [QUESTIONS[key]["answer"] if key in QUESTIONS else "red" for key in predictions]
    return gqa_scores(list(predictions.values()), golds, list(predictions), **arguments)


def test_gqa_scores_by_hand():
    assert gqa() == {"accuracy": 2 / 5, "questions": 5}
    assert gqa(questions=QUESTIONS, choices=CHOICES, consistency=True) == {
        "accuracy": pytest.approx(1 / 3),  # balanced: 1 right, 4 and 5 wrong
        "open": 1.0,
        "binary": 0.0,
        "consistency": 0.5,  # of what 1 entails, 2 is right and 3 is wrong; 4 is wrong and does not count
        "validity": 1.0,  # shape is a common attribute though no choice of question 5
        "plausibility": pytest.approx(2 / 3),
        "questions": 3,
    }


def test_gqa_files(tmp_path):
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS))
    (tmp_path / "choices.json").write_text(json.dumps(CHOICES))
    paths = {"questions": tmp_path / "questions.json", "choices": str(tmp_path / "choices.json")}
    assert gqa(**paths) == gqa(questions=QUESTIONS, choices=CHOICES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gqa_scores(["a"], []), "1 predictions but 0 references"),
        (lambda: gqa_scores([], []), "nothing to score"),
        (lambda: gqa_scores([None], ["a"]), r"predictions\[0\] is a NoneType"),
        (lambda: gqa_scores(["a"], [""]), r"references\[0\] must be a gold answer"),
        (lambda: gqa_scores(["a"], ["a"], ["1", "2"]), "1 predictions but 2 question_ids"),
        (lambda: gqa_scores(["a", "a"], ["a", "a"], ["1", "1"]), r"question_ids\[1\] = '1' is there twice"),
        (lambda: gqa_scores(["a"], ["a"], choices=CHOICES), "pass questions="),
        (lambda: gqa_scores(["a"], ["a"], questions=QUESTIONS), "needs question_ids="),
        (lambda: gqa({"9": "red"}, questions=QUESTIONS), r"question_ids\[0\] = '9' is not in the question file"),
        (lambda: gqa_scores(["红"], ["红"], ["1"], QUESTIONS), r"references\[0\] is '红', the file says 'red'"),
        (lambda: gqa({"1": "red"}, questions=QUESTIONS), "no prediction for 2 balanced questions, the first is '4'"),
        (
            lambda: gqa({"1": "red", "4": "left", "5": "a"}, questions=QUESTIONS, consistency=True),
            "consistency needs the entailed question '2'",
        ),
    ],
)
def test_gqa_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_empty_answer_is_wrong():
    assert gqa_scores(["", "a"], ["a", "a"])["accuracy"] == 0.5
    assert vqa_scores([""], [["a"] * 10])["accuracy"] == 0


def test_evaluate_modules(tmp_path):
    evaluate = pytest.importorskip("evaluate")
    vqa = evaluate.load(str(METRICS / "vqa_accuracy"), cache_dir=str(tmp_path))
    assert vqa.compute(predictions=["两个"], references=[["2"] * 10], normalization="zh")["accuracy"] == 1
    metric = evaluate.load(str(METRICS / "gqa_accuracy"), cache_dir=str(tmp_path))
    golds = [QUESTIONS[key]["answer"] for key in PREDICTIONS]
    metric.add_batch(predictions=list(PREDICTIONS.values()), references=golds)
    assert metric.compute(
        question_ids=list(PREDICTIONS), questions=QUESTIONS, choices=CHOICES, consistency=True
    ) == gqa(questions=QUESTIONS, choices=CHOICES, consistency=True)
