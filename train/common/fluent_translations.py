"""The sentences that teach the detailed style: of the machine translations of 2016 those that read like Chinese.

Kept is a translation that
* has 10 to 26 characters, no Latin letter, digit or comma (fragments stand behind commas);
* has none of the usual blunders: 运行 for a running dog, "在一个蓝色的衣服" for someone in blue, 是 before 跑;
* is likely enough, on average and at its worst place, for a 4-gram model of people's Chinese: the sentences of the
  training photos and those of COCO-CN.
People's own sentences of 12 characters or more belong to the style too.
"""

import math
import re
from collections import Counter

LENGTHS, LONG = range(10, 27), 12
BLUNDERS = re.compile(
    r"[A-Za-z0-9,，.]|运行|字段|播放|通过|其|它们|该|在后台|"
    r"在[^里上中下前后边旁]{0,9}(衣服|衬衫|裙子|外套|帽子|夹克|裤子|短裤|制服|礼服|泳衣|毛衣|泳装)(?![里上中下前后边旁])|是[^，]{0,6}(跑|走|跳|骑)"
)
MEAN, WORST = -3.3, -7.5  # log-probability of a character: of the sentence, and of the worst three in a row


class CharacterModel:
    """An n-gram model of characters with Witten-Bell smoothing (Bell, Cleary, Witten: Text Compression, 1990)."""

    def __init__(self, sentences, order=4):
        self.order, self.counts, self.followers, self.totals = order, Counter(), Counter(), Counter()
        for sentence in sentences:
            text = "^" * (order - 1) + sentence + "$"
            for end in range(order, len(text) + 1):
                for start in range(end - order, end):  # in ^^^一只狗$ those ending at 狗: ^一只狗, 一只狗, 只狗, 狗
                    gram = text[start:end]
                    self.followers[gram[:-1]] += gram not in self.counts
                    self.totals[gram[:-1]] += 1
                    self.counts[gram] += 1

    def probability(self, gram):
        """Of the last character after the others."""
        if not gram:
            return 1 / 5000
        before, shorter = gram[:-1], self.probability(gram[1:])
        kinds, total = self.followers[before], self.totals[before]
        return (self.counts[gram] + kinds * shorter) / (total + kinds) if total else shorter

    def fluency(self, sentence) -> tuple[float, float]:
        """Mean log-probability of its characters, and the mean of the three unlikeliest in a row."""
        text = "^" * (self.order - 1) + sentence + "$"
        logs = [math.log(self.probability(text[end - self.order : end])) for end in range(self.order, len(text) + 1)]
        return sum(logs) / len(logs), min(sum(logs[i : i + 3]) / 3 for i in range(len(logs) - 2))


def keep_fluent(rows, sentences):
    """A split whose column `machine` holds what teaches the detailed style, each sentence with its full stop."""
    people = [sentence.rstrip("。") for captions in rows["captions"] for sentence in captions]
    model = CharacterModel(people + [sentence.rstrip("。") for sentence in sentences])

    def detailed_sentences(row):
        translations = dict.fromkeys(translation["caption"].rstrip("。. ") for translation in row["machine"])
        fluent = [text for text in translations if is_fluent(text, model)]
        long = [text for text in (caption.rstrip("。") for caption in row["captions"]) if len(text) >= LONG]
        sentences = [("machine", text) for text in fluent] + [("people", text) for text in long]
        return {"machine": [{"system": system, "caption": f"{text}。"} for system, text in sentences]}

    return rows.map(detailed_sentences, desc="fluent translations")


def is_fluent(text, model) -> bool:
    if len(text) not in LENGTHS or BLUNDERS.search(text):
        return False
    mean, worst = model.fluency(text)
    return mean > MEAN and worst > WORST
