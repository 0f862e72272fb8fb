"""Data are judged before the work: one table of what cannot be used, then the start is refused, or the rows left out.

What a training would only meet hours later (an image without features, a photo that is cut short, a reference without
a word, one photo where wrong pairs are drawn from others) is looked for in every row here, and all of it is named.
"""

import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from metrics.caption_zh.segmentation import words_of

from .collators import open_image
from .report import say, write_beside
from .trainer import in_order, share_of

MISSING, SENTENCE, WORD, ANSWER, PHOTO = (
    "without features",
    "without a sentence",
    "without a scorable word",
    "without an answer",
    "unreadable photos",
)
NAMED = 20  # so many rows stand in a message; all of them in the file
FILE = "unusable_rows.tsv"


def usable_splits(
    splits, names, options, training, *, columns=(), stores=None, texts=None, scorable=False, photo=None, **few
):
    """The splits `names` without the rows that cannot be used; the other splits as they are.

    Args:
        splits: {split: rows}. columns: what these splits must have; each row of a training has some of its `labels`.
        stores: region stores that must hold every image; or {data set, or None: stores}. The first is the plain one,
            the others are read by trainings alone: images of other splits may be missing in them.
        texts: the column of sentences, a text or a list of them a row; None: rows may go without.
        scorable: each sentence must have a word beside its punctuation, or CIDEr and BLEU are not defined.
        photo: what is done with a row's photo, `check_photo` for instance; it raises ValueError. None: not looked at.
        few: {split: (least number of rows, why)}.

    Raises:
        SystemExit: one line that names what cannot be used, and the flag that leaves it out.
    """
    file = Path(training.output_dir) / FILE
    problems, kept, lost = {}, dict(splits), {}  # split -> kind -> {row: what it is}
    check_columns(splits, names, columns)
    for name in names:
        rows = splits[name]
        answered = "labels" in columns and not training.do_predict
        needed = stores if name == "train" or stores is None else plain(stores)
        problems[name] = look_at(rows, needed, texts, scorable, answered, photo, training)
        kept[name], lost[name] = without(rows, problems[name], texts)
    say(table(splits, names, problems, lost, few))
    named = [f"{kind}: {listed(found, name)}" for name in names for kind, found in problems[name].items() if found]
    if training.should_save:
        file.unlink(missing_ok=True)
        if named:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_beside(file, report_of(problems))
    if named:
        named.append(f"all in {file}")
    kinds = {kind for found in problems.values() for kind, rows in found.items() if rows}
    kinds -= {SENTENCE} if texts == "captions" else set()  # COCO has photos that nobody described: they only go
    flags = {"skip_missing" if kind == MISSING else "skip_bad" for kind in kinds}
    if wanted := [f"--{flag}" for flag in sorted(flags) if not getattr(options, flag)]:
        flags = " ".join(wanted)
        raise SystemExit(f"these data cannot be used: {'; '.join(named)}. Fix them, or leave them out with {flags}")
    if named:
        say(f"left out: {'; '.join(named)}")
    for name in names:
        least, why = few.get(name, (1, "there is nothing to work on"))
        if len(kept[name]) < least:
            raise SystemExit(f"--dataset: split {name} has {len(kept[name])} usable rows, {least} are needed: {why}")
    return kept


def check_columns(splits, names, columns):
    """
    Raises:
        SystemExit: one of the splits `names` has no column of one of these names.
    """
    for name in names:
        if lacking := [column for column in columns if column not in splits[name].column_names]:
            there = ", ".join(splits[name].column_names)
            raise SystemExit(f"--dataset has no column {lacking[0]}: split {name} has {there}")


def look_at(rows, stores, texts, scorable, answered, photo, training) -> dict[str, dict[int, str]]:
    """{kind: {row: its image}}, of the kinds that are looked at."""
    problems = {}
    names = [" ".join(ids) for ids in image_ids_of(rows)]
    if stores is not None:
        problems[MISSING] = without_features(rows, stores if isinstance(stores, dict) else {None: stores})
    if texts is not None:
        sentences = [given if isinstance(given, list) else [given] for given in rows[texts]]
        said = [[text for text in given if text and text.strip()] for given in sentences]
        problems[SENTENCE] = {row: names[row] for row, given in enumerate(said) if not given}
        if scorable:
            wordless = {row: [text for text in given if not has_words(text)] for row, given in enumerate(said)}
            problems[WORD] = {row: f"{names[row]} {' '.join(given)}" for row, given in wordless.items() if given}
    if answered:
        problems[ANSWER] = {row: names[row] for row, labels in enumerate(rows["labels"]) if not labels}
    if photo is not None:
        problems[PHOTO] = unreadable_photos(rows, photo, training)
    return problems


