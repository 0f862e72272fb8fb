"""Results as HTML. The markup is in views.html, where Jinja escapes every value; pictures travel inside the page."""

import base64
import csv
import io
import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from uploads import MAX_BYTES, MAX_PIXELS
from words import say

from modeling_mengzi_oscar.cli.output import harmless
from modeling_mengzi_oscar.demo.pictures import best_objects

SURE = ("confidence", "probably_wrong")
environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
environment.globals |= {
    "say": say,
    "best_objects": best_objects,
    "limits": {"megabytes": MAX_BYTES // 2**20, "megapixels": MAX_PIXELS // 10**6},
}
views = environment.get_template("views.html").module


def picture(photo, side=900) -> str:
    """The photo as a data: address, at most `side` pixels on a side; no file to name, to guess or to clean up."""
    small = photo.copy()
    small.thumbnail((side, side))
    content = io.BytesIO()
    small.save(content, format="WEBP", quality=80)
    return data_address("image/webp", content.getvalue())


def data_address(kind, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def batch(rows, total) -> str:
    """Table of `Engine.batch`'s rows, and the same as CSV and JSON to save."""
    plain = [plain_row(row) for row in rows]
    table, sure = io.StringIO(), [name for name in SURE if any(name in row for row in plain)]
    writer = csv.DictWriter(table, ["file", "caption", "score", *sure, "error"])
    writer.writeheader()
    writer.writerows({name: harmless(value) for name, value in row.items()} for row in plain)
    return views.batch(
        [{"picture": None, "error": None, "score": None, "probably_wrong": False} | row for row in rows],
        total,
        data_address("text/csv;charset=utf-8", table.getvalue().encode("utf-8-sig")),  # Excel wants the mark
        data_address("application/json", json.dumps(plain, ensure_ascii=False, indent=1).encode()),
    )


def plain_row(row) -> dict:
    """A row as JSON: {"file", "caption", "score", and the rest of `in_short`} or {"file", "error"}."""
    if "error" in row:
        return {"file": row["file"], "error": row["error"].message}
    return {name: row[name] for name in ("file", "caption", "score", *SURE) if name in row}
