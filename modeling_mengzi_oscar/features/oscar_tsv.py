"""Region features as others release them, tab-separated text with base64, to a RegionFeatureStore, and Oscar's back.

`tsv_layouts.py` tells the tables apart. Oscar's two (read by microsoft/Oscar's CaptionTSVDataset and by its
RetrievalDataset and OscarTSVDataset); floats are little-endian float32, row-major:

    "caption"    features  <id> TAB {"num_boxes": n, "features": "<base64>"}
                 objects   <id> TAB [{"class": .., "rect": [x1, y1, x2, y2], "conf": ..}, ..], rows as in the features
    "retrieval"  features  <id> TAB n TAB [anything TAB] <base64>; also the layout of pre-training
                 objects   <id> TAB {"objects": [..], "image_h": .., "image_w": ..}, or the bare list, in any order

Beside each file stands `<stem>.lineidx`, the byte offset of every row; docs/feature_row.md has more.
"""

import base64
import json
import os
import subprocess
import sys
from array import array
from codecs import BOM_UTF8
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..files import clear_leftovers, naming, open_whole, write_whole
from ..labels.chinese import to_chinese, untranslated
from ..progress import Progress
from .stopping import stopped_politely
from .store import RegionFeatureStore
from .store_folder import LEFTOVERS, hash_id
from .tsv_layouts import CAPTIONING, LAYOUTS, Table, decode_boxes, decode_features, read_row, recognise, with_geometry

PACKAGE_PARENT = Path(__file__).resolve().parents[2]
PART = "from modeling_mengzi_oscar.features.oscar_tsv import run_part; run_part()"


def import_tsv(
    tsv_path,
    store_path,
    label_tsv=None,
    labels_are="regions",
    labels=None,
    assumed_size=None,
    feature_dim=None,
    skip_bad=False,
    num_proc=1,
    language="zh",
    dictionary=None,
    **store_options,
):
    """Convert a feature TSV; one row is in memory at a time, and every row is checked.

    Started again after a kill, it resumes where the store ends: rows that are in the store are not decoded
    again. Blank rows are passed over. Prints and returns what it did.

    Args:
        tsv_path: features: Oscar's, bottom-up-attention's or LXMERT's table. Of tables with boxes the boxes, sizes and
            scores are stored, and the six numbers of geometry are put behind the appearance (docs/feature_row.md).
        store_path: folder of the store. Several files may go into one store, one after the other.
        label_tsv: objects, in the layout that belongs to the one of the features.
        labels_are: "regions" when the objects are the very regions of the features (boxes, scores and class_ids are
            stored), "tags" when they only name what is in the image (tag_ids and tag_scores are stored).
        labels: list of class names, `labels[0]` standing for none. Default: the store's if it exists, else the names
            of `label_tsv` in the order they appear, in `language`. It is kept in the store.
        assumed_size: (height, width) of images whose objects come without image_h and image_w in the retrieval
            layout. Oscar takes (600, 800); here such rows are bad unless you say so.
        feature_dim: numbers per region in the store. Default: what most of the first rows have.
        skip_bad: continue after a bad row instead of raising; list it in `errors.jsonl` in the store's folder (file,
            row from 1, image id, reason).
        num_proc: processes that decode; each reads the whole file and takes every num_proc-th row.
        language: "zh": English names of classes become Chinese ones (`labels.chinese.to_chinese`), Chinese ones stay;
            "en": all stay as they are.
        dictionary: {English: Chinese}, whose words go before ours; `labels.chinese.load_dictionary` reads one.
        store_options: dtype, images_per_shard, region_model, see `RegionFeatureWriter`.

    Returns:
        {"imported": rows, "already there": rows, "skipped": rows}.

    Raises:
        ValueError: the table is none that is known, with the columns found. Names file and row of a bad row: broken
            base64, a length that is not n x D x 4 bytes, boxes outside their photo, another number of boxes than
            objects, an id that came before, NaN or infinity, objects that are missing, of another image or of an
            unknown class. A captioning label file of another length is always an error. Another process writes the
            store.
        OSError: names the file that could not be read or written.
        KeyboardInterrupt, SystemExit: asked to end (Ctrl-C, SIGTERM); what is done is kept.
    """
    if language not in ("zh", "en"):
        raise ValueError(f"language is 'zh' or 'en', not {language!r}")
    if type(num_proc) is not int or num_proc < 1:
        raise ValueError(f"num_proc is a number of processes, 1 or more, not {num_proc!r}")
    if labels_are not in ("regions", "tags"):
        raise ValueError(f"labels_are is 'regions' or 'tags', not {labels_are!r}")
    tsv_path, store_path = Path(tsv_path), Path(store_path)
    table = recognise(tsv_path)
    words, translated = (dictionary or {}) if language == "zh" else None, ""
    store_path.mkdir(parents=True, exist_ok=True)
    clear_leftovers(store_path, "lock.*", LEFTOVERS, store_path)
    if (store_path / "store.json").is_file():
        store = RegionFeatureStore.open(store_path)
        labels, feature_dim = labels or store.labels, feature_dim or store.feature_dim
    if feature_dim:
        table = recognise(tsv_path, feature_dim)
    if label_tsv is not None:
        if not labels:
            names = _class_names(label_tsv)
            labels = list(dict.fromkeys(_in_chinese(name, words) for name in names))
            translated = _translated(names, words)
        store_options["labels"] = labels
    for log in store_path.glob("errors.jsonl*"):  # of an earlier run: rows that were bad then are tried again
        log.unlink()
    job = _Import(
        tsv_path=str(tsv_path),
        table=table,
        store_path=str(store_path),
        label_tsv=None if label_tsv is None else str(label_tsv),
        labels_are=labels_are,
        class_ids={name: number for number, name in enumerate(labels or ()) if number},
        words=words,
        assumed_size=assumed_size,
        skip_bad=skip_bad,
        parts=num_proc,
        store_options=store_options,
    )
    with stopped_politely(lambda: _rows_kept(store_path)):
        results = [job.run(0)] if num_proc == 1 else _in_processes(job)
    counts = {what: sum(result[what] for result, _ in results) for what in results[0][0]}
    _join_error_logs(store_path)
    blank = results[0][1]
    print(
        f"{tsv_path} ({LAYOUTS.get(table.layout, 'with a header')}, {table.feature_dim:,} numbers per region): "
        + ", ".join(f"{count:,} rows {what}" for what, count in counts.items())
        + (f"; {blank:,} blank rows skipped" if blank else "")
        + translated
    )
    return counts


