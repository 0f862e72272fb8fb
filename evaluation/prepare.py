"""Photos and sentences of a split, in `chinese_captions/NAME` below the current folder, where the tasks look for them.

    python -m evaluation.prepare flickr8k_cn --data-dir flickr8k-cn

The original files are laid out as docs/data.md says. Photos lie in what is written: mind their licence.
"""

import argparse
import os
import shutil
import sys

from datasets import DatasetDict, Image
from datasets.exceptions import DatasetGenerationError
from tqdm import tqdm

from datasets_scripts.prepare import builder_class
from modeling_mengzi_oscar.photos import open_photo

DATA = {  # name -> builder, its configuration, the split that the task of this name scores
    "flickr8k_cn": ("flickr8k_cn", None, "test"),
    "coco_cn": ("coco_caption", "coco_cn", "test"),
    "aic_icc": ("aic_icc", None, "validation"),
}
FOLDER = "chinese_captions"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.prepare", description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=DATA)
    parser.add_argument("--data-dir", required=True, help="the original files, laid out as docs/data.md says")
    parser.add_argument("--limit", type=int, help="so many photos, the first; for a try")
    parser.add_argument("--cache-dir", help="of datasets")
    options = parser.parse_args(arguments)
    try:
        prepare(options)
    except (ValueError, OSError, DatasetGenerationError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(options):
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit is {options.limit}; it takes 1 or more")
    output = os.path.join(FOLDER, options.name)
    if os.path.exists(output):
        raise ValueError(f"{output} exists; remove it first")
    name, config, split = DATA[options.name]
    builder = builder_class(name)(data_dir=options.data_dir, config_name=config, cache_dir=options.cache_dir)
    builder.download_and_prepare()
    rows = builder.as_dataset(split=split).select_columns(["image_id", "image", "captions"])
    rows = rows.select(range(min(len(rows), options.limit or len(rows))))
    for row in tqdm(rows.cast_column("image", Image(decode=False)), desc="photos", unit="photo"):
        if row["image"] is None:
            raise ValueError(f"{options.data_dir}: has no photo of {row['image_id']}")
        open_photo(row["image"])  # now, not in the midst of an evaluation
    partial = f"{output}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    DatasetDict({split: rows}).save_to_disk(partial)
    os.rename(partial, output)
    print(f"{output}: {len(rows):,} photos")


if __name__ == "__main__":
    sys.exit(main())
