"""How often captions name the thing that a photo shows, and speak of people where there are none.

    python train/mini/score_things.py --model checkpoints/mengzi-oscar-mini --things data/things \\
        --teacher data/teacher/yolox_nano_things.jsonl --split validation --style short --output outputs/things.jsonl

named: a word of the photo's class is in the caption. invented: somebody is in the caption (labels/people.py) of a photo
where the detector's surest person is below 0.15. Beside them: how many captions differ, the most frequent forms (the
thing and its measure word taken out), and both shares by the score that the captioner gives, so that one can see what
a score is worth. Choices are made on the split validation, which is cut from the training photos and not trained on.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

from things import measure_words, read_things

from modeling_mengzi_oscar import MengziOscarPipeline
from modeling_mengzi_oscar.files import write_whole
from modeling_mengzi_oscar.labels.people import names_people

NOBODY = 0.15  # best score of a person of the detector
BINS = (0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.01)  # of the captioner's score


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="captioner that sees photos: folder or Hub id")
    parser.add_argument("--things", required=True, type=Path, help="folder with images/ and photos.jsonl")
    parser.add_argument("--teacher", required=True, help="the detector's boxes, one line per photo")
    parser.add_argument("--split", default="validation", choices=["validation", "test"], help="default %(default)s")
    parser.add_argument("--style", help="of the captions, where the model knows several")
    parser.add_argument("--num_beams", type=int, default=5, help="default %(default)s")
    parser.add_argument("--output", type=Path, help="JSON Lines file for the captions and what was found in them")
    options = parser.parse_args(arguments)

    # 1. Caption
    things = [thing for thing in read_things(options.things, options.teacher) if thing.split == options.split]
    things = [thing for thing in things if thing.nouns]  # else it is not clear what there is to name
    pipeline = MengziOscarPipeline.from_pretrained(options.model)
    photos = [options.things / "images" / thing.image for thing in things]
    results = pipeline.caption(photos, style=options.style, num_beams=options.num_beams)

    # 2. Judge
    rows = [judge(thing, result["caption"], result["score"]) for thing, result in zip(things, results, strict=True)]
    rows = [{"style": options.style} | row for row in rows]

    # 3. Report
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    print(f"{options.split}, {options.style or 'first'} style: {report(rows)}")
    forms = Counter(row["form"] for row in rows)
    print(f"{len({row['caption'] for row in rows})} different captions of {len(forms)} forms, the most frequent:")
    for form, count in forms.most_common(5):
        print(f"  {count / len(rows):5.1%}  {form}")
    print("by score:")
    for low, high in zip(BINS, BINS[1:], strict=False):
        if found := [row for row in rows if low <= row["score"] < high]:
            print(f"  {low:.1f} to {min(high, 1):.1f}: {report(found)}")


def judge(thing, caption, score) -> dict:
    named = any(word in caption for word in thing.words)
    invented = names_people(caption) if thing.person < NOBODY else None  # None: there may be somebody
    return {
        "image": thing.image,
        "caption": caption,
        "score": round(score, 4),
        "named": named,
        "invented": invented,
        "right": named and not invented,  # for train/calibrate.py
        "form": form_of(caption, [*thing.words, *thing.nouns]),
    }


def report(rows) -> str:
    empty = [row["invented"] for row in rows if row["invented"] is not None]
    invented = f"{sum(empty) / len(empty):.1%}" if empty else "–"
    named = sum(row["named"] for row in rows) / len(rows)
    return f"{len(rows)} photos, named {named:.1%}; somebody invented {invented} of {len(empty)} without a person"


def form_of(caption, words) -> str:
    """A caption without what its photo alone decides: 一架飞机停在草地上。 -> 一M…停在草地上。"""
    for word in sorted(words, key=len, reverse=True):
        if word in caption:
            caption = caption.replace(word, "…", 1)
            break
    measures = "".join({measure for measure, _ in measure_words().values()} - {"-"})
    return re.sub(f"([一两三几])[{measures}]", r"\1M", caption)


if __name__ == "__main__":
    main()
