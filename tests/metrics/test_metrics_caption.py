"""Caption scores: by hand, against pycocoevalcap and its jars, against plain slow versions, and in time."""

import contextlib
import io
import itertools
import json
import math
import random
import shutil
import sys
import time

import pytest
from conftest import REPOSITORY, shared_path

from metrics.caption_zh.meteor import _fewest_chunks
from metrics.caption_zh.scores import _longest_common_subsequence, caption_scores
from metrics.caption_zh.segmentation import aic_icc_segment, aic_icc_words, jieba_tokenizer, words_of

CAPTION_ZH = REPOSITORY / "metrics" / "caption_zh"

# Raw predictions and references in the evaluator's form, and what its own chain prints for them: jieba 0.42.1,
# PTBTokenizer and METEOR 1.5 (the jars in pycocoevalcap 1.2), coco-caption's scorers.
AIC_PREDICTIONS = [
    "一个穿着T恤的男人，在“海边”的沙滩上踢足球。",
    "两只狗在草地上追一只3D飞盘（红色）。",
    "球场上有一群男孩、女孩正在打NBA的比赛！",
]
AIC_REFERENCES = [
    ["一个 男人 在 海边 的 沙滩 上 踢足球", "沙滩 上 有 一个 穿着 T恤 的 男人 在 踢 足球", "海边 ， 一个 男孩 在 踢球"],
    ["两 只 狗 在 草地 上 追 飞盘", "绿色 的 草地 上 有 两 只 狗 在 玩 红色 的 飞盘"],
    ["一群 孩子 在 球场 上 打 比赛", "球场 上 一群 男孩 正在 打篮球", "球场 上 有 男孩 、 女孩 在 打 NBA 的 比赛 ！"],
]
AIC_SCORES = {
    "bleu_1": 0.8055555555108025,
    "bleu_2": 0.698724186041967,
    "bleu_3": 0.6107630819835007,
    "bleu_4": 0.5249576510377033,
    "rouge_l": 0.7341269841269842,
    "meteor_exact": 0.5331435865975307,
    "cider_d": 2.599474779361011,
}


def random_captions(photos, references, seed=0, words="一个男人女孩狗在草地上跑的红色球踢，。"):
    generator = random.Random(seed)

    def caption():
        return "".join(generator.choices(words, k=generator.randint(1, 16))) + "跑"

    return [caption() for _ in range(photos)], [[caption() for _ in range(references)] for _ in range(photos)]


def coco_caption_scores(hypotheses, reference_rows, meteor=False):
    """pycocoevalcap on captions that are already lists of words."""
    pytest.importorskip("pycocoevalcap.cider.cider")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    results = {row: [" ".join(words)] for row, words in enumerate(hypotheses)}
    truths = {row: [" ".join(words) for words in captions] for row, captions in enumerate(reference_rows)}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu = Bleu(4).compute_score(truths, results)[0]
    scores = {f"bleu_{n + 1}": bleu[n] for n in range(4)}
    scores["rouge_l"] = Rouge().compute_score(truths, results)[0]
    scores["cider_d"] = Cider().compute_score(truths, results)[0]
    if meteor:
        scores["meteor_exact"] = Meteor().compute_score(truths, results)[0]
    return scores


def assert_same_scores(scores, expected, tolerance=1e-6):
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=tolerance)


def test_bleu_and_rouge_by_hand():
    scores = caption_scores(["a b c d"], [["a b c e", "a x"]], segment="none")
    # 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, 0 of 1; the closest reference has 4 words: no brevity penalty
    assert scores["bleu_1"] == pytest.approx(3 / 4)
    assert scores["bleu_2"] == pytest.approx((3 / 4 * 2 / 3) ** (1 / 2))
    assert scores["bleu_3"] == pytest.approx((3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))
    assert scores["bleu_4"] < 1e-3
    assert scores["rouge_l"] == pytest.approx(3 / 4)  # a b c: precision 3/4, recall 3/4
    short = caption_scores(["a b"], [["a b c d"]], segment="none")
    assert short["bleu_1"] == pytest.approx(math.exp(1 - 4 / 2))
    assert short["rouge_l"] == pytest.approx((1 + 1.2**2) * 1 * 0.5 / (0.5 + 1.2**2 * 1))


