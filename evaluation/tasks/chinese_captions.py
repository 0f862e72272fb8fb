"""What the tasks of this folder name: the photo, and the scores of `metrics.caption_zh` over the whole split.

Of characters (`char_`) and of jieba's words (`word_`), punctuation dropped on both sides. They are fractions, which
published tables print times 100 (docs/metrics.md).
"""

from functools import partial

from metrics.caption_zh.scores import caption_scores


def photo(row) -> list:
    return [row["image"].convert("RGB")]


def caption_and_references(row, replies) -> dict:
    """The caption and its photo's sentences, for every score."""
    return dict.fromkeys(SCORES, (" ".join(replies[0].split()), row["captions"]))


def score(pairs, segment, metric) -> float:
    captions, references = zip(*pairs, strict=True)
    return caption_scores(captions, references, segment, metrics=(metric.removesuffix("_4"),))[metric]


SCORES = {
    f"{level}_{metric}": partial(score, segment=segment, metric=metric)
    for level, segment in {"char": "char", "word": "jieba"}.items()
    for metric in ("bleu_4", "meteor_exact", "rouge_l", "cider_d")
}
globals().update(SCORES)  # lmms-eval names them one by one: `!function chinese_captions.char_bleu_4`
