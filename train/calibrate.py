"""Measures how often the captions of a checkpoint are right at which score, and lets it say so: its confidence.

    python train/calibrate.py --model_name_or_path outputs/mine/best --dataset flickr8k_cn \\
        --data_dir data/flickr8k-cn --features stores/flickr8k-cn --test_split validation

Each photo is captioned in every style; a caption is right where people's sentences of the photo bear out the things,
persons and activities in it (common/supported_words.py). Captions that were judged otherwise come by --judged: rows of
JSON with `caption`, `score` and `right` (true or false), perhaps `style`: those of `mengzi-oscar caption --output
captions.jsonl` that somebody read, for instance. Take photos that neither trained the checkpoint nor are its test.

Confidence is fitted by logistic regression on the logarithm of the score and on the length (Platt, 1999), per style.
It is written into processor_config.json of the checkpoint, which from then on tells `confidence` and `probably_wrong`
of each caption, as long as its weights stay what they are and the search is this one. The table that is printed is of
photos held out in turn (tenfold); --report_only prints that of the checkpoint's confidence, and writes nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common.arguments import (
    DATASET_HELP,
    flag,
    load_splits,
    parse_arguments,
    split_of,
    stores_of_datasets,
    told_in_one_line,
)
from common.calibration import Judged, fit, held_out_confidences, table, write_calibrations
from common.report import say, write_rows
from common.supported_words import is_right
from tqdm.auto import tqdm

from modeling_mengzi_oscar import MengziOscarPipeline
from modeling_mengzi_oscar.confidence import confidence
from modeling_mengzi_oscar.features.stored_photos import StoredPhotos, stored_photo
from modeling_mengzi_oscar.loading import load_checked

TOGETHER = 32  # photos captioned together
AT_LEAST = 100  # captions of a style, or the fit is chance


@dataclass
class CalibrationArguments:
    model_name_or_path: str = flag("The captioner: a folder, into which its confidence is written.")
    dataset: str | None = flag(f"{DATASET_HELP} Photos with people's sentences.", default=None)
    data_dir: str | None = flag("Folder with the builder's original files, as docs/data.md says.", default=None)
    dataset_config: str | None = flag("Configuration of the data set, where it has several.", default=None)
    test_split: str = flag("Split whose photos are captioned.", default="validation")
    features: list[str] = flag(
        "Region feature stores of the photos. NAME=STORE for rows with a column dataset. Without any the data set's "
        "photos are looked at.",
        default_factory=list,
    )
    judged: list[str] = flag("JSON Lines files of captions that are judged already.", default_factory=list)
    max_eval_rows: int | None = flag("Only the first N photos of the split. If not given, all.", default=None)
    report_only: bool = flag("Only say how far the confidence that the checkpoint has can be trusted.", default=False)
    output: str | None = flag("JSON Lines file for the captions and whether they are right.", default=None)
    dtype: str = flag(
        "Compute dtype, as in mengzi-oscar caption.",
        default="auto",
        choices=["auto", "float32", "bfloat16", "int8"],
    )
    skip_bad: bool = flag("Leave out rows that the builder refuses.", default=False)


@told_in_one_line
def main(arguments=None):
    [options] = parse_arguments(CalibrationArguments, description=__doc__, arguments=arguments)
    folder = Path(options.model_name_or_path)
    if not options.report_only and not (folder / "processor_config.json").is_file():
        raise SystemExit(f"--model_name_or_path {folder}: is no folder of a checkpoint with a processor_config.json")
    if options.dataset is None and not options.judged:
        raise SystemExit("--dataset or --judged is missing: captions that can be judged")

    # 1. Captions, and whether each is right
    looks = options.dataset is not None and not options.features  # at photos
    pipeline = MengziOscarPipeline.from_pretrained(folder, dtype=options.dtype, region_model=looks)
    styles = pipeline.processor.styles or {None: pipeline.processor.tokenizer.cls_token}
    rows = [row for path in options.judged for row in read_judged(path)]
    if options.dataset is not None:
        split = split_of(load_splits(options, options.test_split), options.test_split)
        split = split.select(range(min(len(split), options.max_eval_rows or len(split))))
        rows += caption_split(pipeline, split, list(styles), options)
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        write_rows(Path(options.output), rows)
    captions = [judged(row, styles, pipeline.processor) for row in rows]

    # 2. What the score is worth, by style
    fitted, counts = {}, {}
    for style, token in styles.items():
        of_style = [one for one in captions if one.token == token]
        if not of_style:
            continue
        name = style or "captions"
        if options.report_only:
            if (calibration := pipeline.calibrations.get(token)) is None:
                raise SystemExit(f"{folder}: knows no confidence of {name}; leave out --report_only to measure it")
            found = np.array([confidence(calibration, one.score, one.tokens) for one in of_style])
        elif len(of_style) < AT_LEAST:
            say(f"{name}: {len(of_style):,} captions are too few, at least {AT_LEAST} are needed; left out")
            continue
        else:
            found = held_out_confidences(of_style)
            fitted[token], counts[token] = fit(of_style), len(of_style)
        print(f"\n{name}\n\n{table(of_style, found)}")

    # 3. Into the checkpoint
    if fitted:
        beams = (
            pipeline.captioner.generation_setting("num_beams", None, pipeline.captioner.open_settings(None, {})) or 1
        )
        write_calibrations(folder, fitted, beams, counts, load_checked(type(pipeline.captioner), folder))
        print(f"\n{folder / 'processor_config.json'}: confidence of {', '.join(fitted)}")
    elif not options.report_only:
        raise SystemExit(f"nothing was written: no style has {AT_LEAST} captions")


def judged(row, styles, processor) -> Judged:
    """
    Raises:
        ValueError: a style that the checkpoint does not write in.
    """
    token = {None: processor.tokenizer.cls_token, **styles}.get(row.get("style"))
    if token is None:
        raise ValueError(f"{row['source']}: has captions of the style {row['style']!r}, which this checkpoint lacks")
    return Judged(row["source"], token, row["score"], len(processor.token_ids(row["caption"])), row["right"])


def read_judged(path) -> list[dict]:
    """
    Raises:
        ValueError: a line is no caption with a score that is judged; names it.
    """
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                caption, score, right = str(row["caption"]), float(row["score"]), row["right"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path}: line {number} has no caption, score and right; give JSON with all") from None
            if not isinstance(right, bool) or not 0 <= score <= 1:
                raise ValueError(f"{path}: line {number}: right must be true or false, and score from 0 to 1")
            rows.append(row | {"source": Path(path).stem, "caption": caption, "score": score})
    return rows


def caption_split(pipeline, split, styles, options) -> list[dict]:
    """A row for each photo and style: its caption, and whether its sentences bear it out."""
    seen = stored_photos(pipeline, split, options) if options.features else split["image"]
    rows = []
    for start in tqdm(range(0, len(split), TOGETHER), desc="captions", unit_scale=TOGETHER, unit="photo", leave=False):
        chosen = split.select(range(start, min(start + TOGETHER, len(split))))
        photos = pipeline.look(list(seen[start : start + TOGETHER]))
        for style in styles:
            for row, result in zip(chosen, pipeline.caption(photos, style=style), strict=True):
                if "error" in result:
                    say(f"left out: {result['error']}")
                    continue
                source = row.get("dataset") or Path(options.dataset).name
                rows.append(
                    {"source": source, "style": style, "image_id": row["image_id"], "caption": result["caption"]}
                    | {"score": round(result["score"], 4), "right": is_right(result["caption"], row["captions"])}
                )
    return rows


def stored_photos(pipeline, split, options) -> list:
    """What was seen in the photos of a split, out of its stores.

    Raises:
        ValueError: a store of other regions, or without one of the photos.
    """
    stores, readers = stores_of_datasets(options), {}
    for name, (store, *_) in stores.items():
        readers[name] = StoredPhotos(store), StoredPhotos(store).labels_for(options.model_name_or_path)
        readers[name][0].check_width(pipeline.captioner.config)
    seen = []
    for row in split.select_columns([name for name in ("image_id", "dataset") if name in split.column_names]):
        stored, labels = readers.get(row.get("dataset")) or readers.get(None) or (None, None)
        if stored is None or row["image_id"] not in stored.store:
            raise ValueError(f"--features: no store has the image {row['image_id']}; extract it first")
        seen.append(stored_photo(stored.store[row["image_id"]], labels, row["image_id"]))
    return seen


if __name__ == "__main__":
    main()
