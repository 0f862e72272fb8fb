"""Makes questions about photos from the sentences that people wrote about them, by the rules of docs/questions.md.

    python train/mini/make_questions.py --data_dir data/flickr8k-cn --output data/flickr8k-cn-questions
    python train/mini/make_questions.py --data_dir data/flickr8k-cn --machine_colours --aic_icc data/aic-icc \\
        --things data/thing_sentences.jsonl --photos data/things/images \\
        --teacher data/teacher/yolox_nano_things.jsonl --output data/mini-questions

With the further sources there are more questions to train on, and those of the first command stay what they are:
colours that machine translations name, AIC-ICC's training photos (those of its validation photos are test-dev), and
photos of single things. Every row says its `dataset`, and colours come three times.

The output has the layout that Oscar gives to VQA, so `datasets_scripts/vqa.py` reads it. Nobody was asked: the rows say
so ("generated"), and so do their ids. Of the questions made from captions no answer is right more often than all others
together.
"""

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

from mix_captions import splits_of
from question_rules import questions_about
from thing_questions import thing_questions
from tqdm.auto import tqdm

FILES = {"train": "train2014_qla.json", "validation": "val2014_qla.json", "test": "test2015_qla.json"}
COLOUR_ROUNDS = 3
FURTHER_FILES = {"test_dev": "test-dev2015_qla.json"}
TWO_COLOURS = re.compile("[红黑白黄棕褐蓝绿粉紫灰橙金]色?[和与、，][红黑白黄棕褐蓝绿粉紫灰橙金]")
FEWEST_ROWS, FEWEST_ANSWERS = 20, 5  # a question, and an answer, that is rarer in training is left out


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="flickr8k_cn", help="builder with a column captions (default %(default)s)")
    parser.add_argument("--data_dir", required=True, help="the builder's files, laid out as docs/data.md says")
    parser.add_argument("--config", help="the builder's configuration, if it has several")
    parser.add_argument(
        "--machine_colours", action="store_true", help="colours of training photos from machine translations, too"
    )
    parser.add_argument("--aic_icc", help="AIC-ICC's files, laid out as docs/data.md says")
    parser.add_argument("--things", help="what write_thing_sentences.py wrote")
    parser.add_argument("--photos", help="--things: folder of its photos")
    parser.add_argument("--teacher", help="--things: a detector's boxes, which say where there are people")
    parser.add_argument("--output", required=True, type=Path, help="folder to create; must not exist")
    parser.add_argument(
        "--seed", type=int, default=88, help="of the wordings, and of what is left out (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.output.exists():
        parser.error(f"{options.output} exists; give another --output, or remove it first")
    if options.things and not (options.photos and options.teacher):
        parser.error("--things needs --photos, in which it looks for colours, and --teacher, which knows people")

    # 1. Read
    splits = splits_of(options.dataset, options.data_dir, ["machine"] * options.machine_colours, options.config)
    if missing := FILES.keys() - splits.keys():
        parser.error(f"{options.dataset} has no split {', '.join(sorted(missing))}")

    # 2. Ask
    asked = {split: ask_about(splits[split], options.seed, options.dataset) for split in FILES}
    questions = {split: balance(rows, options.seed) for split, rows in asked.items()}
    rare = rare_questions(questions["train"])
    questions = {split: [row for row in rows if not rare(row)] for split, rows in questions.items()}
    further = defaultdict(list)
    if options.machine_colours:
        known = {(row["image_id"], row["name"]) for row in asked["train"]}
        colours = ask_about(with_machine_captions(splits["train"]), options.seed, options.dataset)
        colours = [row for row in colours if row["type"] == "colour"]
        further["train"] += [row for row in colours if (row["image_id"], row["name"]) not in known]
    if options.aic_icc:
        aic = splits_of("aic_icc", options.aic_icc)
        for split, source in (("train", "train"), ("test_dev", "validation")):
            further[split] += balance(ask_about(aic[source], options.seed, "aic_icc"), options.seed)
    if options.things:
        for split, rows in thing_questions(options.things, options.photos, options.teacher, options.seed).items():
            further[split] += rows
    for split, rows in further.items():
        questions.setdefault(split, [])
        questions[split] += rows
    answers = Counter(row["answer"] for row in questions["train"])
    questions = {
        split: [row for row in rows if answers[row["answer"]] >= FEWEST_ANSWERS] for split, rows in questions.items()
    }
    questions = {split: rows for split, rows in questions.items() if rows}
    if further:  # colours are few, and hard to see
        colours = [row for row in questions["train"] if row["type"].startswith("colour")]
        questions["train"] += colours * (COLOUR_ROUNDS - 1)

    # 3. Write
    answers = Counter(row["answer"] for row in questions["train"])
    vocabulary = {answer: label for label, (answer, _) in enumerate(answers.most_common())}
    write(options.output, questions, vocabulary)
    for split, rows in questions.items():
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in Counter(row["type"] for row in rows).most_common())
        print(f"{split}: {len(rows):,} questions about {len({row['image_id'] for row in rows}):,} photos ({kinds})")
    print(f"{options.output}: written; {len(vocabulary)} answers")


