"""The sentences of people about Flickr8k-CN and AIC-ICC and those about things, as one data set with two styles.

    python train/mini/mix_captions.py --flickr8k_cn data/flickr8k-cn --aic_icc data/aic-icc \\
        --things data/thing_sentences.jsonl --output data/mini_objects

    style     short ([CLS])                              detailed ([MT])
    photos    Flickr8k-CN, things                        AIC-ICC, things; Flickr8k-CN's sentences from 12 characters on

A row is a photo in one style: image_id, captions, style, dataset; `--features NAME=STORE` of train/caption.py names the
stores of each data set. Rows for validation are Flickr8k-CN's (the first by SHA-256) and some of AIC-ICC's training
photos, which are not trained on: its validation photos choose nothing. Sentences about things are no references; their
held-out photos are for score_things.py.
"""

import argparse
import json
from pathlib import Path

from datasets import Dataset

from datasets_scripts.prepare import builder_class
from datasets_scripts.reading import smallest_hashes

LONG = 12  # characters of a sentence from which it is detailed


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k_cn", required=True, help="its files, laid out as docs/data.md says")
    parser.add_argument("--aic_icc", required=True, help="its files, laid out as docs/data.md says")
    parser.add_argument("--things", required=True, help="what write_thing_sentences.py wrote")
    parser.add_argument("--output", required=True, type=Path, help="folder to create; must not exist")
    parser.add_argument("--validation", type=int, default=300, help="photos of Flickr8k-CN (default %(default)s)")
    parser.add_argument("--aic_held_out", type=int, default=50, help="photos of AIC-ICC's (default %(default)s)")
    parser.add_argument(
        "--flickr8k_rounds",
        type=int,
        default=1,
        help="rows per Flickr8k-CN photo in the short style (default %(default)s)",
    )
    parser.add_argument("--aic_rounds", type=int, default=3, help="rows per AIC-ICC photo (default %(default)s)")
    parser.add_argument(
        "--imagenet_rounds",
        type=int,
        default=1,
        help="rows per ImageNet photo (default %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.output.exists():
        parser.error(f"{options.output} exists; give another --output, or remove it first")

    # 1. Read
    flickr, aic = splits_of("flickr8k_cn", options.flickr8k_cn), splits_of("aic_icc", options.aic_icc)
    with open(options.things, encoding="utf-8") as file:
        things = [row for row in map(json.loads, file) if row["split"] == "train"]
    things = [
        row for row in things for _ in range(options.imagenet_rounds if row["image"].startswith("imagenet/") else 1)
    ]

    # 2. Mix
    held_out = set(smallest_hashes([row["image_id"] for row in aic["train"]], options.aic_held_out))
    chosen = set(smallest_hashes([row["image_id"] for row in flickr["validation"]], options.validation))
    of_aic = [row_of("aic_icc", row["image_id"], row["captions"], "detailed") for row in aic["train"]]
    of_flickr = [row_of("flickr8k_cn", row["image_id"], row["captions"], "short") for row in flickr["train"]]
    rows = {
        "train": [
            *of_flickr * options.flickr8k_rounds,
            *(row | {"style": "detailed", "captions": long_ones(row["captions"])} for row in of_flickr),
            *[row for row in of_aic if row["image_id"] not in held_out] * options.aic_rounds,
            *(row_of("things", image_id_of(row), row["short"], "short") for row in things),
            *(row_of("things", image_id_of(row), row["detailed"], "detailed") for row in things),
        ],
        "validation": [
            *(
                row_of("flickr8k_cn", row["image_id"], row["captions"], "short")
                for row in flickr["validation"]
                if row["image_id"] in chosen
            ),
            *(row for row in of_aic if row["image_id"] in held_out),
        ],
    }
    rows = {split: [row for row in part if row["captions"]] for split, part in rows.items()}

    # 3. Save
    save(options.output, rows)
    for split, part in rows.items():
        kinds = [(row["dataset"], row["style"]) for row in part]
        counts = ", ".join(f"{name} {style} {kinds.count((name, style)):,}" for name, style in dict.fromkeys(kinds))
        print(f"{split}: {len(part):,} rows ({counts})")


def splits_of(name, data_dir, more=(), config=None):
    """The splits of a builder: image_id, captions and `more` columns."""
    builder = builder_class(name)(data_dir=data_dir, config_name=config)
    builder.download_and_prepare()
    return {split: rows.select_columns(["image_id", "captions", *more]) for split, rows in builder.as_dataset().items()}


def row_of(dataset, image_id, captions, style):
    """Sentences end with a full stop, whoever wrote them."""
    captions = [f"{text.strip().rstrip('。.！!')}。" for text in captions]
    return {"image_id": image_id, "captions": captions, "style": style, "dataset": dataset}


def image_id_of(thing) -> str:
    """The name of a thing's photo in its store."""
    return thing["image"].rpartition(".")[0]


def save(folder, rows):
    """{split: rows} as Parquet, in a folder that appears when it is whole."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for split, part in rows.items():
        Dataset.from_list(part).to_parquet(partial / f"{split}.parquet")
    partial.rename(folder)


def long_ones(captions):
    return [text for text in captions if len(text.rstrip("。")) >= LONG]


if __name__ == "__main__":
    main()
