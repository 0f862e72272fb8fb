"""Your own photos and sentences: a folder of images with a CSV or JSON Lines file. docs/own_photos.md is the tutorial.

The licence is yours to know; nothing leaves this machine. `data_dir` holds

    images/                     the photos, also in folders below it; without it the photos lie in `data_dir` itself
    captions.csv                or captions.jsonl, metadata.csv, metadata.jsonl (as `imagefolder` of `datasets` has it)

with one row per sentence or one row per photo, and these columns, in capitals or not (others are counted and left out):

    file_name                   path of the photo below images/ or data_dir
    caption                     one sentence; several rows may name the same photo
    captions                    instead of it, JSON Lines only: a list of sentences
    split                       optional: train, validation (or val) or test, the same in all rows of a photo
"""

import os
from dataclasses import dataclass

import datasets

from modeling_mengzi_oscar.photos import is_apple_double, is_photo_by_content, is_photo_name

from .reading import (
    SENTENCES,
    BadRow,
    FilesBuilder,
    FilesConfig,
    Photos,
    column_name,
    csv_rows,
    find,
    get,
    json_lines,
    no_column,
    sentences_of,
    smallest_hashes,
)

_TABLES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
_COLUMNS = {"file_name", "caption", "captions", "split"}
_SPLITS = {"train": datasets.Split.TRAIN, "validation": datasets.Split.VALIDATION, "test": datasets.Split.TEST}
_SPLITS["val"] = _SPLITS["validation"]


@dataclass
class ImageCaptionsConfig(FilesConfig):
    """`validation_share`: of the photos of a file without a split column; at least one photo unless it is 0."""

    validation_share: float = 0.1


class ImageCaptions(FilesBuilder):
    """One row per photo, in the order of the file. Photos are paths, decoded when read.

    Without a split column the photos whose names have the smallest SHA-256 are the validation split: the same ones on
    every machine, and a photo that is added moves at most one other.

    Raises:
        FileNotFoundError: no file of sentences.
        ValueError: names file and row of a photo that is not there, an empty sentence, an unknown or contradicting
            split, broken UTF-8; or no row is left, two of the four files are there, or two photos differ only in
            their suffix.
    """

    BUILDER_CONFIG_CLASS = ImageCaptionsConfig

    def find_files(self, data_dir, config_name):
        found = [name for name in _TABLES if find(data_dir, name)]
        if len(found) != 1:
            problem = f"has {' and '.join(found)}: keep one" if found else f"has none of {', '.join(_TABLES)}"
            raise (ValueError if found else FileNotFoundError)(f"{data_dir} {problem}; see docs/own_photos.md")
        return {"table": os.path.join(data_dir, found[0])}

    def _info(self):
        return datasets.DatasetInfo(
            description=__doc__,
            features=datasets.Features(
                {"image_id": datasets.Value("string"), "image": datasets.Image(), "captions": SENTENCES}
            ),
        )

    def _split_generators(self, dl_manager):
        path = self.files["table"]
        photos = _photos(self.config.data_dir)
        captions, splits, other_columns = {}, {}, set()
        for where, item in _rows(path, self.row):
            if is_apple_double(item.get("file_name")):  # a table that a program made
                continue
            with self.row():
                other_columns |= item.keys() - _COLUMNS
                image_id, sentences, split = _read(where, item, photos)
                if splits.setdefault(image_id, split) != split:
                    raise ValueError(f"{where}: {image_id!r} is in split {splits[image_id]!r} above, here in {split!r}")
                captions.setdefault(image_id, []).extend(sentences)
        if not captions:
            bad = f"; the first bad one: {self.bad_rows[0]}" if self.bad_rows else ""
            raise ValueError(f"{path} has no row of a photo and a sentence{bad}; see docs/own_photos.md")
        splits = self.group(captions, splits)
        left_out = [f"{len(photos.keys() - captions.keys()):,} photos without sentences"]
        left_out += [f"columns {', '.join(sorted(other_columns))}"] if other_columns else []
        left_out += [photos.say_unnamed()] if photos.unnamed else []
        self.report(
            f"{path}: {len(captions):,} photos with {sum(map(len, captions.values())):,} sentences; "
            + ", ".join(f"{split} {len(image_ids):,}" for split, image_ids in splits.items())
            + f".\nLeft out: {'; '.join(left_out)}."
        )
        if doubled := sum(len(sentences) - len(set(sentences)) for sentences in captions.values()):
            print(f"{path}: {doubled:,} sentences stand twice for the same photo; they were kept.")
        rows = {split: tuple((i, photos[i], captions[i]) for i in image_ids) for split, image_ids in splits.items()}
        return [datasets.SplitGenerator(name=split, gen_kwargs={"rows": rows[split]}) for split in splits]

    def group(self, captions, splits):
        """{split: image ids}, from the split column, or drawn where no row has one."""
        if not any(splits.values()):
            wanted = round(self.config.validation_share * len(captions))
            drawn = set(smallest_hashes(captions, max(wanted, 1) if self.config.validation_share else 0))
            splits = {image_id: "validation" if image_id in drawn else "train" for image_id in captions}
        groups = {}
        for name in ("train", "validation", "test"):
            if ids := [image_id for image_id in captions if (splits[image_id] or "train") == name]:
                groups[_SPLITS[name]] = ids
        return groups

    def _generate_examples(self, rows):
        for number, (image_id, image, captions) in enumerate(rows):
            yield number, {"image_id": image_id, "image": image, "captions": captions}


