"""English labels of the VinVL detector as Chinese tags: the 1,594 object classes and the usual attributes.

Unlike the dictionary that the released Mengzi-Oscar models were trained with, every word here is meant in the sense a
photo shows: "back" is 背部, not 返回; "orange" is 橙子 as an object and 橙色 as an attribute. Where a word names two
things and neither is much commoner, the entry is the one that does less harm when wrong ("trunk" is 树干, because a tag
象鼻 would put an elephant into the picture). Attributes of one character carry 的 (长的), the others do not (圆形).

A released checkpoint wants the words it knows: give `to_chinese` its dictionary, read with `load_dictionary`. The words
stand in objects_zh.tsv and attributes_zh.tsv; a converted detector carries those of its classes in its config.
"""

import json
from collections.abc import Iterable, Mapping
from os import PathLike

from .tables import read_table

OBJECTS_ZH = {row["english"]: row["chinese"] for row in read_table("objects_zh.tsv")}
ATTRIBUTES_ZH = {row["english"]: row["chinese"] for row in read_table("attributes_zh.tsv")}


def to_chinese(label: str, dictionary: Mapping[str, str] | None = None) -> str:
    """The Chinese tag of an object class; the English label, stripped, where there is none (see `untranslated`).

    Args:
        label: an English label, in any case. Of the comma-joined variants that some Visual Genome vocabularies have
            ("window,windows") the first known one counts.
        dictionary: {English: Chinese} of the user; it goes before ours.
    """
    return _look_up(label, dictionary, OBJECTS_ZH, ATTRIBUTES_ZH) or label.strip()


def attribute_to_chinese(label: str, dictionary: Mapping[str, str] | None = None) -> str:
    """As `to_chinese`, for attributes, whose senses differ from those of objects: "light" is 浅色 here and 灯 there."""
    return _look_up(label, dictionary, ATTRIBUTES_ZH, OBJECTS_ZH) or label.strip()


def untranslated(labels: Iterable[str], dictionary: Mapping[str, str] | None = None) -> list[str]:
    """Those of the labels, objects or attributes, that stay English, in their order and as often as they come."""
    return [label for label in labels if _look_up(label, dictionary, OBJECTS_ZH, ATTRIBUTES_ZH) is None]


def load_dictionary(path: str | PathLike) -> dict[str, str]:
    """Reads a user's JSON object {English: Chinese}; the English keys come back stripped and in lower case.

    Raises:
        ValueError: the file, which is named, is no JSON object of non-empty strings.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            words = json.load(file)
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path} is not a JSON file in UTF-8: {error}") from error
    if not isinstance(words, dict):
        raise ValueError(f'{path} must hold one JSON object {{"English": "Chinese"}}, not a {type(words).__name__}')
    for english, chinese in words.items():
        if not isinstance(chinese, str) or not chinese.strip():
            raise ValueError(f"{path}: the translation of {english!r} must be a non-empty string, not {chinese!r}")
    return {english.strip().lower(): chinese.strip() for english, chinese in words.items()}


def _look_up(label: str, *dictionaries: Mapping[str, str] | None) -> str | None:
    label = label.strip()
    variants = [label, label.lower(), *(variant.strip() for variant in label.lower().split(","))]
    known = (words[variant] for words in dictionaries if words for variant in variants if variant in words)
    return next(known, None)
