"""Whether a caption is right, by the sentences that people wrote of its photo.

A reader calls a caption right where each thing, person and activity in it is in the photo. Here: where each is in one
of the sentences. What counts as the same (小狗 and 犬, 奔跑 and 追) stands in supported_words.tsv; the columns are
regular expressions:

    caption     what the caption says
    reference   a sentence that has this says it too; or the caption's own words
    fits        a sentence that has this may mean it (人 of a 男人), unless one has what stands in the last column
    unless      what speaks against it (女 of a 男人)

Other nouns and verbs of two characters or more must be in a sentence as they are, or what they end with: 长椅 in 椅子.
Colours, clothes and words that say little (玩耍, 正在, 手里) are not looked at: people mention few of them.
"""

import csv
import re
from functools import cache
from pathlib import Path

from metrics.caption_zh.segmentation import jieba_tokenizer
from modeling_mengzi_oscar.labels.people import names_people

SAYS_LITTLE = re.compile(
    "正在|玩耍|嬉戏|玩闹|玩着|在玩|玩|旁边|上面|下面|里面|外面|前面|后面|中间|身边|面前|边上|附近|背景|地上|地面|空中|手里|手中|手上|身上|头上|户外|室内|室外|"
    "穿着|戴着|拿着|举着|拉着|牵着|带着|看着|放着|摆着|提着|背着|推着|扶着|走着|有着|周围|各种|一些|一起|一边|准备|休息|看|拿|带|花样|年轻|可爱|高大|巨大|"
    "左手|右手|双手|双臂|双腿|单手|手指|左臂|右臂|微笑|笑容|大笑|头发|长发|短发|短袖|长袖|颜色|起来|一直|互相|自己|爱好者|交叉|抬起|环绕|覆盖|洒满|"
    "[红白黑黄蓝绿灰粉紫棕橙褐金银彩]色?的?|照片|图片|东西|近处|远处|可以|看到|那里|这里|表面|干净|安静|漂亮|宽敞|平坦|茂密|热闹|整洁|道具|动作"
)
COUNTS = re.compile("[一两三四五几][个只条位名群匹头辆架艘张把台座对双块根片件]?")
SUFFIXES = "子头儿上里下边面地坪坡丛原场机车球器者手员人中内处"


@cache
def tagger():
    """Words with their part of speech: n.. of nouns, v.. of verbs."""
    from jieba.posseg import POSTokenizer

    return POSTokenizer(jieba_tokenizer())


@cache
def rules() -> list[tuple[re.Pattern, ...]]:
    with open(Path(__file__).with_suffix(".tsv"), encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [tuple(re.compile(row[name] or "(?!)") for name in row) for row in rows]


def unsupported_words(caption: str, references: list[str]) -> list[str]:
    """Words of a caption that none of the sentences of its photo has or means."""
    said, rest, missing = "。".join(references), caption, []
    if names_people(caption) and not any(map(names_people, references)):
        missing.append("人")
    for in_caption, in_reference, fits, unless in rules():
        found = in_caption.search(caption)
        if not found:
            continue
        rest = re.sub(f"(?:{in_caption.pattern})[{SUFFIXES}]*", "，", rest)
        may_be = fits.search(said) and not unless.search(said)
        if not (in_caption.search(said) or in_reference.search(said) or may_be):
            missing.append(found[0])
    for word, kind in tagger().cut(SAYS_LITTLE.sub("，", rest)):
        if kind[0] not in "nv" or len(word) < 2 or names_people(word) or COUNTS.fullmatch(word):
            continue
        head = word.rstrip(SUFFIXES)[-1:]
        if word not in said and not (head and head in said):
            missing.append(word)
    return missing


def is_right(caption: str, references: list[str]) -> bool:
    """Whether the caption says something, and nothing that the sentences do not bear out."""
    return bool(caption.strip("。，. ")) and not unsupported_words(caption, references)
