"""`mengzi-oscar search`: the photos that a sentence fits best."""

import os
import sys
from glob import glob, has_magic
from pathlib import Path

from .checkpoint import load_pipeline
from .options import add_model, named, whole
from .output import fail, print_row, printable

MAX_TOP = 100_000  # more is a mistake
MAX_PICTURED = 100  # photos of a sentence


def add_arguments(parser):
    parser.add_argument(
        "words",
        nargs="+",
        metavar="PHOTOS… SENTENCE",
        help="photos, folders, lists (.txt, .csv, .jsonl), tar shards, datasets or patterns in quotes; then sentences",
    )
    add_model(parser)
    parser.add_argument("--top", type=whole(1, MAX_TOP), default=5, help="photos printed of a sentence (default 5)")
    parser.add_argument(
        "--prepared", type=named, metavar="FOLDER", help="keep what was seen in the photos there, for the next search"
    )
    parser.add_argument("--picture", metavar="PNG", help="the best photos")
    parser.add_argument("--json", action="store_true", help="a JSON object for each sentence")


def run(options) -> int:
    from ..demo.pictures import check_picture
    from ..features.photo_sources import open_source
    from ..features.prepared import StampedPhotos, contents, prepare, stored
    from ..photos import PhotoError

    status, sources = 0, []
    try:
        names, sentences = photos_and_sentences(options.words)
        if options.picture is not None:
            check_picture(options.picture, names)
        for name in names:
            try:
                sources += [open_source(path) for path in paths_of(name)]
            except PhotoError as error:  # it costs this name only
                status = fail(error)
        if not sources:
            return status
        pipeline = load_pipeline(options)
        pipeline.rank(sentences, [])  # says what cannot work before any photo is looked at
        photos, names = StampedPhotos(sources), []
        if options.prepared is None:
            seen, total = contents(photos, names), photos.total
        else:
            there, errors = prepare(pipeline, photos, options.prepared)
            for error in errors:
                status = fail(error)
            names, total, store = [name for _, name in there], len(there), stored(options.prepared)
            seen = (pipeline.seen(store[stamp], name) for stamp, name in there)
        rankings = pipeline.rank(sentences, watched(seen, total), options.top)
    except ValueError as error:
        return fail(error)
    for error in [row["error"] for row in rankings[0] if "error" in row]:
        status = fail(error)
    for source in sources:
        if source.passed_over.count:
            print(printable(str(source.passed_over)), file=sys.stderr)
    best = [[row for row in ranking if "error" not in row] for ranking in rankings]
    for sentence, ranking in zip(sentences, best, strict=True):
        rows = [
            {"rank": rank, "photo": names[row["photo"]], "probability": round(row["probability"], 4)}
            for rank, row in enumerate(ranking, start=1)
        ]
        if options.json:
            print_row(True, {"sentence": sentence, "photos": rows})
            continue
        for row in rows:
            columns = str(row["rank"]), f"{row['probability']:.3f}", row["photo"]
            print_row(False, row, *([sentence] if len(sentences) > 1 else []), *columns)
    if options.picture is not None and best[0]:
        draw(photos, sentences, [[(names[row["photo"]], row) for row in ranking] for ranking in best], options.picture)
    return status


def photos_and_sentences(words) -> tuple[list[str], list[str]]:
    """Of the words of a command line the photos (whatever is there, or looks like a path), then the sentences.

    Raises:
        ValueError: no sentence, or a photo after one.
    """
    number = 1
    while number < len(words) and is_path(words[number]):
        number += 1
    photos, sentences = words[:number], words[number:]
    if not sentences:
        raise ValueError("mengzi-oscar search: a sentence is missing; photos come first, then what to look for")
    if among := [word for word in sentences if is_path(word)]:
        raise ValueError(f"{among[0]}: is a file, not a sentence; photos come first, then what to look for")
    return photos, sentences


def is_path(word) -> bool:
    from ..features.photo_sources import LIST_SUFFIXES, TAR_SUFFIXES
    from ..photos import SUFFIXES

    if os.path.exists(word) or word.lower().endswith((*SUFFIXES, *LIST_SUFFIXES, *TAR_SUFFIXES, os.sep)):
        return True
    return has_magic(word) and bool(glob(word)) or ("/" in word and word.isascii() and " " not in word)


def paths_of(name) -> list[str]:
    """A name, or what a pattern that the shell has left matches."""
    if os.path.lexists(name) or not has_magic(name):
        return [name]
    from ..photos import PhotoError, is_apple_double

    found = sorted(path for path in glob(name, recursive=True) if os.path.isfile(path) and not is_apple_double(path))
    if not found:
        raise PhotoError(f"{name}: no file matches; check the pattern and its folder")
    return found


def watched(photos, total):
    from tqdm import tqdm

    return tqdm(photos, total=total, unit="photo", delay=2, disable=None, leave=False, file=sys.stderr)


def draw(photos, sentences, best, path):
    """The best photos of each sentence as a PNG; they are opened once more."""
    from ..demo.pictures import draw_found, save_picture
    from ..photos import open_photo

    best = [ranking[:MAX_PICTURED] for ranking in best]
    wanted, opened = {name for ranking in best for name, _ in ranking}, {}
    for photo in photos.fetch_photos():
        if photo.name in wanted:
            opened[photo.name] = open_photo(photo.fetch(), name=photo.name)
            opened[photo.name].thumbnail((800, 800))  # hundreds of whole ones would fill the memory
    found = [
        [(opened[name], f"{row['probability']:.3f}  ·  {Path(name).name}") for name, row in ranking] for ranking in best
    ]
    save_picture(draw_found(list(zip(sentences, found, strict=True))), path)
    print(f"picture: {printable(str(path))}", file=sys.stderr)
