"""Any data set, ready for training: built, every row checked to have region features, written as Parquet.

    python -m datasets_scripts.prepare coco_caption --config coco_cn --data-dir coco-cn --features STORE --output rows

The output is a folder of Parquet files that `load_dataset` opens without our code, without the photos. Features stay in
the store and are joined by image_id when batches are made. Without --features nothing is checked, without --output
nothing is written.
"""

import argparse
import importlib
import inspect
import os
import shutil
import sys

from datasets.exceptions import DatasetGenerationError

from modeling_mengzi_oscar.features.store import RegionFeatureStore

from .reading import FilesBuilder

NAMES = (
    "aic_icc",
    "coco_caption",
    "coco_ir",
    "flickr30k",
    "flickr8k_cn",
    "gqa",
    "image_captions",
    "nlvr2",
    "pretraining_corpus",
    "vg_qa",
    "vqa",
)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m datasets_scripts.prepare", description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=NAMES, help="module in datasets_scripts")
    parser.add_argument("--data-dir", required=True, help="the original files, laid out as docs/data.md says")
    parser.add_argument("--config", help="configuration, where the data set has several")
    parser.add_argument("--features", help="region feature store that must hold every image")
    parser.add_argument("--output", help="folder to create")
    parser.add_argument("--skip-missing", action="store_true", help="leave rows without features out, and count them")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out, and count them")
    parser.add_argument("--cache-dir", help="of datasets")
    options = parser.parse_args(arguments)
    try:
        prepare(options)
    except (ValueError, OSError, DatasetGenerationError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(options):
    if options.output and os.path.exists(options.output):
        raise ValueError(f"{options.output} exists; give another --output, or remove it first")

    # 1. Build
    builder = builder_class(options.name)(
        data_dir=options.data_dir,
        config_name=options.config,
        cache_dir=options.cache_dir,
        **({"skip_bad": True} if options.skip_bad else {}),
    )
    builder.download_and_prepare()
    splits = builder.as_dataset()
    if "image" in builder.info.features:
        splits = splits.remove_columns("image")

    # 2. Join
    if options.features:
        splits = check_features(splits, RegionFeatureStore.open(options.features), options.skip_missing)

    # 3. Write
    for split, rows in splits.items():
        images = {image_id for image_ids in image_ids_of(rows) for image_id in image_ids}
        print(f"{split}: {len(rows):,} rows, {len(images):,} images")
    if options.output:
        partial = options.output.rstrip("/") + ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        for split, rows in splits.items():
            rows.to_parquet(os.path.join(partial, "data", f"{split}-00000-of-00001.parquet"))
        os.rename(partial, options.output)
        print(f'{options.output}: written; load_dataset("{options.output}") reads it')


def builder_class(name):
    """The builder of a module."""
    module = importlib.import_module(f"{__package__}.{name}")
    return next(
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, FilesBuilder) and cls.__module__ == module.__name__
    )


def check_features(splits, store, skip_missing=False):
    """The splits with a row of features for every image; ValueError names the first row without, unless skipped."""
    used = set()
    for split, rows in splits.items():
        image_ids = image_ids_of(rows)
        used.update(*image_ids)
        lacking = {number: lost for number, ids in enumerate(image_ids) if (lost := [i for i in ids if i not in store])}
        missing = {image_id for lost in lacking.values() for image_id in lost}
        if missing and not skip_missing:
            raise ValueError(
                f"{store.path} has no features of {len(missing):,} images of split {split}, the first in "
                f"{named(lacking)}; extract them, or leave the rows out with --skip-missing"
            )
        if missing:
            print(
                f"{split}: left out {len(lacking):,} rows of {len(missing):,} images without features: {named(lacking)}"
            )
            splits[split] = rows.select([number for number in range(len(rows)) if number not in lacking])
    print(f"{store.path}: {sum(image_id not in used for image_id in store):,} images without a row")
    return splits


def named(lacking, most=20) -> str:
    """The rows and their images, so many of them, and how many there are beside."""
    text = ", ".join(f"row {row + 1}: {' '.join(map(repr, lost))}" for row, lost in list(lacking.items())[:most])
    return text + (f" and {len(lacking) - most:,} more" if len(lacking) > most else "")


def image_ids_of(rows):
    """The image ids of every row: one, or two in NLVR2."""
    return rows["image_ids"][:] if "image_ids" in rows.column_names else [[image_id] for image_id in rows["image_id"]]


if __name__ == "__main__":
    sys.exit(main())
