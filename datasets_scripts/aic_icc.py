"""AIC-ICC: 300,000 photos of people with five Chinese sentences each, of the AI Challenger competition of 2017.

Source: Wu et al., "AI Challenger: A Large-scale Dataset for Going Deeper in Image Understanding", 2017
(arXiv 1711.06475), https://github.com/AIChallenger/AI_Challenger_2017. The data was given out for research under the
terms of the competition, which is over; ask whoever you have it from.

`data_dir` holds the unpacked archives, or their JSON files and folders of photos directly:

    ai_challenger_caption_train_20170902/
        caption_train_annotations_20170902.json
        caption_train_images_20170902/<image_id>
    ai_challenger_caption_validation_20170910/      the same with validation and 20170910
    ai_challenger_caption_test_a_20180103/          the same with test_a (test_b) and 20180103, if you have them

An annotation file is a JSON list of {"url": "..", "image_id": "<40 hexadecimal digits>.jpg", "caption": ["..", ..]}.

Retrieval: Mengzi-Oscar was evaluated on 1,000 validation photos whose list was not published. Ours, the split
"retrieval_1k", are the 1,000 validation photos whose ids (without .jpg) have the smallest SHA-256.
"""

import os

import datasets

from .reading import (
    SENTENCES,
    SplitsBuilder,
    find,
    find_photos,
    get,
    json_items,
    photo_of,
    require,
    say_photos,
    sentences_of,
    smallest_hashes,
)

_PARTS = {  # split: name and date in the files
    "train": ("train", "20170902"),
    "validation": ("validation", "20170910"),
    "test_a": ("test_a", "20180103"),
    "test_b": ("test_b", "20180103"),
}


def retrieval_keys(image_ids, count=1000):
    """The ids of the retrieval test: those with the smallest SHA-256, smallest first."""
    return smallest_hashes(image_ids, count)


class AicIcc(SplitsBuilder):
    """One row per photo; splits train 210,000 / validation 30,000, test_a and test_b where there, retrieval_1k.

    Raises:
        FileNotFoundError: no annotation file.
        ValueError: names file and item of an empty sentence, a photo that is not there or came before, broken JSON.
    """

    def find_files(self, data_dir, config_name):
        names = {split: f"caption_{part}_annotations_{date}.json" for split, (part, date) in _PARTS.items()}
        folders = {split: f"ai_challenger_caption_{part}_{date}" for split, (part, date) in _PARTS.items()}
        paths = {split: find(data_dir, name, f"{folders[split]}/{name}") for split, name in names.items()}
        files = {split: path for split, path in paths.items() if path}
        if not files:
            require((), names.values(), data_dir, "docs/data.md says where it is from")
        return files

    def _info(self):
        return datasets.DatasetInfo(
            description=__doc__,
            features=datasets.Features(
                {
                    "image_id": datasets.Value("string"),
                    "image": datasets.Image(),
                    "captions": SENTENCES,
                    "url": datasets.Value("string"),
                }
            ),
            homepage="https://github.com/AIChallenger/AI_Challenger_2017",
            license="Research use, terms of the AI Challenger competition.",
        )

    def read(self):
        splits = {split: self.read_part(split, path) for split, path in self.files.items()}
        if "validation" in splits:
            rows = {row["image_id"]: row for row in splits["validation"]}
            splits["retrieval_1k"] = [rows[image_id] for image_id in retrieval_keys(rows)]
        return splits

    def read_part(self, split, path):
        """Rows of an annotation file, in its order."""
        part, date = _PARTS[split]
        photos = find_photos(os.path.dirname(path), f"caption_{part}_images_{date}")
        rows = {}
        for where, item in json_items(path, row=self.row):
            with self.row():
                image_id = get(item, "image_id", str, where).removesuffix(".jpg")
                if image_id in rows:
                    raise ValueError(f"{where}: {image_id!r} came before")
                rows[image_id] = {
                    "image_id": image_id,
                    "image": photo_of(photos, image_id, where),
                    "captions": sentences_of(get(item, "caption", list, where), where),
                    "url": item.get("url"),
                }
        sentences = sum(len(row["captions"]) for row in rows.values())
        self.report(
            f"AIC-ICC {split}: {len(rows):,} photos with {sentences:,} sentences. Left out: {say_photos(photos, rows)}."
        )
        return rows.values()
