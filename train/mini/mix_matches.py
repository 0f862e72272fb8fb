"""What the match head learns from: photos of three data sets with the sentences that may be said of them.

    python train/mini/mix_matches.py --flickr8k_cn data/flickr8k-cn --aic_icc data/aic-icc \\
        --things data/thing_sentences.jsonl --output data/mini_matches

A row is a photo: image_id, captions, dataset. To train on: Flickr8k-CN with its people's sentences and machine
translations, AIC-ICC with its people's, things with those of write_thing_sentences.py. To validate on, with people's
sentences only: those photos of Flickr8k-CN and AIC-ICC that mix_captions.py takes.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from mix_captions import image_id_of, save, splits_of

from datasets_scripts.reading import smallest_hashes


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k_cn", required=True, help="its files, laid out as docs/data.md says")
    parser.add_argument("--aic_icc", required=True, help="its files, laid out as docs/data.md says")
    parser.add_argument("--things", required=True, help="what write_thing_sentences.py wrote")
    parser.add_argument("--output", required=True, type=Path, help="folder to create; must not exist")
    parser.add_argument("--machine", type=int, default=3, help="machine translations per photo (default %(default)s)")
    parser.add_argument(
        "--alike",
        type=int,
        default=4,
        help="photos of one kind of things: a sentence is true of all (default %(default)s)",
    )
    parser.add_argument("--validation", type=int, default=300, help="photos of Flickr8k-CN (default %(default)s)")
    parser.add_argument("--aic_held_out", type=int, default=50, help="photos of AIC-ICC's (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.output.exists():
        parser.error(f"{options.output} exists; give another --output, or remove it first")

    # 1. Read
    flickr = splits_of("flickr8k_cn", options.flickr8k_cn, ["machine"])
    aic = splits_of("aic_icc", options.aic_icc)["train"]
    with open(options.things, encoding="utf-8") as file:
        things = few_alike([row for row in map(json.loads, file) if row["split"] == "train"], options.alike)

    # 2. Mix
    held_out = set(smallest_hashes(aic["image_id"], options.aic_held_out))
    chosen = set(smallest_hashes(flickr["validation"]["image_id"], options.validation))
    rows = {
        "train": [
            *(
                row_of("flickr8k_cn", row["image_id"], row["captions"] + machine_captions(row)[: options.machine])
                for row in flickr["train"]
            ),
            *(row_of("aic_icc", row["image_id"], row["captions"]) for row in aic if row["image_id"] not in held_out),
            *(row_of("things", image_id_of(row), row["short"] + row["detailed"]) for row in things),
        ],
        "validation": [
            *(
                row_of("flickr8k_cn", row["image_id"], row["captions"])
                for row in flickr["validation"]
                if row["image_id"] in chosen
            ),
            *(row_of("aic_icc", row["image_id"], row["captions"]) for row in aic if row["image_id"] in held_out),
        ],
    }
    save(options.output, rows)
    for split, part in rows.items():
        names = [row["dataset"] for row in part]
        counts = ", ".join(f"{name} {names.count(name):,}" for name in dict.fromkeys(names))
        print(f"{split}: {len(part):,} photos ({counts})")


def row_of(dataset, image_id, captions):
    return {"image_id": image_id, "captions": captions, "dataset": dataset}


def few_alike(things, number):
    """The first so many photos of every kind of things."""
    counts, kept = Counter(), []
    for row in things:
        kind = tuple(row["words"])
        counts[kind] += 1
        if counts[kind] <= number:
            kept.append(row)
    return kept


def machine_captions(row) -> list[str]:
    """Baidu's come first, which read better than Google's of that year."""
    return [translation["caption"] for translation in row["machine"]]


if __name__ == "__main__":
    main()
