"""What the columns of a feature TSV are: Oscar's two layouts, bottom-up-attention's and LXMERT's.

A table is told by what its columns hold, never by what a length can be divided by: numbers have to be numbers, every
array has to have the bytes that its number of boxes asks for, and one width of a region has to hold for most of the
first rows. What is no layout known here is refused with the columns found.

    Oscar, captioning       image_id  {"num_boxes": n, "features": "<base64>"}
    Oscar, retrieval        image_id  num_boxes  [anything]  features
    bottom-up-attention     image_id  image_w  image_h  num_boxes  boxes  features  [cls_prob]
    LXMERT                  img_id  img_h  img_w  objects_id  objects_conf  attrs_id  attrs_conf  num_boxes  boxes
                            features

A first row that names its columns may have them in any order. Sources: `tools/generate_tsv.py` of
peteanderson80/bottom-up-attention, `src/utils.py` of airsplay/lxmert.
"""

import json
import re
from base64 import b64decode as exact_b64decode
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch

from ..modeling_regions import box_geometry

try:  # the same function with the processor's vector instructions; decoding is most of the work of an import
    from pybase64 import b64decode
except ImportError:
    b64decode = exact_b64decode

CAPTIONING, RETRIEVAL = ("image_id", "record"), ("image_id", "num_boxes", "features")
BOTTOM_UP = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT = ("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf")
LAYOUTS = {
    CAPTIONING: "Oscar's for captioning",
    RETRIEVAL: "Oscar's for retrieval",
    (*RETRIEVAL[:2], "anything", "features"): "Oscar's for retrieval",
    BOTTOM_UP: "bottom-up-attention's",
    (*BOTTOM_UP, "cls_prob"): "bottom-up-attention's",
    (*LXMERT, "num_boxes", "boxes", "features"): "LXMERT's",
}
BYTES_PER_BOX = {"boxes": 16, "objects_id": 8, "objects_conf": 4, "attrs_id": 8, "attrs_conf": 4}
NUMBERS = ("num_boxes", "image_w", "image_h")
OTHER_NAMES = {"img_id": "image_id", "id": "image_id", "img_w": "image_w", "img_h": "image_h", "feature": "features"}
FIRST_ROWS = 20  # that have to agree
GEOMETRY = 6  # numbers behind the appearance, made from the boxes


class Table(NamedTuple):
    """What `recognise` found out about a file."""

    layout: tuple[str, ...]  # names of the columns
    header: int | None  # the row that names them
    width: int  # numbers per region in the file

    @property
    def feature_dim(self):
        """Numbers per region in a store: tables with boxes get the geometry of every region."""
        return self.width + GEOMETRY * ("boxes" in self.layout)


class Row(NamedTuple):
    num_boxes: int
    columns: dict[str, bytes]  # those of a layout, arrays still in base64


