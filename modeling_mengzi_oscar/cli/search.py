"""`mengzi-oscar search`: the photos that a sentence fits best."""

import sys
from pathlib import Path

from .checkpoint import load_pipeline
from .options import add_model, named, whole
from .output import fail, print_row, printable
from .photos import PHOTO_HELP, find_photos, photos_and_texts

MAX_TOP = 100_000  # more is a mistake
MAX_PICTURED = 100  # photos of a sentence


def add_arguments(parser):
    parser.add_argument(
        "words",
        nargs="+",
        metavar="PHOTOS… SENTENCE",
        help=f"each a {PHOTO_HELP}; then sentences",
    )
    add_model(parser)
    parser.add_argument("--top", type=whole(1, MAX_TOP), default=5, help="photos to print per sentence (default 5)")
    parser.add_argument(
        "--prepared", type=named, metavar="FOLDER", help="cache the regions of the photos there, for the next search"
    )
    parser.add_argument("--picture", metavar="PNG", help="the best photos")
    parser.add_argument("--json", action="store_true", help="one JSON object per sentence")


def run(options) -> int:
    from ..demo.pictures import check_picture
    from ..features.prepared import StampedPhotos, contents, prepare, stored
    from ..progress import Progress

    status = 0
    try:
        names, sentences = photos_and_texts(options.words, "sentence")
        if options.picture is not None:
            check_picture(options.picture, names)
        source = find_photos(names)
        pipeline = load_pipeline(options)
        pipeline.rank(sentences, [])  # says what cannot work before any photo is looked at
        photos, names = StampedPhotos(source), []
        if options.prepared is None:
            seen, total = contents(photos, names), lambda: photos.total
        else:
            there, errors = prepare(pipeline, photos, options.prepared)
            for error in errors:
                status = fail(error)
            names, store = [name for _, name in there], stored(options.prepared)
            seen, total = (pipeline.seen(store[stamp], name) for stamp, name in there), lambda: len(there)
        with Progress(total).begin() as progress:
            rankings = pipeline.rank(sentences, watched(seen, progress), options.top)
    except ValueError as error:
        return fail(error)
    for error in [row["error"] for row in rankings[0] if "error" in row]:
        status = fail(error)
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


def watched(photos, progress):
    """The photos; how far they are is said as they are taken."""
    for photo in photos:
        yield photo
        progress.update()


def draw(photos, sentences, best, path):
    """The best photos of each sentence as a PNG; they are opened once more."""
    from ..demo.pictures import draw_found, save_picture
    from ..photos import PhotoError, open_photo

    best = [ranking[:MAX_PICTURED] for ranking in best]
    wanted, opened = {name for ranking in best for name, _ in ranking}, {}
    for photo in photos.fetch_photos():
        if photo.name in wanted:
            try:
                opened[photo.name] = open_photo(photo.fetch(), name=photo.name)
            except PhotoError as error:  # it went after it was found
                fail(error)
                continue
            opened[photo.name].thumbnail((800, 800))  # hundreds of whole ones would fill the memory
    if not opened:
        return
    found = [
        [(opened[name], f"{row['probability']:.3f}  ·  {Path(name).name}") for name, row in ranking if name in opened]
        for ranking in best
    ]
    save_picture(draw_found(list(zip(sentences, found, strict=True))), path)
    print(f"picture: {printable(str(path))}", file=sys.stderr)
