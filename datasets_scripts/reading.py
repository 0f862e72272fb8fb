"""What the builders share: finding the original files, reading them with file and row at hand, saying what is wrong."""

import csv
import hashlib
import json
import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import deque
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import datasets
import yaml
from datasets.data_files import DataFilesDict, DataFilesList

from modeling_mengzi_oscar.photos import is_photo_by_content, is_photo_name

SENTENCE = re.compile(r"(?P<photo>[^#\s]+)#(?:\w+#)?(?P<number>\d+)(?:[ \t](?P<sentence>.*))?")
NAMED = 1000  # so many bad rows are named
SEPARATORS = {";": "semicolon", "\t": "tab", "|": "bar", "，": "Chinese comma"}  # that are no commas
MAX_LINES = 1000  # of one quoted text
MEANT = {
    "file_name": ("filename", "file", "image", "image_path", "path", "photo", "img", "文件名", "图片"),
    "caption": ("text", "sentence", "title", "description", "label", "raw", "描述", "标题", "文本"),
}
SENTENCES = datasets.List(datasets.Value("string"))


@dataclass
class FilesConfig(datasets.BuilderConfig):
    """`skip_bad`: count and leave out a bad row instead of raising an error that names it."""

    skip_bad: bool = False


class BadRow(ValueError):
    """What is wrong with one row, which `skip_bad` would leave out; a `ValueError` else is about a file."""