def test_cider_and_cider_d_by_hand():
    scores = caption_scores(["a b", "c c d"], [["a b"], ["c d"]], segment="none")
    # Two photos: every n-gram of the references weighs log 2, and so does the unseen pair "c c" of the second caption.
    # Photo 1: cosines 1, 1, 0, 0. Photo 2: words (2, 1)·(1, 1), pairs (1, 1)·(0, 1).
    words, pairs = 3 / math.sqrt(5 * 2), 1 / math.sqrt(2)
    assert scores["cider"] == pytest.approx(10 * (2 + words + pairs) / 4 / 2)
    # CIDEr-D counts the second c not at all, and the caption is one pair longer than the reference.
    clipped = 2 / math.sqrt(5 * 2)
    assert scores["cider_d"] == pytest.approx(10 * (2 + (clipped + pairs) * math.exp(-1 / 72)) / 4 / 2)


@pytest.mark.parametrize(
    ("predictions", "references", "printed"),
    [
        (["一个男人在"], [["一个女人在跑"]], 0.32661173471612),
        (["一一一二"], [["二一一"]], 0.4254621458199651),
        (["的人"], [["的跑"]], 0.2),
        (["一个男人", "一个女孩"], [["一个男人"], ["女孩一个狗"]], 0.4929130215113044),
        (["一个男人", ""], [["一个男人"], ["女孩一个狗", "跑"]], 0.48484848484848486),
    ],
)
def test_meteor_is_what_the_jar_prints(predictions, references, printed):
    for segment in ("char", "jieba"):  # the jar takes words apart into characters
        assert caption_scores(predictions, references, segment)["meteor_exact"] == pytest.approx(printed, abs=1e-12)


@pytest.mark.parametrize("segment", ["char", "jieba"])
@pytest.mark.parametrize("punctuation", ["drop", "keep"])
def test_equal_to_pycocoevalcap(segment, punctuation):
    predictions, references = random_captions(60, 5)
    predictions[3] = ""
    references[7] = references[7][:2]
    scores = caption_scores(predictions, references, segment, punctuation)
    hypotheses = [words_of(caption, segment, punctuation) for caption in predictions]
    rows = [[words_of(caption, segment, punctuation) for caption in row] for row in references]
    assert_same_scores(scores, coco_caption_scores(hypotheses, rows))
    assert scores["cider"] > scores["cider_d"]
    assert (scores["images"], scores["references_min"], scores["references_max"]) == (60, 2, 5)


def test_equal_to_pycocoevalcap_on_flickr8k_cn():
    """The first human sentence of the 1,000 test photos against the other four."""
    lines = shared_path("data/flickr8k-cn/captions.jsonl").read_text(encoding="utf-8").splitlines()
    captions = [photo["captions"] for photo in map(json.loads, lines) if photo["split"] == "test"]
    predictions, references = [row[0] for row in captions], [row[1:] for row in captions]
    for segment, cider_d in (("char", 1.8035), ("jieba", 1.0802)):
        scores = caption_scores(predictions, references, segment)
        hypotheses = [words_of(caption, segment, "drop") for caption in predictions]
        rows = [[words_of(caption, segment, "drop") for caption in row] for row in references]
        assert_same_scores(scores, coco_caption_scores(hypotheses, rows))
        assert scores["cider_d"] == pytest.approx(cider_d, abs=1e-3)


def test_aic_icc_protocol_prints_what_the_evaluator_prints():
    scores = caption_scores(AIC_PREDICTIONS, AIC_REFERENCES, protocol="aic-icc")
    assert_same_scores(scores, AIC_SCORES)
    assert scores["segment"] == "jieba"
    assert scores["protocol"] == "aic-icc"
    assert scores["tokenizer"].startswith("jieba 0.")


