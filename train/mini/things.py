"""The photos of things: what each shows, which are held out, and what a detector saw in them.

`photos.jsonl` of the folder: one line per photo (`image`, `class`, `split`, and `words` or `synset`), the file of the
detector `boxes` ([class, score, x1, y1, x2, y2] in pixels) and `person`, the best score of a person anywhere. The words
that people would use, their measure words, and what is true of every photo of a class are in tables beside this file:

    measure_words.tsv     一架飞机, 一头大象; "-": how many there are cannot be told from the name (苹果, 鞋子)
    caltech_classes.tsv   nouns of a class of Caltech-101; what is true of all its photos; with a person in the photo
    imagenet_photos.tsv   by class number, where our word is not what the one photo of the class shows (looked at by
                          us): another noun, how many there are, or "-", left out
"""

import hashlib
import json
from collections import defaultdict
from csv import QUOTE_NONE, DictReader
from dataclasses import dataclass, field
from pathlib import Path

from modeling_mengzi_oscar.labels.imagenet import class_words

HELD_OUT_OF_A_CLASS, HELD_OUT_OF_IMAGENET = 3, 16  # validation: so many a class of Caltech's; one photo of so many
STATUES = ("佛像", "雕像", "钞票")  # of people, who are not in the photo


@dataclass
class Thing:
    """A photo. Without `nouns` it is not clear what it shows."""

    image: str  # below images/
    name: str  # its class
    split: str  # train, validation or test
    words: list[str]  # any of them in a caption names it
    nouns: list[str]  # to write sentences with
    number: str | None  # 一, 两, 几, 一双 ..; None: not known
    traits: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    with_person: str = ""
    size: tuple[int, int] = (0, 0)  # width, height
    boxes: list = field(default_factory=list)
    person: float = 0.0

    @property
    def image_id(self):
        return self.image.rpartition(".")[0]

    @property
    def shows_statue(self):
        return any(noun in STATUES for noun in self.nouns)


def read_things(folder, teacher) -> list[Thing]:
    """All photos of the folder, in its order; `teacher` is the detector's file.

    Raises:
        SystemExit: one line: a photo that the detector did not see, or a class that our table does not have.
    """
    with open(teacher, encoding="utf-8") as file:
        seen = {row["image"].removeprefix("images/"): row for row in map(json.loads, file)}
    with open(Path(folder, "photos.jsonl"), encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    number_of_synset = {s: i for i, s in enumerate(sorted(row["synset"] for row in rows if "synset" in row))}
    held_out = validation_images(rows)
    classes = {row["class"]: row for row in table("caltech_classes.tsv")}
    mended = {int(row["class"]): row for row in table("imagenet_photos.tsv")}
    measures, words_of_class = measure_words(), class_words()
    things = []
    for row in rows:
        if (found := seen.get(row["image"])) is None:
            raise SystemExit(f"{teacher}: has no row of {row['image']}, which photos.jsonl of {folder} names")
        if "synset" not in row and row["class"] not in classes:
            raise SystemExit(f"caltech_classes.tsv beside this script: has no class {row['class']} ({row['image']})")
        if "synset" in row:
            number = number_of_synset[row["synset"]]
            word, mend = words_of_class[number], mended.get(number, {"noun": "", "number": ""})
            nouns, words = [mend["noun"] or word], [mend["noun"] or word]
            known = {"number": mend["number"]}
        else:
            entry = classes[row["class"]]
            nouns, words = entry["nouns"].split(), row["words"]
            known = {name: entry[name].split() for name in ("traits", "places")} | {"with_person": entry["with_person"]}
        nouns = [noun for noun in nouns if noun in measures]
        things.append(
            Thing(
                image=row["image"],
                name=row["class"],
                split="validation" if row["image"] in held_out else row["split"],
                words=words,
                nouns=nouns,
                number=known.pop("number", None) or ("一" if nouns and measures[nouns[0]][0] != "-" else None),
                size=tuple(found["size"]),
                boxes=found["boxes"],
                person=found["person"],
                **known,
            )
        )
    return things


def validation_images(rows) -> set[str]:
    """Photos of the training split that are held out for choices: those whose names have the smallest SHA-256."""
    of_class = defaultdict(list)
    for row in rows:
        if row["split"] == "train":
            of_class["imagenet" if "synset" in row else row["class"]].append(row["image"])
    held_out = set()
    for name, images in of_class.items():
        count = len(images) // HELD_OUT_OF_IMAGENET if name == "imagenet" else HELD_OUT_OF_A_CLASS
        held_out |= set(sorted(images, key=lambda image: hashlib.sha256(image.encode()).digest())[:count])
    return held_out


def measure_words() -> dict[str, tuple[str, str]]:
    """{noun: (its measure word, its kind)}."""
    return {noun: (row["measure"], row["kind"]) for row in table("measure_words.tsv") for noun in row["nouns"].split()}


def table(name) -> list[dict[str, str]]:
    with open(Path(__file__).with_name(name), encoding="utf-8") as file:
        return [
            {key: value or "" for key, value in row.items()}
            for row in DictReader(file, delimiter="\t", quoting=QUOTE_NONE)
        ]