def plain(stores):
    if isinstance(stores, dict):
        return {name: group[:1] for name, group in stores.items()}
    return stores[:1]


def without_features(rows, stores) -> dict[int, str]:
    """{row: what is missing where}; every image has to be in each store of its data set."""
    ids = image_ids_of(rows)
    datasets = rows["dataset"][:] if "dataset" in rows.column_names else [None] * len(rows)
    absent = {}
    keys = [[(dataset, image_id) for image_id in row] for dataset, row in zip(datasets, ids, strict=True)]
    for dataset, image_id in {key for row in keys for key in row}:
        group = stores.get(dataset, stores.get(None))
        if group is None:
            raise SystemExit(f"--features names stores for {', '.join(stores)}, and none for the images of {dataset}")
        if lacking := [str(store.path) for store in group if image_id not in store]:
            absent[dataset, image_id] = f"{image_id} in {' and '.join(lacking)}"
    if not absent:
        return {}
    lost = [[absent[key] for key in row if key in absent] for row in keys]
    return {row: ", ".join(texts) for row, texts in enumerate(lost) if texts}


def without(rows, problems, texts):
    """The rows that can be used, and the numbers of the others. A sentence without a word costs itself alone."""
    lost = {row for kind, found in problems.items() if kind != WORD for row in found}
    if wordless := problems.get(WORD):
        rows = rows.map(with_words, fn_kwargs={"column": texts}, desc="sentences with words")
        lost |= {row for row in wordless if not rows[row][texts]}
    return rows.select([row for row in range(len(rows)) if row not in lost]) if lost else rows, lost


def with_words(row, column):
    return {column: [text for text in row[column] if has_words(text)]}


def has_words(text) -> bool:
    return bool(words_of(text, "char", "drop"))


def image_ids_of(rows):
    """The image ids of every row: one, or two in NLVR2."""
    if "image_ids" in rows.column_names:
        return rows["image_ids"][:]
    return [[image_id] for image_id in rows["image_id"]]


def unreadable_photos(rows, photo, training) -> dict[int, str]:
    """{row: what is wrong}. Every photo is decoded once: that one is cut short shows nowhere else."""
    images = rows.select_columns("image") if "image" in rows.column_names else None

    def problem(row):
        try:
            image = images and images[row]["image"]
            if not image:
                raise ValueError(f"{rows[row]['image_id']}: the data have no photo of it")
            photo(image)
        except ValueError as error:
            return " ".join(str(error).split())

    share = share_of(len(rows))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(problem, share), "photos", len(share), leave=False, disable=training.disable_tqdm)
        found = in_order(list(zip(share, bar, strict=True)))
    return {row: text for row, text in enumerate(found) if text}


def check_photo(image, image_processor=None):
    """Decodes a photo; raises ValueError if it cannot be, or is too thin for the image processor's region model."""
    photo = open_image(image)
    if hasattr(image_processor, "resized_size"):
        try:
            image_processor.resized_size(photo.height, photo.width)
        except ValueError as error:
            raise ValueError(f"{image['path']}: {error}") from None


def table(splits, names, problems, lost, few) -> str:
    """Counts of every kind for each split; – where a job does not look for it."""
    rows = [["data", *names], ["rows", *(f"{len(splits[name]):,}" for name in names)]]
    for kind in (MISSING, SENTENCE, WORD, ANSWER, PHOTO):
        counts = [problems[name].get(kind) for name in names]
        rows.append([kind, *("–" if found is None else f"{len(found):,}" for found in counts)])
    usable = {name: len(splits[name]) - len(lost[name]) for name in names}
    rows.append(["usable", *(f"{usable[name]:,}" for name in names)])
    rows.append(["too few to draw from", *("yes" if usable[n] < few.get(n, (1, ""))[0] else "no" for n in names)])
    return "\n".join(f"{row[0]:<24}" + "".join(f"{value:>14}" for value in row[1:]) for row in rows)


def listed(found, split) -> str:
    """The first rows by number and name, and how many more there are."""
    text = ", ".join(f"{split} row {row + 1} ({what})" for row, what in list(found.items())[:NAMED])
    return text + (f" and {len(found) - NAMED:,} more" if len(found) > NAMED else "")


def report_of(problems) -> str:
    lines = defaultdict(list)
    for split, kinds in problems.items():
        for kind, found in kinds.items():
            lines[split] += [f"{split}\t{row + 1}\t{kind}\t{' '.join(what.split())}\n" for row, what in found.items()]
    return "split\trow\tproblem\twhat\n" + "".join(line for split in lines.values() for line in split)