def test_aic_icc_steps():
    assert aic_icc_segment(" 两个人，在“海边”跑步。") == "两个 人 ， 在 “ 海边 ” 跑步"
    assert aic_icc_words("两个 人 ， 在 “ 海边 ” T恤 、 . ! 50% （ 左 ） ( 右 )") == [
        *["两个", "人", "，", "在", "海边", "t恤", "、", "50", "%", "（", "左", "）", "-lrb-", "右", "-rrb-"]
    ]


@pytest.mark.skipif(shutil.which("java") is None, reason="the evaluator's tokeniser and METEOR are Java programs")
def test_aic_icc_protocol_against_the_jars():
    pytest.importorskip("pycocoevalcap.cider.cider")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    predictions, references = random_captions(100, 5, words="一个男人、女孩狗在“草地”上跑的红色球踢，。！（）2")
    predictions, references = predictions + AIC_PREDICTIONS, references + AIC_REFERENCES
    references[:100] = [[aic_icc_segment(caption) for caption in row] for row in references[:100]]
    tokenizer = PTBTokenizer()
    hypotheses = tokenizer.tokenize({row: [{"caption": aic_icc_segment(p)}] for row, p in enumerate(predictions)})
    rows = tokenizer.tokenize({row: [{"caption": c} for c in captions] for row, captions in enumerate(references)})
    expected = coco_caption_scores(
        [hypotheses[row][0].split() for row in range(len(predictions))],
        [[caption.split() for caption in rows[row]] for row in range(len(references))],
        meteor=True,
    )
    assert_same_scores(caption_scores(predictions, references, protocol="aic-icc"), expected)


def test_protocol_refuses_what_the_evaluator_cannot_score():
    with pytest.raises(ValueError, match="aic_icc_segment"):
        caption_scores(["两个人"], [["两个人在海边", "一个人"]], protocol="aic-icc")
    with pytest.raises(ValueError, match=r"predictions\[1\] is empty"):
        caption_scores(["两个人", ""], [["两个 人"], ["一个 人"]], protocol="aic-icc")


def test_words():
    caption = "一个穿Ｔ恤的男人，\u200b 跑了２米！"
    assert words_of(caption, "char", "drop") == list("一个穿Ｔ恤的男人跑了２米")
    assert words_of(caption, "char", "keep") == list("一个穿Ｔ恤的男人，跑了２米！")
    assert words_of("两个 人 ， 跑步 。", "none", "drop") == ["两个", "人", "跑步"]
    assert words_of("两个人，跑步。", "jieba", "keep") == ["两个", "人", "，", "跑步", "。"]
    assert words_of("“～$`…—·《》」", "char", "drop") == []


def test_words_added_to_jieba_change_no_score():
    jieba = pytest.importorskip("jieba")
    before = words_of("一个男人在草地", "jieba", "drop")
    jieba.add_word("男人在草地")
    try:
        assert words_of("一个男人在草地", "jieba", "drop") == before
    finally:
        jieba.del_word("男人在草地")


def test_longest_common_subsequence_and_chunks_against_slow_versions():
    generator = random.Random(1)
    for _ in range(300):
        first = generator.choices("abcd", k=generator.randint(1, 7))
        second = generator.choices("abcde", k=generator.randint(1, 7))
        table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
        for row, column in itertools.product(range(len(first)), range(len(second))):
            equal = first[row] == second[column]
            best = max(table[row][column + 1], table[row + 1][column])
            table[row + 1][column + 1] = table[row][column] + 1 if equal else best
        assert _longest_common_subsequence("".join(first), "".join(second)) == table[-1][-1]
        if set(first) & set(second):
            assert _fewest_chunks(first, second) == slow_fewest_chunks(first, second)


