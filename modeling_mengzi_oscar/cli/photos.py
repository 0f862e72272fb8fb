"""What `caption`, `ask` and `match` share: photos in a stream, results in order, on the screen or in a file."""

import os
import sys
from contextlib import nullcontext
from glob import glob, has_magic
from importlib.util import find_spec
from itertools import chain

from .checkpoint import BUNDLED, model_or_bundled
from .options import whole
from .output import RowFile, check_output, fail, print_row, printable, rounded

PHOTO_HELP = "photo, folder, list (.txt, .csv, .jsonl), tar shards, Parquet or a pattern in quotes, e.g. '*.jpg'"


def add_output(parser):
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument(
        "--output", metavar="FILE", help="write rows to a .jsonl or .csv; a killed run resumes when started again"
    )
    parser.add_argument(
        "--batch-size", type=whole(1, 1024), help="maximum photos per batch (default: up to 32, as memory allows)"
    )


def photos_and_texts(words, what):
    """The words of a command line: photos (whatever is there, or looks like a path), then texts.

    Args:
        what: the texts are, for messages.

    Raises:
        ValueError: a photo among the texts, or no text.
    """
    number = 1
    while number < len(words) and is_path(words[number]):
        number += 1
    photos, texts = words[:number], words[number:]
    among = [text for text in texts or photos[-1:] if is_path(text)]
    if among:
        more = f" ({len(among)} such)" if len(among) > 1 else ""
        raise ValueError(f"{among[0]}: is a file, not a {what}; photos come first, then a {what}{more}")
    if not texts:
        raise ValueError(f"{photos[-1]}: only one word; name photos first, then a {what}")
    return photos, texts


def is_path(word) -> bool:
    """A file or folder, a pattern that matches some, or what looks like one that is not there."""
    from ..features.photo_sources import LIST_SUFFIXES, TABLE_SUFFIXES, TAR_SUFFIXES
    from ..photos import SUFFIXES

    suffixes = (*SUFFIXES, *LIST_SUFFIXES, *TAR_SUFFIXES, *TABLE_SUFFIXES, os.sep)
    if os.path.exists(word) or word.lower().endswith(suffixes):
        return True
    return has_magic(word) and bool(glob(word)) or ("/" in word and word.isascii() and " " not in word)


def find_photos(names):
    """The photos that are named, in a stream; what macOS keeps beside photos is passed over, which is said."""
    from ..features.photo_stream import NamedPhotos

    photos = NamedPhotos(names)
    if beside := photos.beside:
        shown = printable(beside[0])
        print(f"passed over {len(beside):,} files that macOS keeps next to photos, e.g. {shown}", file=sys.stderr)
    return photos


def made_with(options, subfolder="", region_model=True, **settings) -> str:
    """Which weights make a result, and with what settings, in one line.

    Raises:
        ValueError: there is no such checkpoint.
    """
    from ..checkpoint_folder import CALIBRATION, WEIGHTS, CheckpointFolder
    from ..checksums import checksums
    from ..loading import region_model_folder
    from ..precision import chosen_dtype

    model = model_or_bundled(options.model)
    folders = [CheckpointFolder(model), *([CheckpointFolder(model, subfolder=subfolder)] if subfolder else [])]
    regions = [region_model_folder(model)] if region_model else []
    paths = [next(filter(None, map(folder.file, WEIGHTS)), None) for folder in [*folders, *regions]]
    if options.dtype == "int8" and find_spec("openvino"):  # else the region model computes in float32
        paths += [folder.file(CALIBRATION) for folder in regions]
    sums = []
    for path in filter(None, paths):
        with open(path, "rb") as file:
            sums.append(checksums(file)[1])
    name = BUNDLED.name if model == str(BUNDLED) else model
    settings["dtype"] = str(chosen_dtype(options.dtype)).removeprefix("torch.")  # auto is another on another machine
    settings = {name: value for name, value in settings.items() if value is not None}
    said = (f"{name} {'|'.join(value) if isinstance(value, list) else value}" for name, value in settings.items())
    return printable(", ".join([f"{name} ({' '.join(sums)})", *said]))


