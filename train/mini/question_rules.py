"""What the captions of one photo let one ask about it: the reading of question_rules.yaml.

A question is made only where the captions answer it. Several people described each photo without knowing of a question:
what one of them leaves out says little, what two say alike is mostly true. docs/questions.md explains every rule.
"""

import re
from pathlib import Path
from typing import NamedTuple

import yaml

RULES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
MANY = "很多"
NUMERALS = {
    "一": 1,
    "1": 1,
    "两": 2,
    "二": 2,
    "2": 2,
    "三": 3,
    "3": 3,
    "四": 4,
    "4": 4,
    "五": 5,
    "5": 5,
    "六": 6,
    "七": 7,
}
SPOKEN = {1: "一", 2: "两", 3: "三", 4: "四", 5: "五"}


class Question(NamedTuple):
    name: str  # of the rule: what is balanced
    type: str  # count, colour, object, place, activity, yes/no
    wordings: tuple
    answer: str


class Count(NamedTuple):
    """How many of a thing one caption speaks of."""

    number: int | str | None  # MANY; None where the caption leaves it open
    at_least: int


def any_of(words):
    return f"(?:{'|'.join(words)})"


PEOPLE = any_of(RULES["counting"]["people"])
DOGS = "(?:狗狗|狗|犬|金毛(?!犬|狗))"
PAIR = any_of(RULES["counting"]["pairs"])
CROWD = any_of(RULES["counting"]["crowds"])
NUMERAL = f"[{''.join(NUMERALS)}]"


def questions_about(captions, draw):
    """The questions that the captions of one photo answer: a list of `Question`.

    `draw` is the photo's own `random.Random`: it picks what the sport is asked to be.
    """
    counts = {"people": list(map(count_people, captions)), "dogs": list(map(count_dogs, captions))}
    answers = {name: choose(rule, captions, counts) for name, rule in CHOICES.items()}
    questions = [
        Question(name, CHOICES[name]["type"], tuple(CHOICES[name]["wordings"]), answer)
        for name, answer in answers.items()
        if answer
    ]
    return (
        count_questions(captions, counts)
        + questions
        + sport_questions(answers["运动"], draw)
        + is_there_questions(captions)
    )


# Counting


def count_people(caption) -> Count:
    if both := re.search(rf"({NUMERAL})[个名]?男的?[和与，、]?({NUMERAL})[个名]?女", caption):  # 一男一女
        number = NUMERALS[both[1]] + NUMERALS[both[2]]
        return Count(number, number)
    caption = re.sub(any_of(RULES["counting"]["not_people"]), "", caption)
    return count_things(caption, PEOPLE, "个名位", any_of(RULES["counting"]["crowds_of_people"]))


def count_dogs(caption) -> Count:
    return count_things(re.sub(any_of(RULES["counting"]["not_dogs"]), "", caption), DOGS, "只条头个匹", "群狗|群犬")


def count_things(caption, noun, measures, crowds) -> Count:
    """A noun belongs to the number before it: 一个男人和两个孩子 is 3; one without leaves the number open."""
    if re.search(crowds, caption) or re.search(f"{CROWD}[^，。]*?{noun}", caption):
        return Count(MANY, 3)
    total, clear, quantity = 0, True, None
    for match in re.finditer(rf"({NUMERAL})[{measures}]|(一对|一双|俩)|({noun})", caption):
        if not match[3]:
            quantity = NUMERALS[match[1]] if match[1] else 2
            continue
        pair = re.fullmatch(PAIR, match[3]) is not None
        total += max(quantity or 1, 2 if pair else 1)
        clear = clear and (quantity is not None or pair)
        quantity = None
    return Count(total if clear and total else None, total)


def agreed_number(counts, minimum=2):
    """The number that so many captions give, if none gives another or needs more; else None."""
    stated = [count.number for count in counts if count.number is not None]
    if len(stated) < minimum or len(set(stated)) != 1:
        return None
    if stated[0] != MANY and max(count.at_least for count in counts) > stated[0]:
        return None
    return stated[0]


def count_questions(captions, counts):
    questions = []
    for name, things, measure, thing in (("几个人", "people", "个", "人"), ("几只狗", "dogs", "只", "狗")):
        number = agreed_number(counts[things])
        answer = SPOKEN[number] + measure if number in SPOKEN else number
        if answer is None and is_there(RULES["presence"]["things"][thing], captions) == "没有":
            answer = "没有"
        if answer in (MANY, "没有") or number in SPOKEN:
            questions.append(Question(name, "count", tuple(RULES["counting"][f"how_many_{things}"]), answer))
    return questions


# One of several


def colour_choices(rules):
    """The rules of the colours, one for each thing, in the form of the other choices."""
    return {
        f"颜色 {thing}": {
            "type": "colour",
            "minimum": 1,
            "subject": rule.get("subject"),
            "wordings": rule["wordings"],
            "answers": {
                answer: f"(?:{colour})色?的?{rules['between']}(?:{rule['noun']})"
                for answer, colour in rules["names"].items()
            },
        }
        for thing, rule in rules["things"].items()
    }


CHOICES = RULES["choices"] | colour_choices(RULES["colours"])


def choose(rule, captions, counts):
    """The answer that enough captions give and none contradicts, or None."""
    people, dogs = (max(count.at_least for count in counts[things]) for things in ("people", "dogs"))
    fits = {
        None: True,
        "person": people == 1,
        "people": people and not dogs,
        "dog": dogs == 1,
        "dogs": dogs and not people,
    }
    if not fits[rule.get("subject")]:
        return None
    verb = f"(?:{rule['verbs']})[着住了起到有过]?[^，。的和在]{{0,5}}?" if "verbs" in rule else ""
    named = {answer: captions_with(f"{verb}(?:{pattern})", captions) for answer, pattern in rule["answers"].items()}
    named = {answer: times for answer, times in named.items() if times}
    if len(named) != 1 or max(named.values()) < rule["minimum"]:
        return None
    return next(iter(named))


# Yes or no


def sport_questions(sport, draw):
    asked = RULES["sports"]["asked"]
    if sport not in asked:
        return []
    true = draw.random() < 0.5
    other = sport if true else draw.choice([name for name in asked if name != sport])
    wordings = tuple(wording.format(asked[other]) for wording in RULES["sports"]["wordings"])
    return [Question(f"在{asked[other]}", "yes/no", wordings, "是" if true else "不是")]


def is_there_questions(captions):
    answers = {thing: is_there(rule, captions) for thing, rule in RULES["presence"]["things"].items()}
    wordings = RULES["presence"]["wordings"]
    return [
        Question(f"有{thing}", "yes/no", tuple(wording.format(thing) for wording in wordings), answer)
        for thing, answer in answers.items()
        if answer
    ]


def is_there(rule, captions):
    """有, 没有, or None where the captions leave it open."""
    times = captions_with(PEOPLE if rule["named"] == "people" else rule["named"], captions)
    if times >= 2:
        return "有"
    if times or captions_with(rule["possible"], captions):
        return None
    return "没有" if "elsewhere" not in rule or captions_with(rule["elsewhere"], captions) >= 2 else None


def captions_with(pattern, captions):
    return sum(re.search(pattern, caption) is not None for caption in captions)
