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
from array import array
from codecs import BOM_UTF8
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..files import clear_leftovers, naming, open_whole, write_whole
from .store import RegionFeatureStore
from .store_folder import LEFTOVERS, hash_id
from .tsv_layouts import CAPTIONING, LAYOUTS, Table, decode_boxes, decode_features, read_row, recognise, with_geometry


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
    **store_options,
):
    """Convert a feature TSV; one row is in memory at a time, and every row is checked.

    Started again after it was killed, it goes on where the store ends: rows that are in the store are not decoded
    again. Blank rows are passed over. Prints and returns what it did.

    Args:
        tsv_path: features: Oscar's, bottom-up-attention's or LXMERT's table. Of tables with boxes the boxes, sizes and
            scores are stored, and the six numbers of geometry are put behind the appearance (docs/feature_row.md).
        store_path: folder of the store. Several files may go into one store, one after the other.
        label_tsv: objects, in the layout that belongs to the one of the features.
        labels_are: "regions" when the objects are the very regions of the features (boxes, scores and class_ids are
            stored), "tags" when they only name what is in the image (tag_ids and tag_scores are stored).
        labels: list of class names, `labels[0]` standing for none. Default: the store's if it exists, else the names
            of `label_tsv` in the order they appear. It is kept in the store.
        assumed_size: (height, width) of images whose objects come without image_h and image_w in the retrieval
            layout. Oscar takes (600, 800); here such rows are bad unless you say so.
        feature_dim: numbers per region in the store. Default: what most of the first rows have.
        skip_bad: go on after a bad row instead of raising, and list it in `errors.jsonl` in the store's folder (file,
            row from 1, image id, reason).
        num_proc: processes that decode; each reads the whole file and takes every num_proc-th row.
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
    """
    if labels_are not in ("regions", "tags"):
        raise ValueError(f"labels_are is 'regions' or 'tags', not {labels_are!r}")
    tsv_path, store_path = Path(tsv_path), Path(store_path)
    table = recognise(tsv_path)
    store_path.mkdir(parents=True, exist_ok=True)
    clear_leftovers(store_path, "lock.*", LEFTOVERS, store_path)
    if (store_path / "store.json").is_file():
        store = RegionFeatureStore.open(store_path)
        labels, feature_dim = labels or store.labels, feature_dim or store.feature_dim
    if feature_dim:
        table = recognise(tsv_path, feature_dim)
    if label_tsv is not None:
        labels = labels or _class_names(label_tsv)
        store_options["labels"] = labels
    for log in store_path.glob("errors.jsonl*"):  # of an earlier run: rows that were bad then are tried again
        log.unlink()
    class_ids = {name: number for number, name in enumerate(labels or ()) if number}
    job = _Import(
        tsv_path=tsv_path,
        table=table,
        store_path=store_path,
        label_tsv=label_tsv,
        labels_are=labels_are,
        class_ids=class_ids,
        assumed_size=assumed_size,
        skip_bad=skip_bad,
        parts=num_proc,
        store_options=store_options,
    )
    if num_proc == 1:
        results = [job.run(0)]
    else:
        try:
            with ProcessPoolExecutor(num_proc, mp_context=get_context("spawn")) as pool:
                results = list(pool.map(job.run, range(num_proc)))
        except BrokenProcessPool:
            raise ValueError(f"{tsv_path}: a process ended early; start again, what is done is kept") from None
    counts = {what: sum(result[what] for result, _ in results) for what in results[0][0]}
    _join_error_logs(store_path)
    blank = results[0][1]
    print(
        f"{tsv_path} ({LAYOUTS.get(table.layout, 'with a header')}, {table.feature_dim:,} numbers a region): "
        + ", ".join(f"{count:,} rows {what}" for what, count in counts.items())
        + (f"; {blank:,} blank rows passed over" if blank else "")
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
        for image_id in tqdm(image_ids or store, total=len(image_ids or store), unit="row", desc=Path(tsv_path).name):
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


class _LengthError(ValueError):
    """The label file has another number of rows than the features: nothing that can be skipped."""


@dataclass
class _Import:
    """What every process of an import has to know."""

    tsv_path: Path
    table: Table
    store_path: Path
    label_tsv: str | None
    labels_are: str
    class_ids: dict
    assumed_size: tuple | None
    skip_bad: bool
    parts: int
    store_options: dict = field(default_factory=dict)

    def run(self, part):
        """Import the rows whose number leaves `part` when divided by `parts`. All ids are read: some come twice."""
        counts, seen, number, blank = {"imported": 0, "already there": 0, "skipped": 0}, set(), 0, 0
        id_column = self.table.layout.index("image_id")
        log_path = self.store_path / f"errors.jsonl.{part:05d}"
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
                        raise ValueError("this id came before")
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
        if unknown := {item.get("class") for item in found} - self.class_ids.keys():
            raise ValueError(f"{objects.path}: classes {sorted(map(str, unknown))} are not among the labels")
        if self.labels_are == "regions" and len(found) != num_boxes:
            raise ValueError(f"{len(found)} objects in {objects.path}, {num_boxes} boxes (labels_are='tags'?)")
        class_ids = np.array([self.class_ids[item["class"]] for item in found], np.int32)
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
                    raise _LengthError(f"{self.path} ends before row {self.row + 1}, the features go on")
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
    with open(label_tsv, "rb") as file:
        for line in file:
            try:
                record = json.loads(line.partition(b"\t")[2])
                objects = record if isinstance(record, list) else record["objects"]
                names.update(dict.fromkeys(item["class"] for item in objects))
            except (ValueError, KeyError, TypeError):
                continue
    return list(names)


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
    return tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, disable=part > 0)


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
