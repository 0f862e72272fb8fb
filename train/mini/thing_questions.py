"""Questions about photos of single things, from what is known of them: their names, and what measurements say."""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

from photo_facts import look_at
from tqdm.auto import tqdm

WHAT = ("这是什么？", "图里是什么？", "图里是什么东西？", "照片里是什么？", "这是什么东西？")
IS_THERE = ("图里有{}吗？", "有{}吗？", "图里有没有{}？", "照片里有{}吗？", "有没有{}？", "图中有{}吗？", "这是{}吗？")
COLOUR = ("{}是什么颜色的？", "图里的{}是什么颜色？", "这是什么颜色的？", "它是什么颜色的？")
FEWEST_PHOTOS = 5  # of a thing that is an answer


def thing_questions(path, photos, seed):
    """{split: rows as `make_questions.ask_about` gives them}, of the photos of write_thing_sentences.py.

    What it is, where several photos show such things; whether its name is there, and a name of another; its colour,
    where it stands before a plain background. Names that share a character are not asked of one another: 猫 of 猫咪.
    """
    with open(path, encoding="utf-8") as file:
        things = [json.loads(line) for line in file]
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