def with_machine_captions(rows):
    """Rows whose captions are people's and Baidu's translations, without those that give a thing two colours."""
    for row in rows:
        translated = [t["caption"] for t in row["machine"] if t["system"].startswith("baidu")]
        yield row | {"captions": row["captions"] + [text for text in translated if not TWO_COLOURS.search(text)]}


def ask_about(rows, seed, dataset):
    """Every question that the captions answer, one wording drawn for each, by photo and question alone."""
    questions = []
    for row in tqdm(rows, desc="photos", leave=False):
        draw = random.Random(f"{seed} {row['image_id']}")
        for question in questions_about(row["captions"], draw):
            wording = draw.choice(question.wordings)
            wording = wording if draw.random() < 0.85 else wording.rstrip("？")  # not everybody types the mark
            questions.append(
                {
                    "image_id": row["image_id"],
                    "dataset": dataset,
                    "name": question.name,
                    "type": question.type,
                    "question": wording,
                }
                | {"answer": question.answer}
            )
    return questions


def balance(questions, seed):
    """Thins the most frequent answer to each question until all others together are as many."""
    by_name = defaultdict(Counter)
    for row in questions:
        by_name[row["name"]][row["answer"]] += 1
    left = {}  # (question, its most frequent answer) -> how many of these rows may still be taken
    for name, counts in by_name.items():
        answer, most = counts.most_common(1)[0]
        left[name, answer] = min(most, counts.total() - most)
    order = random.Random(f"{seed} balance").sample(range(len(questions)), len(questions))
    balanced = []
    for index in order:
        key = questions[index]["name"], questions[index]["answer"]
        if left.get(key, 1) > 0:
            balanced.append(index)
            if key in left:
                left[key] -= 1
    return [questions[index] for index in sorted(balanced)]


def rare_questions(train):
    """A function that says which rows have an answer, or a question, of which there is too little to learn from."""
    answers = Counter(row["answer"] for row in train)
    names = Counter(row["name"] for row in train if answers[row["answer"]] >= FEWEST_ANSWERS)
    return lambda row: answers[row["answer"]] < FEWEST_ANSWERS or names[row["name"]] < FEWEST_ROWS


def write(folder, questions, vocabulary):
    """Oscar's files, in a folder that appears when it is whole."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for split, rows in questions.items():
        items = [
            {
                "q": row["question"],
                "o": "",
                "an": [vocabulary[row["answer"]]],
                "s": [1.0],
                "img_id": row["image_id"],
                "dataset": row["dataset"],
                "q_id": f"generated/{row['image_id']}/{row['name'].replace(' ', '-')}",
                "answer_type": row["type"],
                "generated": "from captions, by train/mini/make_questions.py",
            }
            for row in rows
        ]
        lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in items)
        (partial / (FILES | FURTHER_FILES)[split]).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    (partial / "ans2label.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0), encoding="utf-8")
    partial.rename(folder)


if __name__ == "__main__":
    main()