def export_tsv(store, tsv_path, layout="caption", label_tsv=None, labels=None, image_ids=None):
    """Write the rows of a store as Oscar reads them: float32, with `.lineidx` and, for retrieval, `imageid2idx.json`.

    Args:
        store: `RegionFeatureStore`.
        tsv_path: features, for instance `train.feature.tsv` or `features.tsv`.
        layout: "caption" or "retrieval"; Oscar's retrieval code takes integer ids only.
        label_tsv: where to write the objects: the regions with their class, box and score if the store has class ids,
            else its tags, with the whole image as their box where its size is known.
        labels: text of every class or tag id. Default: what the store keeps.
        image_ids: rows to write, in this order. Default: all, in the order of the store.

    Raises:
        ValueError: no texts for the ids, no box for an object in the retrieval layout, or an image id that would break
            a row (tab, line break, outer spaces).
        KeyError: an image id is not in the store.
    """
    if layout not in ("caption", "retrieval"):
        raise ValueError(f"layout is 'caption' or 'retrieval', not {layout!r}")
    labels = labels or store.labels
    if label_tsv is not None and labels is None:
        raise ValueError(f"{store.path} keeps no texts of its class ids: pass labels=")
    with ExitStack() as stack:
        features = stack.enter_context(_TsvWriter(tsv_path))
        objects = stack.enter_context(_TsvWriter(label_tsv)) if label_tsv is not None else None
        index = stack.enter_context(_RowIndex(tsv_path)) if layout == "retrieval" else None
        total, name = len(image_ids or store), Path(tsv_path).name
        progress = stack.enter_context(Progress(lambda: total, "row", desc=name).begin())
        for image_id in image_ids or store:
            regions = store[image_id]
            count, matrix = len(regions["region_features"]), regions["region_features"].astype("<f4")
            encoded = base64.b64encode(matrix.tobytes()).decode()
            if layout == "caption":
                features.write(image_id, json.dumps({"num_boxes": count, "features": encoded}))
            else:
                features.write(image_id, count, encoded)
            if objects:
                objects.write(image_id, _objects_json(image_id, regions, layout, labels))
            if index:
                index.write(image_id)
            progress.update()


class _LengthError(ValueError):
    """The label file has another number of rows than the features: nothing that can be skipped."""


