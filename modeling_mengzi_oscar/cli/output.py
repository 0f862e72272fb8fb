"""What the commands print: a result or a mistake is one line each."""

import json
import os
import re
import sys


def print_row(as_json, record, *columns):
    """A result as one line of standard output: as JSON, or its columns between tabs."""
    line = json.dumps(record, ensure_ascii=False) if as_json else "\t".join(map(printable, columns))
    if as_json:
        try:
            line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        except UnicodeEncodeError:  # spelled out as JSON does it
            line = json.dumps(record)
    print(line, flush=True)


def printable(text) -> str:
    """Line ends and control characters spelled out, as file names may have them."""
    return re.sub(r"[\0-\x1f\x7f-\x9f\u2028\u2029]", lambda sign: repr(sign[0])[1:-1], text)


def progress(items, total):
    from tqdm import tqdm

    return tqdm(items, total=total, unit="photo", disable=total < 5, file=sys.stderr)


def quiet():
    """Our own lines only: no progress bars and no notices of the libraries below."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


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
