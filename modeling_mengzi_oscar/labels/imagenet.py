"""The 1,000 classes of ImageNet as plain Chinese words, for tags.

Many classes share a word: what a caption would say, not what a breeder would (all 118 breeds of dogs are 狗). The
probability of a word is the sum over its classes, which is why a photo of some dog is surely 狗 though no breed is
sure. Where a class is seldom what its photos show, the word names what they show ("grille" is a car, "cardoon" a
flower). Class numbers are those of ILSVRC 2012, as timm and torchvision count them. The
words of a group can stand for each other in a sentence. The words stand in imagenet_zh.tsv.
"""

from .tables import read_table

DOUBT = "？"  # after a word that the region model is not sure of: 火箭？
GROUP_OF_WORD = {row["chinese"]: row["group"] for row in read_table("imagenet_zh.tsv")}


def class_words() -> list[str]:
    """The word of each of the 1,000 classes, in their order."""
    words = {}
    for row in read_table("imagenet_zh.tsv"):
        for span in row["classes"].split():  # "7" or "10-20"
            first, _, last = span.partition("-")
            words |= dict.fromkeys(range(int(first), int(last or first) + 1), row["chinese"])
    return [words[number] for number in sorted(words)]