@dataclass
class _Import:
    """What every process of an import has to know."""

    tsv_path: str
    table: Table
    store_path: str
    label_tsv: str | None
    labels_are: str
    class_ids: dict
    words: dict | None  # English -> Chinese, before ours; None: names stay as they are
    assumed_size: tuple | None
    skip_bad: bool
    parts: int
    store_options: dict = field(default_factory=dict)

    def run(self, part):
        """Import the rows whose number leaves `part` when divided by `parts`. All ids are read: some come twice."""
        counts, seen, number, blank = {"imported": 0, "already there": 0, "skipped": 0}, set(), 0, 0
        id_column = self.table.layout.index("image_id")
        log_path = Path(self.store_path) / f"errors.jsonl.{part:05d}"
        with ExitStack() as stack:
            by_row = self.table.layout == CAPTIONING
            objects = stack.enter_context(_Objects(self.label_tsv, by_row)) if self.label_tsv else None
            writer = stack.enter_context(
                RegionFeatureStore.writer(self.store_path, worker=f"{part:05d}", **self.store_options)
            )
            file = stack.enter_context(open(self.tsv_path, "rb", buffering=1 << 20))
            stack.enter_context(naming(log_path))
            log = stack.enter_context(open(log_path, "w", encoding="utf-8"))
            progress = stack.enter_context(_progress(self.tsv_path, part))
            for row, line in enumerate(file, start=1):
                progress.update(len(line))
                line = line.removeprefix(BOM_UTF8) if row == 1 else line
                if not line.strip():
                    blank += 1
                    continue
                if row == self.table.header:
                    continue
                number += 1
                key = line.split(b"\t", id_column + 1)[id_column : id_column + 1]
                key = key[0].strip() if key else b""
                came_before = key in seen
                seen.add(key)
                if row % self.parts != part:
                    continue
                try:
                    image_id = key.decode()
                    if not image_id:
                        raise ValueError("no image id")
                    if came_before:
                        raise ValueError("this id appears twice")
                    if image_id in writer:
                        counts["already there"] += 1
                        continue
                    writer.add(image_id, self.regions(number, image_id, line, objects))
                    counts["imported"] += 1
                except _LengthError:
                    raise
                except ValueError as error:
                    image_id = key.decode(errors="backslashreplace")
                    if not self.skip_bad:
                        raise ValueError(f"{self.tsv_path} row {row} (image {image_id!r}): {error}") from None
                    counts["skipped"] += 1
                    record = {"file": str(self.tsv_path), "row": row, "image_id": image_id, "reason": str(error)}
                    print(json.dumps(record, ensure_ascii=False), file=log)
            if objects:
                objects.check_end(number)
        return counts, blank

    @cached_property
    def ids(self):
        return _ClassIds(self.class_ids, self.words)

    def regions(self, number, image_id, line, objects):
        """What the store takes, from a row and its objects; `number` counts the rows that are not blank."""
        row = read_row(line, self.table.layout)
        num_boxes, features = row.num_boxes, decode_features(row, self.table.width)
        own = decode_boxes(row)
        if own:
            features = with_geometry(features, own["boxes"], own["original_size"])
        own["region_features"] = features
        if objects is None:
            return own
        return self.described(number, image_id, num_boxes, objects) | own

    def described(self, number, image_id, num_boxes, objects):
        """What the label file says of an image."""
        regions = {}
        record = objects.read(number, image_id)
        found = record.get("objects") if isinstance(record, dict) else record
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise ValueError(f"{objects.path}: neither a list of objects nor a dict with 'objects'")
        classes = [self.ids.of(item.get("class")) for item in found]
        if None in classes:
            unknown = {str(item.get("class")) for item, number in zip(found, classes, strict=True) if number is None}
            raise ValueError(f"{objects.path}: classes {sorted(unknown)} are not among the labels")
        if self.labels_are == "regions" and len(found) != num_boxes:
            raise ValueError(f"{len(found)} objects in {objects.path}, {num_boxes} boxes (labels_are='tags'?)")
        class_ids = np.array(classes, np.int32)
        try:
            scores = np.array([item["conf"] for item in found], np.float32)
            if self.labels_are == "tags":
                regions |= {"tag_ids": class_ids, "tag_scores": scores}
            else:
                boxes = np.array([item["rect"] for item in found], np.float32).reshape(num_boxes, 4)
                regions |= {"class_ids": class_ids, "scores": scores, "boxes": boxes}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{objects.path}: an object without the numbers it needs ({error!r})") from None
        if not objects.by_row:
            told = record if isinstance(record, dict) and "image_h" in record else {}
            if not told and self.assumed_size is None:
                raise ValueError(f"{objects.path}: no image_h and image_w; Oscar takes 600 x 800 then (assumed_size=)")
            regions["original_size"] = (told["image_h"], told["image_w"]) if told else self.assumed_size
        return regions


