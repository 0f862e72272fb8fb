"""Sentences about photos of things: measure words, what is measured, what a detector is sure of; and their scores."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import score_things
import write_thing_sentences
from photo_facts import Facts, look_at
from PIL import Image, ImageDraw
from score_things import form_of, judge
from things import Thing, measure_words, read_things, table, validation_images
from write_thing_sentences import MORE, SentencesAbout, number_of, people_in

from modeling_mengzi_oscar.labels.imagenet import class_words
from modeling_mengzi_oscar.labels.people import names_people

CLASSES = {"airplanes": ["飞机"], "umbrella": ["伞"], "elephant": ["象"]}


def thing(boxes=(), **settings):
    settings = {"person": max([0, *(box[1] for box in boxes if box[0] == "person")])} | settings
    settings = {"number": "一", "nouns": ["大象"], "words": ["象"], "size": (100, 100)} | settings
    return Thing("a/b.jpg", "elephant", "train", boxes=list(boxes), **settings)


# The tables


def test_every_noun_has_one_measure_word_and_one_kind():
    nouns = [noun for row in table("measure_words.tsv") for noun in row["nouns"].split()]
    assert [noun for noun, count in Counter(nouns).items() if count > 1] == []
    measures = measure_words()
    assert [measures[noun][0] for noun in ("飞机", "大象", "咖啡", "花", "椅子", "摩托车", "鱼", "鸟", "树")] == [
        *"架头杯朵把辆条只棵"
    ]
    named = [noun for row in table("caltech_classes.tsv") for noun in row["nouns"].split()]
    named += [row["noun"] for row in table("imagenet_photos.tsv") if row["noun"] != "-"]
    assert set(named) <= measures.keys()
    assert len(set(class_words()) - measures.keys()) < 20  # these are no things: 迷宫, 潜水


def test_what_holds_of_a_class_is_an_attribute():
    for row in table("caltech_classes.tsv"):
        assert all(text.endswith("的") for text in row["traits"].split() + row["places"].split()), row
        assert row["with_person"] == "" or row["with_person"].endswith("人"), row


# What is measured


@pytest.fixture
def draw(tmp_path):
    def draw(background, **shapes):
        photo = Image.new("RGB", (120, 90), background)
        pen = ImageDraw.Draw(photo)
        for colour, box in shapes.items():
            pen.rectangle(box, fill=colour)
        photo.save(tmp_path / "photo.png")
        return look_at(tmp_path / "photo.png")

    return draw


def test_colours_and_backgrounds(draw, tmp_path):
    facts = draw("white", red=(30, 20, 90, 70))
    assert (facts.colour, facts.background, facts.grey) == ("红色", "白色", False)
    facts = draw("black", yellow=(30, 20, 90, 70))
    assert (facts.colour, facts.background) == ("黄色", "黑色")
    assert draw("white", lightgrey=(30, 20, 90, 70)).colour is None  # perhaps white, in its own shadow
    assert draw("white", red=(30, 20, 60, 70), blue=(60, 20, 90, 70)).colour is None  # two colours
    assert draw("lime", darkgreen=(30, 20, 90, 70)).colour is None  # as what is around it
    assert draw("dimgrey", lightgrey=(30, 20, 90, 70)).grey
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    facts = look_at(tmp_path / "photo.png")
    assert (facts.colour, facts.background, facts.sky, facts.grass, facts.grey) == (None, None, None, False, False)


def test_sky_and_grass(draw):
    sky, grass = (90, 140, 220), (60, 150, 50)
    assert draw(sky, white=(50, 40, 70, 50)).sky == "around"
    facts = draw(sky, **{"#3c9632": (0, 60, 120, 90), "grey": (40, 30, 80, 70)})
    assert (facts.sky, facts.grass) == ("above", True)
    assert draw(grass).sky is None


# What the detector says


def test_numbers_are_said_where_the_detector_is_sure():
    one, other = ["elephant", 0.9, 0, 0, 40, 40], ["elephant", 0.8, 60, 60, 99, 99]
    assert number_of(thing()) == "一"  # it does not know the thing: photos of one thing show one
    assert number_of(thing([one])) == "一"
    assert number_of(thing([one, ["cow", 0.6, 1, 1, 39, 39]])) == "一"  # the same animal
    assert number_of(thing([one, other])) == "两"
    assert number_of(thing([one, ["elephant", 0.3, 60, 60, 99, 99]])) is None
    assert number_of(thing([one, other], number="几")) == "几"  # looked at by us
    somebody, another = ["person", 0.9, 0, 0, 40, 40], ["person", 0.8, 60, 60, 99, 99]
    assert people_in(thing([somebody])) == "一个人"
    assert people_in(thing([somebody, another])) == "两个人"
    assert people_in(thing([somebody, ["person", 0.3, 60, 60, 99, 99]])) == "人"


@pytest.fixture
def things(tmp_path):
    """Nine photos of three classes, a person in some, and one of ImageNet; what the detector saw in them."""
    rows, seen = [], []
    for name, words in CLASSES.items():
        for number in range(9):
            rows.append({"image": f"{name}/{number}.jpg", "class": name, "words": words})
            rows[-1]["split"] = "test" if number == 8 else "train"
    rows.append({"image": "imagenet/fish.jpg", "class": "tench", "synset": "n01440764", "split": "train"})
    for number, row in enumerate(rows):
        (tmp_path / "images" / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        photo = Image.new("RGB", (80, 60), "white")
        ImageDraw.Draw(photo).rectangle((20, 15, 60, 45), fill=["red", "blue", "green"][number % 3])
        photo.save(tmp_path / "images" / row["image"])
        person = {0: 0.9, 1: 0.4}.get(number % 5, 0.01)
        boxes = [["person", person, 60, 5, 75, 55]] if person > 0.3 else []
        seen.append({"image": f"images/{row['image']}", "size": [80, 60], "boxes": boxes, "person": person})
    for name, lines in (("photos.jsonl", rows), ("teacher.jsonl", seen)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_sentences_are_true_of_their_photo_and_the_same_in_every_run(things, capsys):
    command = ["--things", str(things), "--teacher", str(things / "teacher.jsonl"), "--output"]
    for name in ("first.jsonl", "second.jsonl"):
        write_thing_sentences.main([*command, str(things / name)])
    first, second = ((things / name).read_text(encoding="utf-8") for name in ("first.jsonl", "second.jsonl"))
    assert first == second
    assert "perhaps with a person" in capsys.readouterr().out
    known = {thing.image: thing for thing in read_things(things, things / "teacher.jsonl")}
    rows = [json.loads(line) for line in first.splitlines()]
    assert {row["split"] for row in rows} == {"train", "validation"}
    assert len(rows) == sum(thing.split != "test" and not 0.2 <= thing.person < 0.75 for thing in known.values())
    for row in rows:
        thing, sentences = known[row["image"]], row["short"] + row["detailed"]
        assert len(set(row["short"])) == len(row["short"]) == 4
        for text in sentences:
            assert any(word in text for word in thing.nouns), text
            assert names_people(text) == (thing.person > 0.75), text
            assert text.endswith("。"), text
    counted = [text for row in rows for text in row["short"] if row["image"].startswith("airplanes") and "一" in text]
    assert counted
    assert all("一架" in text or "一张" in text or "一个" in text and "人" in text for text in counted)


def test_forms_that_fit_every_thing_take_turns():
    """The next class has others, half of them at least; over many classes each form is as frequent as any other."""
    facts = Facts(grey=False, background=None, colour=None, sky=None, grass=False, fills=False)
    about = [SentencesAbout(thing(), turn, facts, measure_words(), random.Random(0)) for turn in range(200)]
    every = [{*sentences.short()} for sentences in about]
    assert {len(forms) for forms in every} == {MORE}
    assert all(len(one & other) <= MORE // 2 for one, other in zip(every, every[1:], strict=False))
    assert not every[0] & every[2]
    counts = Counter(form for forms in every for form in forms)
    assert len(counts) > 25
    assert max(counts.values()) - min(counts.values()) <= MORE


def test_photos_are_held_out_by_their_names(things):
    rows = [json.loads(line) for line in (things / "photos.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = validation_images(rows)
    assert Counter(image.split("/")[0] for image in held_out) == dict.fromkeys(CLASSES, 3)
    assert held_out == validation_images(rows[::-1])
    assert not held_out & {row["image"] for row in rows if row["split"] == "test"}


def test_a_photo_that_the_detector_did_not_see_is_named(things):
    text = (things / "teacher.jsonl").read_text(encoding="utf-8")
    (things / "teacher.jsonl").write_text(text[: text.rstrip().rindex("\n") + 1], encoding="utf-8")
    with pytest.raises(SystemExit, match=r"teacher.jsonl: has no row of imagenet/fish.jpg"):
        read_things(things, things / "teacher.jsonl")


# Scores


def test_what_is_named_and_invented():
    row = judge(thing(), "一个男人站在一头大象旁边。", 0.5)
    assert (row["named"], row["invented"], row["right"]) == (True, True, False)
    row = judge(thing([["person", 0.6, 0, 0, 9, 9]]), "一个男人。", 0.5)
    assert (row["named"], row["invented"]) == (False, None)
    row = judge(thing(), "人行道上的大象。", 0.5)
    assert (row["invented"], row["right"]) == (False, True)
    assert form_of("一头大象在草地上。", ["大象", "象"]) == form_of("一架飞机在草地上。", ["飞机"]) == "一M…在草地上。"


def test_captions_are_scored(things, tiny_checkpoint, capsys):
    command = ["--model", str(tiny_checkpoint), "--things", str(things), "--teacher", str(things / "teacher.jsonl")]
    score_things.main([*command, "--split", "test", "--num_beams", "2", "--output", str(things / "scores.jsonl")])
    said = capsys.readouterr().out
    assert "test, first style: 3 photos, named 0.0%" in said
    rows = [json.loads(line) for line in (things / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["image"] for row in rows] == [f"{name}/8.jpg" for name in CLASSES]