def slow_fewest_chunks(first, second):
    """All alignments: each word goes to one equal place or nowhere."""
    alignments = [[]]
    for word in first:
        places = [place for place, other in enumerate(second) if other == word]
        alignments = [
            [*alignment, place]
            for alignment in alignments
            for place in [None, *places]
            if place is None or place not in alignment
        ]
    most = max(sum(place is not None for place in alignment) for alignment in alignments)
    return min(
        sum(
            place is not None and (index == 0 or alignment[index - 1] is None or alignment[index - 1] != place - 1)
            for index, place in enumerate(alignment)
        )
        for alignment in alignments
        if sum(place is not None for place in alignment) == most
    )


def test_repeated_words_do_not_blow_up():
    """60 equal words can be aligned in more ways than there are atoms; one chunk is the answer."""
    assert _fewest_chunks(["的"] * 60, ["的"] * 59) == 1
    assert _fewest_chunks(["的"] * 60, ["的", "狗"] * 30) == 30


def test_empty_prediction_scores_nothing():
    scores = caption_scores(["", "。"], [["一只猫"], ["一只狗"]])
    assert max(scores[name] for name in ("bleu_1", "bleu_4", "rouge_l", "meteor_exact", "cider", "cider_d")) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": ["猫"], "references": []}, "1 predictions but references for 0"),
        ({"predictions": [], "references": []}, "nothing to score"),
        ({"predictions": ["猫", None], "references": [["猫"], ["狗"]]}, r"predictions\[1\] is a NoneType"),
        ({"predictions": ["猫", "狗"], "references": [["猫"], []]}, r"references\[1\] must be a list"),
        ({"predictions": ["猫"], "references": ["猫"]}, r"references\[0\] must be a list"),
        ({"predictions": ["猫"], "references": [["猫", 3]]}, r"references\[0\]\[1\] is a int"),
        ({"predictions": ["猫"], "references": [["猫", "。"]]}, r"references\[0\]\[1\] has no words"),
        ({"predictions": ["猫"], "references": [["猫"]], "segment": "word"}, "segment='word'"),
        ({"predictions": ["猫"], "references": [["猫"]], "punctuation": "remove"}, "punctuation='remove'"),
        ({"predictions": ["猫"], "references": [["猫"]], "protocol": "coco"}, "protocol='coco'"),
        ({"predictions": ["猫"], "references": [["猫"]], "metrics": ["spice"]}, "English WordNet"),
        ({"predictions": ["猫"], "references": [["猫"]], "metrics": ["bleu", "bleurt"]}, "bleurt"),
    ],
)
def test_errors_name_the_row(arguments, message):
    with pytest.raises(ValueError, match=message):
        caption_scores(**arguments)


def test_missing_jieba_says_so(monkeypatch):
    jieba_tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ImportError, match="pip install jieba"):
        caption_scores(["猫"], [["猫"]], segment="jieba")
    assert caption_scores(["猫"], [["猫"]])["rouge_l"] == 1


def test_only_the_scores_asked_for():
    assert {name for name, value in caption_scores(["猫"], [["猫"]], metrics=["cider_d"]).items() if value == 0} == {
        "cider_d"
    }


def test_five_thousand_photos_in_five_seconds():
    predictions, references = random_captions(5000, 5)
    jieba_tokenizer().lcut("词典")  # the dictionary is read once per process
    for segment in ("char", "jieba"):
        start = time.process_time()
        caption_scores(predictions, references, segment)
        assert time.process_time() - start < 5


def test_evaluate_module(tmp_path):
    evaluate = pytest.importorskip("evaluate")
    metric = evaluate.load(str(CAPTION_ZH), cache_dir=str(tmp_path))
    predictions, references = random_captions(20, 3)
    expected = caption_scores(predictions, references, "jieba", "keep")
    assert (
        metric.compute(predictions=predictions, references=references, segment="jieba", punctuation="keep") == expected
    )
    metric.add_batch(predictions=AIC_PREDICTIONS, references=AIC_REFERENCES)
    assert_same_scores(metric.compute(protocol="aic-icc"), AIC_SCORES)