def _in_processes(job):
    """What `job.run` returns for every part, each of which a Python of its own runs.

    Not with multiprocessing, whose processes import the caller's script once more: one without `if __name__ ==
    "__main__"` would start itself again in each, and one that came by standard input cannot be found.
    """
    path = os.pathsep.join(filter(None, (str(PACKAGE_PARENT), os.environ.get("PYTHONPATH"))))
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": os.environ | {"PYTHONPATH": path}}
    options["start_new_session"] = True  # Ctrl-C is ours; they are asked below
    processes = [subprocess.Popen([sys.executable, "-c", PART], **options) for _ in range(job.parts)]

    def result_of(part):
        told, _ = processes[part].communicate(json.dumps([asdict(job), part]).encode())
        if processes[part].returncode:
            raise ValueError(f"{job.tsv_path}: a process ended early; start again, what is done is kept")
        result, error = json.loads(told)
        if error is not None:
            raise (OSError if isinstance(error, list) else ValueError)(*(error if isinstance(error, list) else [error]))
        return result

    with ThreadPoolExecutor(job.parts) as pool:
        try:
            waiting = [pool.submit(result_of, part) for part in range(job.parts)]
            for done in as_completed(waiting):
                done.result()
        except BaseException:
            for process in processes:
                process.terminate()  # they write what they have
            raise
    return [done.result() for done in waiting]


def run_part():
    """In a process of its own: the part that standard input names; its result or error to standard output."""
    job, part = json.load(sys.stdin)
    layout, *table = job.pop("table")
    job = _Import(table=Table(tuple(layout), *table), **job)
    result = error = None
    with stopped_politely(lambda: "", say=False):
        try:
            result = job.run(part)
        except OSError as caught:
            error = [caught.errno, caught.strerror, caught.filename and str(caught.filename)]
        except ValueError as caught:
            error = str(caught)
    print(json.dumps([result, error]))


class _ClassIds:
    """Name of a class, as a label file has it -> id in the store; None of one that is not among the labels."""

    def __init__(self, class_ids, words):
        self.class_ids, self.words, self.known = class_ids, words, {}

    def of(self, name):
        if not isinstance(name, str):
            return None
        if name not in self.known:
            number = self.class_ids.get(name)  # a store may have been begun with the names as they are
            self.known[name] = self.class_ids.get(_in_chinese(name, self.words)) if number is None else number
        return self.known[name]


class _Objects:
    """Objects of one image after the other: row by row beside the features, or looked up by id (retrieval layout)."""

    def __init__(self, path, by_row):
        self.path, self.by_row, self.row, self.number = Path(path), by_row, 0, 0
        self.file = open(path, "rb", buffering=1 << 20)  # noqa: SIM115, closed by __exit__
        if not by_row:
            hashes, offsets = array("Q"), array("q", [0])
            for line in self.file:
                hashes.append(hash_id(_key(line)))
                offsets.append(offsets[-1] + len(line))
            self.offsets = np.array(offsets)[:-1][np.argsort(hashes, kind="stable")]
            self.hashes = np.sort(hashes)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def read(self, number, image_id):
        """The JSON value of an image. `number` counts the rows that are not blank from 1 and never falls."""
        if self.by_row:
            while self.number < number:
                line = self._next_line()
                if not line:
                    raise _LengthError(f"{self.path} ends before row {self.row + 1}, the features continue")
            if _key(line) != image_id:
                raise ValueError(f"{self.path} row {self.row} is of image {_key(line)!r}")
        else:
            first, last = (self.hashes.searchsorted(np.uint64(hash_id(image_id)), side) for side in ("left", "right"))
            for offset in self.offsets[first:last]:
                self.file.seek(offset)
                line = self.file.readline()
                if _key(line) == image_id:
                    break
            else:
                raise ValueError(f"{self.path} has no row of this image")
        try:
            return json.loads(line.partition(b"\t")[2])
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def _next_line(self):
        """The next row that is not blank; nothing at the end."""
        while line := self.file.readline():
            self.row += 1
            if line.strip():
                self.number += 1
                break
        return line

    def check_end(self, rows):
        """All rows of the features were read: the label file has to end with them."""
        if not self.by_row:
            return
        while self._next_line():
            pass
        if self.number != rows:
            raise _LengthError(f"{self.path} has {self.number} rows, the features {rows}")


