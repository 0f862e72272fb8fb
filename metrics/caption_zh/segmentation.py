"""Chinese captions as lists of words: characters, jieba's words, or the words that are already there.

The published tables live on different scales, and no score can be read without knowing which: "character level"
(ERNIE-ViLG, arXiv 2112.15283), "word level" (jieba, AI Challenger 2017) or somebody's own segmentation.
"""

import functools
import logging
import re
import string
import unicodedata

SEGMENTS = ("jieba", "char", "none")
PUNCTUATION = ("drop", "keep")

# What Stanford's PTBTokenizer 3.4.1 makes of the non-ASCII marks of a Chinese sentence before the evaluator looks at
# them: quotes, dashes and the ellipsis turn into ASCII tokens of the drop list, corner brackets cannot be tokenised.
_PTB_LOST = str.maketrans(dict.fromkeys("“”‘’…—–《》〈〉「」『』【】〔〕", " "))
_PTB_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# The drop list of the evaluator's ptbtokenizer.py; its -LRB- to -RCB- never match, because the text is lower case.
_PTB_DROPPED = {"''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"}
_PTB_TOKEN = re.compile(r"[()\[\]{}%$]|[^\s()\[\]{}%$]+")


def is_punctuation(character: str) -> bool:
    """Unicode category P (，。！？、“”…), and the ASCII symbols ($+<=>^`|~) with their full-width forms."""
    return (
        unicodedata.category(character).startswith("P")
        or character in string.punctuation
        or unicodedata.normalize("NFKC", character) in string.punctuation
    )


@functools.cache
def jieba_tokenizer():
    """A jieba tokenizer of our own with the default dictionary: words a program adds to jieba change no score here."""
    try:
        import jieba
    except ImportError as error:
        raise ImportError("word-level scores need jieba: pip install jieba, or score with segment='char'") from error
    jieba.setLogLevel(logging.WARNING)  # otherwise it announces its dictionary on stderr
    return jieba.Tokenizer()


def tokenizer_name(segment: str) -> str:
    """Name and version of what cuts the captions; another version of jieba cuts other words and scores differently."""
    if segment == "jieba":
        jieba_tokenizer()
        import jieba

        return f"jieba {jieba.__version__} (precise mode, HMM, default dictionary)"
    return {"char": "characters", "none": "words already separated by spaces"}[segment]


def words_of(caption: str, segment: str, punctuation: str) -> list[str]:
    """The words of one caption: punctuation goes first, then the rest is segmented.

    In this order jieba may join what stood on both sides of a comma. It is the order of "punctuation removed on both
    sides, then scored" in the papers; the AI Challenger evaluator does the opposite, see `aic_icc_words`.
    Letters keep their case and "char" takes digits and Latin letters apart too. Invisible characters (zero-width
    spaces, which machine translations are full of) are nobody's word.
    """
    caption = _without_invisible(caption)
    if punctuation == "drop":
        caption = "".join(character for character in caption if not is_punctuation(character))
    if segment == "none":
        return caption.split()
    if segment == "char":
        return [character for character in caption if not character.isspace()]
    return [word for word in jieba_tokenizer().lcut(caption) if not word.isspace()]


def aic_icc_segment(caption: str) -> str:
    """What the AI Challenger 2017 evaluator does to a submitted caption (`loadRes`): its words joined by spaces.

    Only the full stop 。 is removed; every other mark stays a word. The official references of the organisers were
    segmented beforehand; references made from the public annotation files go through this function first.
    """
    return " ".join(jieba_tokenizer().cut(caption.strip().replace("。", ""), cut_all=False))


def aic_icc_words(segmented: str) -> list[str]:
    """The evaluator's second tokeniser, in Python: PTBTokenizer -lowerCase, then its list of dropped ASCII marks.

    Follows the Java tokeniser for what Chinese captions are made of (Chinese words, numbers, Latin words, full-width
    and ASCII marks). It does not split English contractions and clitics (can't, x's) or abbreviations.
    """
    words = _PTB_TOKEN.findall(_without_invisible(segmented).translate(_PTB_LOST).lower())
    return [_PTB_BRACKETS.get(word, word) for word in words if word not in _PTB_DROPPED]


def _without_invisible(text: str) -> str:
    return "".join(character for character in text if unicodedata.category(character) != "Cf")