def recognise(path, feature_dim=None) -> Table:
    """Which table a file is, from its first rows.

    Args:
        feature_dim: numbers per region that the store has or the user says, instead of what most rows have.

    Raises:
        ValueError: one line with the columns found, where it is none that is known.
    """
    rows, header, fitting = [], None, {layout: [] for layout in LAYOUTS}
    with open(path, "rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                if line.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
                    raise ValueError(f"{path}: UTF-16 text; save it as UTF-8")
                line = line.removeprefix(BOM_UTF8)
            if not line.strip():
                continue
            if not rows and header is None and (named := column_names(line)):
                header, fitting = number, {named: []}
                continue
            rows.append((number, line))
            for layout, widths in fitting.items():
                try:
                    widths.append(width_of(read_row(line, layout)))
                except ValueError:
                    continue  # of another layout, or a bad row, which is reported when its turn comes
            known = any(any(widths) for widths in fitting.values())
            if len(rows) >= FIRST_ROWS and (known or not any(fitting.values())):
                break
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    layout = max(fitting, key=lambda layout: len(fitting[layout]))
    widths = Counter(width for width in fitting[layout] if width)
    width, votes = widths.most_common(1)[0] if widths else (None, 0)
    if not fitting[layout] or 2 * votes < widths.total():
        raise ValueError(f"{path}: no table of region features that is known here; {found_columns(*rows[0])}")
    table = Table(layout, header, width or 0)
    if feature_dim is not None:
        return table._replace(width=feature_dim - (table.feature_dim - table.width))
    if width is None:
        raise ValueError(f"{path} has no row with regions that can be read: is it a feature TSV? (feature_dim=)")
    return table


def column_names(line) -> tuple[str, ...] | None:
    """The layout that a first row spells out, or None."""
    try:
        names = [name.strip().strip('"').lower() for name in line.decode().rstrip("\r\n").split("\t")]
    except UnicodeDecodeError:
        return None
    names = tuple(OTHER_NAMES.get(name, name) for name in names)
    return names if {"image_id", "num_boxes", "features"} <= set(names) else None


def found_columns(number, line) -> str:
    columns = line.rstrip(b"\r\n").split(b"\t")
    known = dict.fromkeys(LAYOUTS.values())
    shortest = {name: next(layout for layout in LAYOUTS if LAYOUTS[layout] == name) for name in known}
    return (
        f"row {number} has {len(columns)} columns between tabs: {', '.join(map(kind_of, columns[:12]))}. Known are "
        + "; ".join(f"{name} ({', '.join(layout)})" for name, layout in shortest.items())
    )


def kind_of(column: bytes) -> str:
    """What a column looks like, in words."""
    column = column.strip()
    if not column:
        return "nothing"
    if re.fullmatch(rb"[0-9]{1,19}", column):
        return "a whole number"
    if re.fullmatch(rb"[+-]?[0-9.]+(e[+-]?[0-9]+)?", column[:40], re.IGNORECASE):
        return "a number"
    if column[:1] in b"{[":
        try:
            content = json.loads(column)
        except (ValueError, RecursionError):
            return "broken JSON"
        return f"JSON with {', '.join(map(str, content))[:80]}" if isinstance(content, dict) else "a JSON list"
    if len(column) >= 16 and len(column) % 4 == 0 and re.fullmatch(rb"[A-Za-z0-9+/]+={0,2}", column):
        return f"base64 of {len(column) * 3 // 4 - column.count(b'=')} bytes"
    return "text"


def read_row(line: bytes, layout) -> Row:
    """The columns of a row, arrays not decoded yet.

    Raises:
        ValueError: another number of columns, or a number that is none.
    """
    if layout == CAPTIONING:
        image_id, tab, record = line.rstrip(b"\r\n").partition(b"\t")
        if not tab:
            raise ValueError("1 columns instead of 2 (image_id, record)")
        num_boxes, features = _read_record(record)
        return Row(num_boxes, {"image_id": image_id, "features": features})
    values = line.rstrip(b"\r\n").split(b"\t")
    if len(values) != len(layout):
        raise ValueError(f"{len(values)} columns instead of {len(layout)} ({', '.join(layout)})")
    columns = {name: value.strip() for name, value in zip(layout, values, strict=True)}
    for name in NUMBERS:
        if name in columns and not re.fullmatch(rb"[0-9]{1,9}", columns[name]):
            raise ValueError(f"{name} is {columns[name][:30].decode(errors='replace')!r} instead of a whole number")
    if "anything" in columns and kind_of(columns["anything"]) in ("a whole number", "a number"):
        raise ValueError("a number more than Oscar's layout has")
    return Row(int(columns["num_boxes"]), columns)


def _read_record(record):
    """(number of boxes, base64) of the captioning layout. The JSON parser would copy half a megabyte twice, so it gets
    the record without it."""
    start = record.find(b'"', record.find(b'"features"') + len(b'"features"')) + 1
    end = record.find(b'"', start)
    if b'"features"' not in record or 0 in (start, end + 1):
        raise ValueError("no string 'features' in the record")
    try:
        num_boxes = json.loads(record[:start] + record[end:]).get("num_boxes")
    except (AttributeError, RecursionError):
        num_boxes = None
    if not isinstance(num_boxes, int) or isinstance(num_boxes, bool) or num_boxes < 0:
        raise ValueError("no number 'num_boxes' in the record")
    return num_boxes, record[start:end]


def width_of(row: Row) -> int | None:
    """Numbers per region of a row that is whole; None without regions."""
    decode_boxes(row)
    size = len(b64decode(row.columns["features"], validate=True))
    if size % 4 or (row.num_boxes and size % (4 * row.num_boxes)) or bool(size) != bool(row.num_boxes):
        raise ValueError(f"{size} bytes of features for {row.num_boxes} boxes")
    return size // (4 * row.num_boxes) if row.num_boxes else None


def decode_features(row: Row, width) -> np.ndarray:
    """(R, width) float32."""
    data = b64decode(row.columns["features"].strip(), validate=True)
    if len(data) != row.num_boxes * width * 4:
        need = f"{row.num_boxes} boxes of {width} float32 need {row.num_boxes * width * 4}"
        raise ValueError(f"{len(data)} bytes of features, {need}")
    return np.frombuffer(data, "<f4").reshape(row.num_boxes, width)


def decode_boxes(row: Row) -> dict[str, np.ndarray]:
    """boxes, original_size and, where there are, scores; nothing of a table without boxes.

    Raises:
        ValueError: an array of another length than the number of boxes says, or boxes that are not of this photo.
    """
    arrays = {}
    for name, size in BYTES_PER_BOX.items():
        if name in row.columns:
            arrays[name] = b64decode(row.columns[name], validate=True)
            if len(arrays[name]) != row.num_boxes * size:
                need = f"{row.num_boxes} boxes need {row.num_boxes * size}"
                raise ValueError(f"{len(arrays[name])} bytes of {name}, {need}")
    if "boxes" not in arrays:
        return {}
    if not {"image_w", "image_h"} <= row.columns.keys():
        raise ValueError("boxes without image_w and image_h: their place in the photo is unknown")
    boxes = np.frombuffer(arrays["boxes"], "<f4").reshape(-1, 4)
    width, height = int(row.columns["image_w"]), int(row.columns["image_h"])
    if width == 0 or height == 0:
        raise ValueError(f"a photo of {width} x {height}")
    inside = (boxes >= -1) & (boxes <= np.array([width, height] * 2) + 1)
    right = inside.all(1) & (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])
    if not right.all():
        number = int(np.flatnonzero(~right)[0])
        box = ", ".join(f"{value:g}" for value in boxes[number])
        raise ValueError(f"box {number + 1} ({box}) is none of a photo of {width} x {height} (columns swapped?)")
    if len(boxes) and boxes.max() <= 1 < min(width, height):
        raise ValueError("boxes between 0 and 1 instead of pixels")
    regions = {"boxes": boxes, "original_size": np.array([height, width])}
    if "objects_conf" in arrays:
        regions["scores"] = np.frombuffer(arrays["objects_conf"], "<f4")
    return regions


def with_geometry(features, boxes, original_size) -> np.ndarray:
    """Appearance (R, D) and what it lacks: (R, D + 6)."""
    sizes = torch.from_numpy(original_size)[None]
    geometry = box_geometry(torch.from_numpy(boxes.astype(np.float32))[None], sizes)[0]
    return np.concatenate([features, geometry.numpy()], axis=1)