class FilesBuilder(datasets.GeneratorBasedBuilder):
    """A builder over the files that its `find_files(data_dir, config_name)` names, as {what it is: path}.

    The prepared data set is made anew when one of them changes, or a photo below data_dir comes or goes: `datasets`
    names the cache after data_files and what is known of them, but not after the content of data_dir.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = FilesConfig

    def __init__(self, *, data_dir, config_name=None, **kwargs):
        if self.BUILDER_CONFIGS and config_name not in self.builder_configs:
            raise ValueError(
                f"config_name is {config_name!r} instead of {' or '.join(map(repr, self.builder_configs))}"
            )
        data_dir = os.path.abspath(data_dir)
        self.files = self.find_files(data_dir, config_name)
        states = [(str(os.stat(path).st_mtime_ns), str(os.stat(path).st_size)) for path in self.files.values()]
        states.append((photos_state(data_dir),))
        data_files = DataFilesDict({"files": DataFilesList(list(self.files.values()), states)})
        self.bad_rows = []
        super().__init__(data_dir=data_dir, config_name=config_name, data_files=data_files, **kwargs)

    def download_and_prepare(self, *args, **kwargs):
        """As in `datasets`, but what is wrong with a row is the error itself, not the cause of another."""
        try:
            super().download_and_prepare(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            raise (error.__cause__ if isinstance(error.__cause__, ValueError) else error) from None

    @contextmanager
    def row(self):
        """Around what is done with one row: its error is raised, or with `skip_bad` remembered."""
        try:
            yield
        except ValueError as error:
            if not self.config.skip_bad:
                raise BadRow(str(error)) from None
            self.bad_rows.append(str(error))

    def report(self, text):
        """Print what was read and left out, and the bad rows since the last report."""
        if self.bad_rows:
            text += f"\nSkipped: {len(self.bad_rows):,} bad rows, the first: " + "\n".join(self.bad_rows[:NAMED])
            text += f"\nand {len(self.bad_rows) - NAMED:,} more" if len(self.bad_rows) > NAMED else ""
        print(text)
        self.bad_rows = []


class SplitsBuilder(FilesBuilder):
    """A builder whose `read()` gives the rows of all its splits at once, {split: rows}."""

    def _split_generators(self, dl_manager):
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"rows": tuple(rows)}) for split, rows in self.read().items()
        ]

    def _generate_examples(self, rows):
        yield from enumerate(rows)

    def caption_rows(self, captions, photos, **columns):
        """Rows of {image id: (where, sentences)}; a column is {image id: list}."""
        rows = []
        for image_id, (where, sentences) in captions.items():
            with self.row():
                row = {"image_id": image_id, "image": photo_of(photos, image_id, where), "captions": sentences}
                rows.append(row | {name: values.get(image_id, []) for name, values in columns.items()})
        return rows


class QuestionsBuilder(FilesBuilder):
    """A builder of questions, whose answers are ids of a vocabulary."""

    def with_answers(self, name, rows, labelled):
        """The rows, numbered; of a labelled split without those that have no answer of the vocabulary."""
        read = left = 0
        for read, row in enumerate(rows, start=1):
            if row["labels"] or not labelled:
                yield read, row
            else:
                left += 1
        self.report(f"{name}: {read:,} questions. Left out: {left:,} without an answer of the vocabulary.")


def find(data_dir, *names):
    """The first of these paths below data_dir that is a file, or None."""
    paths = (os.path.join(data_dir, name) for name in names)
    return next((path for path in paths if os.path.isfile(path)), None)


def require(files, names, data_dir, source):
    """Raises FileNotFoundError unless all these names are in files."""
    if missing := [name for name in names if name not in files]:
        raise FileNotFoundError(f"{data_dir} has no {', '.join(missing)}: {source}")


class Photos(dict):
    """{image id: path}; `unnamed` are the files beside them that are photos by their content but not by their name."""

    def __init__(self):
        self.unnamed = []

    def say_unnamed(self):
        """As the end of a report."""
        if not self.unnamed:
            return ""
        return f"{len(self.unnamed):,} files that are photos by content but not by name, the first: {self.unnamed[0]}"


def find_photos(data_dir, *folders):
    """`Photos` by their names without suffix, in those of these folders that exist, or None if none does."""
    found = [path for folder in folders if os.path.isdir(path := os.path.join(data_dir, folder))]
    if not found:
        return None
    photos = Photos()
    for entry in (entry for path in found for entry in os.scandir(path)):
        if is_photo_name(entry.name):
            photos[os.path.splitext(entry.name)[0]] = entry.path
        elif is_photo_by_content(entry.path):
            photos.unnamed.append(entry.path)
    return photos


def photos_state(data_dir) -> str:
    """Changes when a photo below the folder comes or goes, also behind links; what is in a photo does not matter."""
    names, seen = hashlib.sha256(), set()
    for folder, folders, files in os.walk(data_dir, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(folders)
        seen.add(real)
        for name in sorted(name for name in files if is_photo_name(name)):
            path = os.path.join(folder, name)
            if os.path.exists(path):  # a link may lead nowhere
                names.update(os.fsencode(os.path.relpath(path, data_dir)) + b"\0")
    return names.hexdigest()


def photo_of(photos, image_id, where):
    """Path of a photo; None where this data has no photos at all."""
    if photos is None:
        return None
    if image_id not in photos:
        left_out = f" ({photos.say_unnamed()})" if photos.unnamed else ""
        raise ValueError(f"{where}: there is no photo of {image_id!r} in this data{left_out}")
    return photos[image_id]


def say_photos(photos, used):
    """Of how many photos there are no rows, as the end of a report."""
    if photos is None:
        return "no photos here: the column image is empty"
    return "; ".join(filter(None, [f"{len(photos.keys() - set(used)):,} photos without a row", photos.say_unnamed()]))


def say_splits(splits):
    """What is in {split: rows} of captions, as part of a report."""
    return ", ".join(
        f"{split} {len(rows):,} photos with {sum(len(row['captions']) for row in rows):,} sentences"
        for split, rows in splits.items()
    )


def raw_lines(path, row=nullcontext):
    """("file, row n", text) of every line, without byte order mark and line end: LF, CRLF or CR.

    Here and below `row` is put around what may fail for one row alone (`FilesBuilder.row`).
    """
    with open(path, "rb") as file:
        lines = (line for block in file for line in block.rstrip(b"\r\n").split(b"\r"))
        for number, line in enumerate(lines, start=1):
            if number == 1:
                _refuse_utf16(path, line)
            text = None  # of a row that is left out
            with row():
                text = _decode(path, line, number)
            if text is not None:
                yield f"{path}, row {number}", text


def lines(path, row=nullcontext):
    """("file, row n", text without outer spaces) of every line that is not blank."""
    for where, text in raw_lines(path, row):
        if text := text.strip():
            yield where, text


def tsv_rows(path, columns, row=nullcontext):
    """("file, row n", fields without outer spaces) of a TSV that has at least so many columns; blank lines may be."""
    for where, text in raw_lines(path, row):
        fields = [field.strip() for field in text.split("\t")]
        if not text.strip():
            continue
        with row():
            if len(fields) < columns:
                raise ValueError(f"{where}: {len(fields)} columns instead of {columns}: {text[:60]!r}")
        if len(fields) >= columns:
            yield where, fields


def column_name(name):
    """A column's name as it is looked for: spreadsheets and people write `Caption` and ` caption`, too."""
    return str(name).strip().lower()


