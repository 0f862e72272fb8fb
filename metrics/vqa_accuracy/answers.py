"""VQA accuracy (Antol et al. 2015, arXiv 1505.00468; Goyal et al. 2017): ten people answered, how many said the same.

The official rule, for each of the ten people in turn: min(1, answers equal to the prediction among the other nine / 3),
averaged. The official normalisation is kept with its oddities, each marked below, because every published number was
made with them. The Chinese normalisation is ours; nobody published one.

What differs from the official script: scores are 0..1 and not rounded, and question and answer types are optional.
"""

import functools
import re
import string
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

NORMALIZATIONS = ("official", "zh", "none")

_PUNCTUATION = r';/[]"{}()=+\_-><@`,?!'  # not the apostrophe (girl's) and not the colon (2:50)
_PERIOD = re.compile(r"\.(?!\d)")
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
# Every way to forget exactly one apostrophe; "shed" and "well" are words and not in the list.
_FORGOTTEN_APOSTROPHE = {
    contraction[:index] + contraction[index + 1 :]: contraction
    for contraction in _CONTRACTIONS.split()
    for index, character in enumerate(contraction)
    if character == "'"
} | {"somebody'd": "somebodyd"}  # sic: this one goes the wrong way in the official table

_CHINESE_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_CHINESE_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10000}
_CHINESE_COUNT = re.compile(r"([零〇一二两三四五六七八九十百千万]+|\d+)[个只条匹辆张本把头位名件块台架棵朵杯瓶座艘人]?")


def vqa_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    normalization: str = "official",
    answer_types: Sequence[str] | None = None,
    question_types: Sequence[str] | None = None,
) -> dict:
    """Scores one answer per question against the answers of (usually ten) people.

    Args:
        predictions: one answer per question.
        references: for each question the answers people gave, at least 4: with fewer the rule cannot reach 1.
        normalization: "official" for English, "zh" for Chinese, "none" compares as it stands.
        answer_types, question_types: per question ("yes/no", "number", "other"; "what color is"); adds the means.

    Returns:
        accuracy (0..1), by_answer_type and by_question_type if given, normalization, questions, answers_min,
        answers_max.

    Raises:
        ValueError: names the row of an answer that is no text or of too few answers, or the lists of unequal length.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization={normalization!r}: expected one of {NORMALIZATIONS}")
    if not predictions:
        raise ValueError("nothing to score: predictions is empty")
    for name, values in (
        ("references", references),
        ("answer_types", answer_types),
        ("question_types", question_types),
    ):
        if values is not None and len(values) != len(predictions):
            raise ValueError(f"{len(predictions)} predictions but {len(values)} {name}")

    scores = []
    for row, (prediction, answers) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(answers, str) or len(answers) < 4:
            raise ValueError(f"references[{row}] must be a list of at least 4 answers, not {answers!r}")
        for answer in (prediction, *answers):
            if not isinstance(answer, str):
                raise ValueError(f"row {row}: an answer is a {type(answer).__name__}, not a string: {answer!r}")
        scores.append(answer_score(prediction, answers, normalization))

    result = {"accuracy": sum(scores) / len(scores)}
    for name, types in (("by_answer_type", answer_types), ("by_question_type", question_types)):
        if types is not None:
            scores_of = defaultdict(list)
            for kind, score in zip(types, scores, strict=True):
                scores_of[kind].append(score)
            result[name] = {kind: sum(values) / len(values) for kind, values in sorted(scores_of.items())}
    return result | {
        "normalization": normalization,
        "questions": len(scores),
        "answers_min": min(map(len, references)),
        "answers_max": max(map(len, references)),
    }


def answer_score(prediction: str, answers: Sequence[str], normalization: str = "official") -> float:
    """The leave-one-out score of one prediction; an empty one scores 0."""
    if not prediction.strip():
        return 0.0
    if normalization == "zh":
        prediction, answers = normalize_chinese(prediction), [normalize_chinese(answer) for answer in answers]
    elif normalization == "official":
        prediction, answers = _on_one_line(prediction), [_on_one_line(answer) for answer in answers]
        if len(set(answers)) > 1:  # sic: where all agree, nothing is normalised, not even the prediction's capitals
            prediction, answers = normalize_english(prediction), [normalize_english(answer) for answer in answers]
    same = sum(answer == prediction for answer in answers)
    # Leaving out one of those who agree leaves one fewer; leaving out any other leaves them all.
    total = same * min(1.0, (same - 1) / 3) + (len(answers) - same) * min(1.0, same / 3)
    return total / len(answers)


def _on_one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


@functools.lru_cache(maxsize=1 << 20)  # two million answers of VQA v2 val are 100,000 different ones
def normalize_english(answer: str) -> str:
    """The official normalisation: punctuation, periods, capitals, number words, articles, forgotten apostrophes."""
    text = answer
    comma_in_number = _DIGITS_WITH_COMMA.search(answer)
    for mark in _PUNCTUATION:
        # A mark beside a space goes, any other turns into a space; sic: a number like 1,000 makes all marks go.
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or comma_in_number else " ")
    text = _PERIOD.sub("", text, count=32)  # sic: re.UNICODE, which is 32, is passed where the count belongs
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_FORGOTTEN_APOSTROPHE.get(word, word) for word in words if word not in _ARTICLES)


@functools.lru_cache(maxsize=1 << 20)
def normalize_chinese(answer: str) -> str:
    """Full-width to half-width, lower case; no spaces, no marks, no final 的 or 了; a count becomes its digits.

    "两个。" and "2" are one answer, "三明治" is not 3 of anything: numerals are read only where the whole answer is a
    number with at most one measure word. Yes and no in their many forms, and traditional characters, stay as they are.
    """
    text = unicodedata.normalize("NFKC", answer).lower()
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    # The point of 3.5 and the colon of 2:50 are part of the number.
    text = re.sub(r"(?<!\d)[.:]|[.:](?!\d)", "", text)
    text = "".join(character for character in text if character in ".:" or not _is_mark(character))
    if len(text) > 1 and text[-1] in "的了":
        text = text[:-1]
    count = _CHINESE_COUNT.fullmatch(text)
    return str(_chinese_number(count[1])) if count else text


def _is_mark(character: str) -> bool:
    return character.isspace() or character in string.punctuation or unicodedata.category(character)[0] in "PC"


def _chinese_number(numeral: str) -> int:
    """二十三 is 23, 一百零五 is 105, 十万 is 100000, 二〇一七 is 2017; digits are what they are."""
    if numeral.isdecimal():
        return int(numeral)
    if not set(numeral) & set(_CHINESE_UNITS):
        return int("".join(str(_CHINESE_DIGITS[character]) for character in numeral))
    total = section = digit = 0
    for character in numeral:
        if character in _CHINESE_DIGITS:
            digit = _CHINESE_DIGITS[character]
        elif character == "万":
            total, section, digit = (section + digit or 1) * 10000, 0, 0
        else:
            section += (digit or 1) * _CHINESE_UNITS[character]
            digit = 0
    return total + section + digit