class Lines:
    """Results on standard output, mistakes on the screen."""

    def __init__(self, job, as_json, several):
        self.job, self.as_json, self.several = job, as_json, several

    def has(self, name):
        return False

    def add(self, name, result):
        if self.as_json:
            record = rounded(self.job.record(result))
            print_row(True, {"photo": name} | record if self.several else self.job.alone(record))
        else:
            for line in self.job.lines(result):
                print_row(False, None, *[name] * self.several, *line)

    def failed(self, name, error):
        fail(error)

    def close(self):
        pass


class Rows:
    """Results and mistakes as rows of a file, mistakes on the screen too."""

    def __init__(self, job, path):
        self.job, self.errors, self.file = job, 0, RowFile(path, job.columns, job.made_with())
        self.has, self.close = self.file.has, self.file.close

    def add(self, name, result):
        self.file.add(name, rounded(self.job.record(result)), [rounded(value) for value in self.job.cells(result)])

    def failed(self, name, error):
        self.errors += 1
        fail(error)
        self.file.add(name, {}, error=str(error))

    def said(self) -> str:
        left_out = f", {self.file.left_out:,} skipped, already done" if self.file.left_out else ""
        errors = f", {self.errors:,} could not be read" if self.errors else ""
        photos = f"{self.file.written:,} photo{'s' * (self.file.written != 1)}"
        return f"{printable(str(self.file.path))}: {photos}{left_out}{errors}"


def run_photos(options, source, job, several=True, opened=None) -> int:
    """Runs a job over the photos of a source, in batches, and tells each result as soon as those before it are told.

    Args:
        source: has `fetch_photos` and `total`. several: it may be more than one photo.
        job: `load()`, called when the first photo is there; `of(images, names)` -> a result or {"error": line} each;
            `record(result)` for JSON, `alone(record)` where it is of the only photo; `lines(result)` for the screen;
            `columns` and `cells(result)` for a .csv; `made_with()`.
        opened: photos -> (photo, image or the error that says why there is none).

    Returns:
        Exit status: 0, or 2 if something could not be read.
    """
    from ..features import photo_stream
    from ..progress import Progress

    try:
        if options.output is not None:
            check_output(options.output)
        sink = (
            Lines(job, options.json or getattr(options, "details", False), several)
            if options.output is None
            else Rows(job, options.output)
        )
    except ValueError as error:
        return fail(error)
    status, asked_to_end = 0, nullcontext()
    if options.output is not None:
        from ..features.stopping import stopped_politely

        asked_to_end = stopped_politely(sink.said)
    try:
        with Progress(lambda: source.total) as progress, asked_to_end:
            for photo, result in results(options, source, job, sink, progress, opened or photo_stream.opened):
                if isinstance(result, ValueError):
                    sink.failed(photo.name, result)
                    status = 2
                else:
                    sink.add(photo.name, result)
    except ValueError as error:  # of the checkpoint, its settings, a source
        return fail(error)
    finally:
        sink.close()
    if source.passed_over.count:
        print(printable(str(source.passed_over)), file=sys.stderr)
    if options.output is not None:
        print(sink.said())
    return status


def results(options, source, job, sink, progress, opened):
    """(photo, result or error) in order; the model is loaded when there is a photo for it."""
    from ..features import photo_stream

    def left_to_do():
        for photo in source.fetch_photos():
            if sink.has(photo.name):
                progress.passed_over()
            else:
                yield photo

    rows = opened(left_to_do())
    for photo, image in rows:
        if isinstance(image, ValueError):
            yield photo, image
            progress.update(1)
            continue
        job.load()
        progress.begin()
        rows = chain([(photo, image)], rows)
        del image
        break
    alone = options.dtype == "int8"  # one scale for a whole batch
    for batch in photo_stream.in_batches(rows, 1 if alone else options.batch_size):
        good = [(image, photo.name) for photo, image in batch if not isinstance(image, ValueError)]
        made = iter(job.of(*map(list, zip(*good, strict=True))) if good else ())
        del good
        for photo, image in batch:
            result = image if isinstance(image, ValueError) else next(made)
            yield photo, ValueError(result["error"]) if isinstance(result, dict) and "error" in result else result
        progress.update(len(batch))
        batch.clear()  # their pixels, before the next are there
