"""The 80 classes of COCO's detection task, in the order in which detectors number them, and a Chinese word for each."""

from .tables import read_table


def object_words() -> dict[str, str]:
    """{English name: Chinese word}, in the order of the classes."""
    return {row["english"]: row["chinese"] for row in read_table("coco_zh.tsv")}
