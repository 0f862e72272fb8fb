"""Which machine translations read like what people write.

Those that
* have 10 to 26 characters, no Latin letter, digit or comma (fragments stand behind commas);
* have none of the usual blunders: 运行 for a running dog, "在一个蓝色的衣服" for someone in blue, 是 before 跑;
* are likely enough, on average and at their worst place, for a 4-gram model of people's sentences.
"""

import math
import re
from collections import Counter

LENGTHS = range(10, 27)
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


def is_fluent(text, model) -> bool:
    if len(text) not in LENGTHS or BLUNDERS.search(text):
        return False
    mean, worst = model.fluency(text)
    return mean > MEAN and worst > WORST