def csv_rows(path, row=nullcontext, needs=()):
    """("file, row n", {column: text}) of a CSV file with a header; a quoted text may go over several lines.

    A row is named by its first line. What is wrong with it ends with that line: the next row begins behind it.

    Raises:
        ValueError: besides bad rows, a header that is none: other separators than commas, a column that comes twice, or
            one of `needs` that is not there.
    """
    source, ahead, header = raw_lines(path, row), deque(), None

    def line(number):
        """The line so many behind the present one, or None."""
        while len(ahead) <= number and (found := next(source, None)):
            ahead.append(found)
        return ahead[number] if number < len(ahead) else None

    while first := line(0):
        where, text = first
        fields, used = None, 1
        if header is None and text.strip():
            header, used = _csv_header(*_csv_fields(line), where)
            for name in needs:
                if name not in header:
                    raise no_column(where, name, header)
        elif text.strip():
            with row():
                found, lines_of_it = _csv_fields(line)
                if len(found) != len(header):
                    raise ValueError(
                        f"{where}: not {len(header)} columns, but {len(found)} (quote sentences with commas)"
                    )
                fields, used = found, lines_of_it
        for _ in range(used):
            ahead.popleft()
        if fields:
            yield where, dict(zip(header, fields, strict=True))
    if header is None:
        raise ValueError(f"{path}: is empty; its first row names the columns")


def _csv_fields(line):
    """The fields of the row that begins with line(0), and of how many lines it is."""
    where = line(0)[0]
    texts = (found[1] + "\n" for number in range(MAX_LINES) if (found := line(number)))
    reader = csv.reader(texts, strict=True)
    try:
        return next(reader), reader.line_num
    except csv.Error as error:
        reason = "a quote that is never closed" if reader.line_num > 1 or "end of data" in str(error) else str(error)
        raise ValueError(f"{where}: {reason} (a quote inside a quoted text is written twice)") from None


def _csv_header(fields, used, where):
    names = [column_name(name) for name in fields]
    if len(names) == 1 and (found := [name for sign, name in SEPARATORS.items() if sign in names[0]]):
        raise ValueError(f"{where}: columns are separated by {found[0]}s; save it with commas")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{where}: the column {twice[0]!r} comes twice")
    return names, used


def no_column(where, name, columns):
    """The error for a column that is not there: it says which are, and which of them is perhaps meant."""
    meant = next((column for column in columns if column in MEANT[name]), None)
    rename = f": rename {meant} to {name}" if meant else ""
    return ValueError(f"{where}: no column {name}, but {', '.join(columns) or 'nothing'}{rename}")


def read_json(path):
    with open(path, "rb") as file:
        data = file.read()
    _refuse_utf16(path, data)
    try:
        return json.loads(_decode(path, data))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{path}: not JSON that can be read (too deep)") from None


def read_yaml(path):
    with open(path, "rb") as file:
        text = _decode(path, file.read())
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None


def _decode(path, data, first_row=1):
    """Text of bytes that begin in this row of a file; a byte order mark may stand at the beginning of the file."""
    try:
        text = data.decode("utf-8-sig" if first_row == 1 else "utf-8")
        if "\0" in text:
            row = first_row + text[: text.index("\0")].count("\n")
            raise ValueError(f"{path}, row {row}: a NUL byte, which no text has; save it as UTF-8 again")
        return text
    except UnicodeDecodeError as error:
        before = data[: error.start]
        row, byte = first_row + before.count(b"\n"), len(before) - before.rfind(b"\n")
        raise ValueError(f"{path}, row {row}: broken UTF-8 ({error.reason} at byte {byte})") from None


def _refuse_utf16(path, data):
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or b"\0" in data[:4]:
        raise ValueError(f"{path}: UTF-16 text, as some programs write it; save it as UTF-8")


def json_items(path, key=None, row=nullcontext):
    """("file, item n", object) of a JSON list, or of the list under `key`; items count from 1."""
    data = read_json(path)
    items = data.get(key) if key and isinstance(data, dict) else data
    if not isinstance(items, list):
        raise ValueError(f"{path}: not a JSON list" + (f" under {key!r}" if key else ""))
    for number, item in enumerate(items, start=1):
        with row():
            if not isinstance(item, dict):
                raise ValueError(f"{path}, item {number}: not a JSON object")
        if isinstance(item, dict):
            yield f"{path}, item {number}", item


def json_lines(path, row=nullcontext):
    """("file, row n", object) of a JSON Lines file."""
    for where, text in lines(path, row):
        item = None
        with row():
            try:
                item = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: not JSON ({error})") from None
            if not isinstance(item, dict):
                raise ValueError(f"{where}: not a JSON object")
        if isinstance(item, dict):
            yield where, item