def _photos(data_dir):
    """`Photos`; the id is the path below the folder without suffix, as `mengzi-oscar extract` has it."""
    folder = os.path.join(data_dir, "images")
    folder = folder if os.path.isdir(folder) else data_dir
    photos = Photos()
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            below = os.path.relpath(path, folder)
            if not is_photo_name(below):
                if is_photo_by_content(path):
                    photos.unnamed.append(path)
                continue
            image_id = os.path.splitext(below)[0].replace(os.sep, "/")
            if image_id in photos:
                raise ValueError(f"{path} and {photos[image_id]} have the same id {image_id!r}: rename one of them")
            photos[image_id] = path
    return photos


def _rows(path, row):
    """("file, row n", {column: value}) of either kind of table, columns in small letters."""
    if not path.endswith(".csv"):
        for where, item in json_lines(path, row):
            yield where, {column_name(name): value for name, value in item.items()}
        return
    try:
        yield from csv_rows(path, row, needs=("file_name", "caption"))
    except ValueError as error:
        hint = "; spreadsheet programs write UTF-8 when asked for 'CSV UTF-8'" if "UTF-" in str(error) else ""
        raise (BadRow if isinstance(error, BadRow) else ValueError)(f"{error}{hint}") from None


def _read(where, item, photos):
    """Image id, sentences and split (train, validation, test or None) of a row."""
    if "file_name" not in item:
        raise no_column(where, "file_name", item)
    if "caption" not in item and "captions" not in item:
        raise no_column(where, "caption", item)
    name = get(item, "file_name", str, where).strip().replace("\\", "/").removeprefix("./").removeprefix("images/")
    image_id = os.path.splitext(name)[0]
    if image_id not in photos or not photos[image_id].replace(os.sep, "/").endswith("/" + name):
        raise ValueError(f"{where}: there is no photo {item['file_name']!r}")
    given = item["captions"] if "captions" in item else [item.get("caption")]
    split = item.get("split") or None
    if isinstance(split, str):
        split = split.strip().lower() or None
    if split is not None and (not isinstance(split, str) or split not in _SPLITS):
        raise ValueError(f"{where}: split {split!r} is none of {', '.join(_SPLITS)}")
    return image_id, sentences_of(given, where), str(_SPLITS[split]) if split else None
