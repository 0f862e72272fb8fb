"""Questions about photos of single things, from what is known of them: their names, and what measurements say."""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

from photo_facts import look_at
from question_rules import RULES
from tqdm.auto import tqdm

WHAT = ("这是什么？", "图里是什么？", "图里是什么东西？", "照片里是什么？", "这是什么东西？")
IS_THERE = ("图里有{}吗？", "有{}吗？", "图里有没有{}？", "照片里有{}吗？", "有没有{}？", "图中有{}吗？", "这是{}吗？")
COLOUR = ("{}是什么颜色的？", "图里的{}是什么颜色？", "这是什么颜色的？", "它是什么颜色的？")
FEWEST_PHOTOS = 5  # of a thing that is an answer
NOBODY, SOMEBODY = 0.05, 0.6  # a teacher's score of a person up to which there is none, and from which there is one


def thing_questions(path, photos, teacher, seed):
    """{split: rows as `make_questions.ask_about` gives them}, of the photos of write_thing_sentences.py.

    What it is, where several photos show such things; whether its name is there, and a name of another; what animal;
    whether there are people, and how many, where a `teacher` is sure; its colour, before a plain background. Names that
    share a character are not asked of one another: 猫 of 猫咪.
    """
    with open(path, encoding="utf-8") as file:
        things = [json.loads(line) for line in file]
    with open(teacher, encoding="utf-8") as file:
        people = {row["image"].removeprefix("images/"): row["person"] for row in map(json.loads, file)}
    counts = Counter(row["words"][0] for row in things if row["split"] == "train")
    names = sorted({word for row in things for word in row["words"]})
    questions = defaultdict(list)
    for row in tqdm(things, desc="things", leave=False):
        name, draw = row["words"][0], random.Random(f"{seed} {row['image']}")
        other = draw.choice(names)
        while any(character in "".join(row["words"] + row["short"]) for character in other):
            other = draw.choice(names)
        asked = [
            ("有东西", "yes/no of things", draw.choice(IS_THERE).format(draw.choice(row["words"])), "有"),
            ("没有东西", "yes/no of things", draw.choice(IS_THERE).format(other), "没有"),
        ]
        if counts[name] >= FEWEST_PHOTOS:
            asked.append(("什么东西", "thing", draw.choice(WHAT), name))
        if name in RULES["choices"]["动物"]["answers"]:
            asked.append(("动物", "thing", draw.choice(RULES["choices"]["动物"]["wordings"]), name))
        person = people[row["image"]]
        if person <= NOBODY or person >= SOMEBODY:
            wording = draw.choice(RULES["presence"]["wordings"]).format("人")
            asked.append(("有人", "yes/no of things", wording, "没有" if person <= NOBODY else "有"))
        if person <= NOBODY and draw.random() < 0.5:
            asked.append(("几个人", "count of things", draw.choice(RULES["counting"]["how_many_people"]), "没有"))
        if colour := look_at(Path(photos) / row["image"]).colour:
            asked.append(("颜色 东西", "colour of things", draw.choice(COLOUR).format(name), colour))
        questions[row["split"]] += [
            {"image_id": row["image"].rpartition(".")[0], "dataset": "things", "name": kind, "type": type_}
            | {"question": question if draw.random() < 0.85 else question.rstrip("？")}
            | {"answer": yes_or_no(question, answer)}
            for kind, type_, question, answer in asked
        ]
    return questions


def yes_or_no(question, answer):
    """这是猫吗？ is answered by 是."""
    return {"有": "是", "没有": "不是"}.get(answer, answer) if question.startswith("这是") else answer
