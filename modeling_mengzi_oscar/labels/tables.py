"""The dictionaries are data: tab-separated tables with a head, beside this file."""

from csv import QUOTE_NONE, DictReader
from importlib.resources import files


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of a table, by the names in its head."""
    lines = (files(__package__) / name).read_text(encoding="utf-8").splitlines()
    return list(DictReader(lines, delimiter="\t", quoting=QUOTE_NONE))