class _TsvWriter:
    """A TSV and its .lineidx of byte offsets; both appear under their names when the last row is written."""

    def __init__(self, path):
        self.path, self.offset = Path(path), 0

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            names = (self.path, self.path.with_suffix(".lineidx"))
            self.rows, self.offsets = (stack.enter_context(open_whole(name)) for name in names)
            self.stack = stack.pop_all()
        return self

    def write(self, image_id, *columns):
        if image_id != image_id.strip() or set(image_id) & set("\t\r\n"):
            raise ValueError(f"image id {image_id!r} would break a row of {self.path}")
        line = "\t".join((image_id, *map(str, columns))).encode() + b"\n"
        self.offsets.write(b"%d\n" % self.offset)
        self.rows.write(line)
        self.offset += len(line)

    def __exit__(self, *exception):
        return self.stack.__exit__(*exception)


class _RowIndex:
    """`imageid2idx.json` beside a TSV, {image id: row}, written row by row; it appears under its name when whole."""

    def __init__(self, tsv_path):
        self.whole, self.rows = open_whole(Path(tsv_path).with_name("imageid2idx.json")), 0

    def __enter__(self):
        self.file = self.whole.__enter__()
        self.file.write(b"{")
        return self

    def write(self, image_id):
        separator = ", " if self.rows else ""
        self.file.write(f"{separator}{json.dumps(image_id, ensure_ascii=False)}: {self.rows}".encode())
        self.rows += 1

    def __exit__(self, kind, *exception):
        if kind is None:
            self.file.write(b"}")
        return self.whole.__exit__(kind, *exception)


def _key(line):
    return line.partition(b"\t")[0].removeprefix(BOM_UTF8).decode().strip()


def _class_names(label_tsv):
    """ "" and every class name of a label file in the order they appear; unreadable rows are reported later."""
    names = {"": None}
    with open(label_tsv, "rb") as file, _progress(label_tsv, 0) as progress:
        for line in file:
            progress.update(len(line))
            try:
                record = json.loads(line.partition(b"\t")[2])
                objects = record if isinstance(record, list) else record["objects"]
                names.update(dict.fromkeys(item["class"] for item in objects))
            except (ValueError, KeyError, TypeError):
                continue
    return [name for name in names if isinstance(name, str)]


def _in_chinese(name, words):
    return name if words is None else to_chinese(name, words)


def _translated(names, words) -> str:
    """What became of English names, as the end of a line."""
    english = [name for name in names if name and name.isascii()]
    if words is None or not english:
        return ""
    left = untranslated(english, words)
    kept = f", {len(left):,} stay English, the first: {left[0]}" if left else ""
    return f"; {len(english) - len(left):,} of {len(english):,} English class names in Chinese{kept}"


def _rows_kept(store_path) -> str:
    there = (store_path / "store.json").is_file()
    return f"{store_path} keeps {len(RegionFeatureStore.open(store_path)) if there else 0:,} rows"


def _objects_json(image_id, regions, layout, labels):
    """The second column of a label TSV."""
    height, width = regions.get("original_size", np.zeros(2, int)).tolist()
    if "class_ids" in regions:
        ids, scores, boxes = regions["class_ids"], regions.get("scores"), regions.get("boxes")
    else:
        ids, scores, boxes = regions["tag_ids"], regions.get("tag_scores"), None
        if height:
            boxes = np.tile(np.array([0, 0, width, height]), (len(ids), 1))
    if layout == "retrieval" and boxes is None:
        raise ValueError(f"image {image_id!r}: the retrieval layout needs boxes or original_size in the store")
    objects = [{"class": labels[number]} for number in ids]
    for name, values in (("rect", boxes), ("conf", scores)):
        if values is not None:
            for item, value in zip(objects, values.tolist(), strict=True):
                item[name] = value
    if layout == "retrieval" and height:
        return json.dumps({"objects": objects, "image_h": height, "image_w": width}, ensure_ascii=False)
    return json.dumps(objects, ensure_ascii=False)


def _progress(path, part):
    size, name = os.path.getsize(path), Path(path).name
    return Progress(lambda: size, "byte", shown=part == 0, desc=name, unit_scale=True).begin()


def _join_error_logs(store_path):
    """One errors.jsonl in the order of the rows, or none, from the logs of the processes."""
    logs = list(store_path.glob("errors.jsonl.*"))
    records = [json.loads(line) for log in logs for line in log.read_text("utf-8").splitlines()]
    records.sort(key=lambda record: record["row"])
    if records:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_whole(store_path / "errors.jsonl", text.encode())
    for log in logs:
        log.unlink()
