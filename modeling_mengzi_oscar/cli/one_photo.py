"""What `ask` and `match` share: texts that are files by mistake, a line per row of the result."""

import os

from .checkpoint import load_pipeline
from .output import fail, print_row


def is_file(text) -> bool:
    """A file, or what a shell leaves of a pattern that matches none."""
    from ..photos import SUFFIXES

    return os.path.isfile(text) or text.lower().endswith(SUFFIXES)


def print_rows(options, name, run) -> int:
    """A line per answer or text with its probability, or all of them as one JSON list."""
    try:
        rows = run(load_pipeline(options))
    except ValueError as error:
        return fail(str(error))
    if options.json:
        print_row(True, rows)
    else:
        for row in rows:
            print_row(False, row, row[name], f"{row['probability']:.3f}")
    return 0
