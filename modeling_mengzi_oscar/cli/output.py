"""What the commands print: a result or a mistake is one line each; and the files that results go to as rows."""

import csv
import io
import json
import os
import re
import sys
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

MADE_WITH = "made_with"
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r")  # Chinese spreadsheets run the wide ones too


def print_row(as_json, record, *columns):
    """A result as one line of standard output, above the bar: as JSON, or its columns between tabs."""
    from tqdm import tqdm

    line = json.dumps(record, ensure_ascii=False) if as_json else "\t".join(map(printable, columns))
    if as_json:
        try:
            line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        except UnicodeEncodeError:  # spelled out as JSON does it
            line = json.dumps(record)
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def printable(text) -> str:
    """Line ends and control characters spelled out, as file names may have them."""
    return re.sub(r"[\0-\x1f\x7f-\x9f\u2028\u2029]", lambda sign: repr(sign[0])[1:-1], text)


def rounded(value, name=""):
    """Numbers of a result as far as they mean something: pixels to a tenth, all else to four decimals."""
    if isinstance(value, dict):
        return {key: rounded(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one, name) for one in value]
    return round(value, 1 if name == "box" else 4) if isinstance(value, float) else value


class RowFile:
    """`--output`: a row per photo, on the disk as soon as it is known. Opened again it resumes.

    A .jsonl has the records that --json prints, a .csv the columns. Each row says with what it was made. What a killed
    run left of a last line is dropped, and so are the rows of photos that could not be read, or that were changed after
    the file was: they are looked at again.

    Args:
        path: .jsonl or .csv. columns: of a .csv, between `photo` and `error`. made_with: checkpoint and settings.

    Raises:
        ValueError: one line: the file is something else, was made with something else, or another process writes it.
    """

    def __init__(self, path, columns, made_with):
        from ..files import Lock

        self.path, self.made_with = Path(path), made_with
        self.as_csv = self.path.suffix.lower() == ".csv"
        self.columns = ["photo", *map(cell, columns), "error", MADE_WITH]
        self.written = 0
        self.lock = Lock(self.path.with_name(self.path.name + ".lock"), self.path)
        try:
            self.done = self._read() if self.path.exists() else Counter()
            self.left_out = 0
            self.file = open(self.path, "ab")  # noqa: SIM115, closed by `close`
            if self.as_csv and not self.path.stat().st_size:
                self._write(self._header())
        except BaseException:
            self.lock.release()
            raise

    def close(self):
        self.file.close()
        self.lock.release()

    def has(self, name) -> bool:
        """Whether a row of this photo is there; of a photo that was named twice each row counts once."""
        key = self._key(name)
        if not self.done[key]:
            return False
        self.done[key] -= 1
        self.left_out += 1
        return True

    def add(self, name, record, cells=(), error=""):
        """A row: `record` of a .jsonl, `cells` of a .csv."""
        if self.as_csv:
            cells = [*map(harmless, cells), *[""] * (len(self.columns) - 3 - len(cells))]
            self._write(csv_line([self._key(name), *cells, cell(error), self.made_with]))
        else:
            record = {"photo": name} | record | ({"error": error} if error else {}) | {MADE_WITH: self.made_with}
            self._write(json_line(record))
        self.written += not error

    def _key(self, name):
        return cell(name) if self.as_csv else name

    def _header(self) -> bytes:
        return "\ufeff".encode() + csv_line(self.columns)  # Excel wants the mark

    def _write(self, line: bytes):
        from ..files import naming

        with naming(self.path):
            self.file.write(line)
            self.file.flush()

    def _read(self) -> Counter:
        """Names of the photos that have a row; what is no whole row of a result is taken out of the file."""
        from ..files import open_whole

        done, kept, dropped, written = Counter(), [], False, self.path.stat().st_mtime_ns
        begins = self._header() if self.as_csv else b'{"photo": "'
        with open(self.path, "rb") as file:
            first = file.read(len(begins))
            if first != begins[: len(first)]:
                was = "other columns" if self.as_csv and first.startswith(b"\xef\xbb\xbfphoto") else "something else"
                raise ValueError(f"{self.path}: holds {was}, not rows of this command; name another file")
            file.seek(len(begins) if self.as_csv and first == begins else 0)
            start = file.tell()
            for number, line in enumerate(file, 1):
                row = self._row(number, line) if line.endswith(b"\n") else {"error": "half a line"}
                if row.get("error") or changed_since(written, row["photo"]):
                    dropped = True
                else:
                    done[row["photo"]] += 1
                    kept.append((start, len(line)))
                start += len(line)
        if dropped:
            with open(self.path, "rb") as old, open_whole(self.path) as new:
                new.write(self._header() if self.as_csv else b"")
                for start, length in kept:
                    old.seek(start)
                    new.write(old.read(length))
        return done

    def _row(self, number, line: bytes) -> dict:
        """
        Raises:
            ValueError: the row is damaged, or was made with something else.
        """
        try:
            text = line.decode()
            row = dict(zip(self.columns, next(csv.reader([text])), strict=True)) if self.as_csv else json.loads(text)
            theirs = row[MADE_WITH]
            row["photo"]
        except (ValueError, KeyError, TypeError, StopIteration, csv.Error):
            raise ValueError(
                f"{self.path}: row {number:,} is damaged or not from this command; fix it, or name another file"
            ) from None
        if theirs != self.made_with:
            raise ValueError(
                f"{self.path}: row {number:,} was made with {theirs!s:.300}, this run has {self.made_with}; name "
                "another file"
            )
        return row


def changed_since(moment, name) -> bool:
    """Whether there is a file of that name that is younger than a moment in nanoseconds."""
    try:
        return os.stat(name).st_mtime_ns > moment
    except (OSError, ValueError):  # a photo in an archive, or one that went
        return False


def check_output(path) -> None:
    """
    Raises:
        ValueError: no name of a .jsonl or .csv file in a folder that is there.
    """
    path = Path(path)
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise ValueError(f"--output {path}: rows are written as .jsonl or .csv; name it {path.stem or 'results'}.jsonl")
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise ValueError(f"--output {path}: is not a file; name a file in an existing folder")
    if not path.parent.is_dir():
        raise ValueError(f"--output {path}: no such folder; create it first")


def json_line(record) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a name that is no Unicode
        return json.dumps(record).encode() + b"\n"


def csv_line(cells) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


def cell(text) -> str:
    """A text as a cell of a .csv: one line, Unicode, and nothing that a spreadsheet would run."""
    text = printable(text).encode("utf-8", "backslashreplace").decode()
    return harmless(text)


def harmless(value):
    """Spreadsheets run a cell that begins like a formula; a quote in front makes it text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


@contextmanager
def meanwhile(text):
    """What is being done, on a terminal, until the lines that say what came of it."""
    shown = sys.stderr.isatty()
    if shown:
        print(text, end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print(" " * len(text), end="\r", file=sys.stderr, flush=True)


def quiet():
    """Our own lines only: no progress bars and no notices of the libraries below."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def warnings_as_lines():
    """Each warning one line on the screen, without the place in our code. Also to decorate a command."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *place: fail(message)
        yield


def fail(message) -> int:
    """One line on the screen, of a text or an error; the status of the command."""
    from tqdm import tqdm

    if isinstance(message, OSError) and message.filename is not None:
        message = f"{message.filename}: {message.strerror}"
    line = " ".join(part.strip() for part in str(message).splitlines())
    tqdm.write(printable(line), file=sys.stderr)  # above its bar
    return 2


def leave_output():
    """Where nothing more can be printed: Python would try again at its end, and fail with a message of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