def get(item, name, kind, where):
    """item[name], which must be there and of this type (or one of these)."""
    if not isinstance(item.get(name), kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{where}: {name!r} is {item.get(name)!r:.60} instead of {expected}")
    return item[name]


def sentence(text, where):
    """A sentence without outer spaces; it must not be empty."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: empty sentence" if not text or isinstance(text, str) else f"{where}: not a text")
    return text.strip()


def sentences_of(texts, where):
    """A list of one sentence or more, without outer spaces."""
    if not isinstance(texts, (list, tuple)) or not texts:
        raise ValueError(f"{where}: {texts!r:.60} instead of a list of sentences")
    return [sentence(text, where) for text in texts]


def split_tags(text):
    """Words of Oscar's `tag;tag`."""
    return [tag.strip() for tag in text.split(";") if tag.strip()]


def read_sentences(path, known, skip_unknown=False, row=nullcontext, change=str):
    """Lines `<photo>[.jpg]#[<kind>#]<number> <sentence>`, as the data sets of Flickr and Li's Chinese ones have them.

    Args:
        known: ids that may occur; None: all may.
        skip_unknown: count other ids instead of raising an error.
        row: what to put around each row (`FilesBuilder.row`).
        change: applied to every sentence.

    Returns:
        {image id: sentences in the order of their numbers}, and how many were skipped because the photo is unknown.
    """
    sentences, skipped = {}, 0
    for where, text in lines(path, row):
        with row():
            match = SENTENCE.fullmatch(text)
            if match is None:
                raise ValueError(f"{where}: not of the form '<photo>.jpg#<kind>#<number> <sentence>': {text[:60]!r}")
            image_id, number = match["photo"].removesuffix(".jpg"), int(match["number"])
            caption = sentence(change(match["sentence"] or ""), where)
            if known is not None and image_id not in known:
                if not skip_unknown:
                    raise ValueError(f"{where}: there is no photo or no sentence of {image_id!r} in this data")
                skipped += 1
                continue
            numbered = sentences.setdefault(image_id, {})
            if number in numbered:
                raise ValueError(f"{where}: sentence {number} of {image_id!r} is there twice")
            numbered[number] = caption
    return {image_id: [numbered[n] for n in sorted(numbered)] for image_id, numbered in sentences.items()}, skipped


def read_splits(paths, captions=None, row=nullcontext):
    """{split: image ids in the order of its file}; every id is in one split only and, where given, has captions."""
    splits, seen = {}, {}
    for split, path in paths.items():
        splits[split] = []
        for where, text in lines(path, row):
            with row():
                image_id = text.removesuffix(".jpg")
                if image_id in seen:
                    raise ValueError(f"{where}: {image_id!r} is already in {seen[image_id]}")
                if captions is not None and image_id not in captions:
                    raise ValueError(f"{where}: {image_id!r} has no sentences")
                seen[image_id] = where
                splits[split].append(image_id)
    return splits


KARPATHY_SPLITS = {  # restval: the rest of COCO's val2014, trained on by everybody
    "train": datasets.Split.TRAIN,
    "restval": datasets.Split.TRAIN,
    "val": datasets.Split.VALIDATION,
    "test": datasets.Split.TEST,
}


def read_karpathy(path, row=nullcontext):
    """{split: {image id: (where, sentences)}} of a JSON file of Karpathy and Fei-Fei: the usual splits, English."""
    splits = {split: {} for split in KARPATHY_SPLITS.values()}
    seen = {}
    for where, item in json_items(path, "images", row):
        with row():
            image_id = os.path.splitext(get(item, "filename", str, where))[0]
            if image_id in seen:
                raise ValueError(f"{where}: {image_id!r} is already in {seen[image_id]}")
            if item.get("split") not in KARPATHY_SPLITS:
                raise ValueError(f"{where}: split {item.get('split')!r} instead of {', '.join(KARPATHY_SPLITS)}")
            given = get(item, "sentences", list, where)
            sentences = sentences_of([one.get("raw") for one in given if isinstance(one, dict)], where)
            splits[KARPATHY_SPLITS[item["split"]]][image_id] = where, sentences
            seen[image_id] = where
    return splits


def smallest_hashes(ids, count):
    """The `count` ids whose UTF-8 text has the smallest SHA-256: a draw that everybody repeats without a list."""
    return sorted(ids, key=lambda image_id: hashlib.sha256(str(image_id).encode()).hexdigest())[:count]


def count(lists):
    return sum(map(len, lists.values()))
