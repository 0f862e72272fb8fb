"""What the fields of a checkpoint's JSON files may hold: rules, checked where a config or a processor is made.

A value of the wrong kind would otherwise end somewhere below, in an error that does not name the field, in a model of
10^12 numbers, or in captions that are silently wrong.
"""

import reprlib
import unicodedata
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from .supported_transformers import OLDEST  # noqa: F401  (importing it checks the installed release)


class Rule(NamedTuple):
    """`says` goes on after "must be"."""

    says: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    return Rule(
        f"a whole number from {low:,} to {high:,}",
        lambda value: isinstance(value, Integral) and not isinstance(value, bool) and low <= value <= high,
    )


def number(low: float, high: float) -> Rule:
    return Rule(
        f"a number from {low:,} to {high:,}",  # NaN is in no range
        lambda value: isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high,
    )


def one_of(*values) -> Rule:
    return Rule(
        " or ".join(map(repr, values)), lambda value: any(type(value) is type(one) and value == one for one in values)
    )


def optional(rule: Rule) -> Rule:
    return Rule(f"{rule.says}, or null", lambda value: value is None or rule.holds(value))


def listed(rule: Rule, length: int | None = None) -> Rule:
    def holds(value):
        return isinstance(value, (list, tuple)) and length in (None, len(value)) and all(map(rule.holds, value))

    return Rule(f"a list{f' of {length}' if length else ''}, each {rule.says}", holds)


def either(*rules: Rule) -> Rule:
    return Rule(" or ".join(rule.says for rule in rules), lambda value: any(rule.holds(value) for rule in rules))


def mapping(keys: Rule, values: Rule) -> Rule:
    def holds(value):
        return isinstance(value, Mapping) and all(map(keys.holds, value)) and all(map(values.holds, value.values()))

    return Rule(f"an object from {keys.says} to {values.says}", holds)


def _is_id(value) -> bool:
    return isinstance(value, Integral) or (isinstance(value, str) and value.isascii() and value.isdecimal())


def _is_text(value) -> bool:  # no line break, no control character of a terminal, nothing that UTF-8 cannot write
    return isinstance(value, str) and all(unicodedata.category(letter) not in ("Cc", "Cs") for letter in value)


flag = Rule("true or false", lambda value: isinstance(value, Integral) and value in (0, 1))  # Oscar's files say 1
text = Rule("a text on one line", _is_text)
word = Rule("a text on one line, not empty", lambda value: _is_text(value) and value.strip() != "")
labels = mapping(Rule("numbers", _is_id), text)  # an answer may be empty: VQA has one
anything = Rule("anything", lambda value: True)
plain_name = Rule(
    "a plain name, no path and nothing of the Hub",
    lambda value: isinstance(value, str) and value.isascii() and value.replace("_", "a").replace(".", "a").isalnum(),
)

COMMON = {  # what transformers' own `PretrainedConfig` takes and we let through
    "architectures": optional(listed(plain_name)),
    "attn_implementation": optional(plain_name),
    "_attn_implementation": optional(plain_name),
    "auto_map": optional(mapping(text, text)),
    "custom_pipelines": optional(mapping(text, mapping(text, anything))),
    "dtype": optional(
        Rule("a floating-point type", lambda value: str(value).removeprefix("torch.") in FLOATING_POINT_TYPES)
    ),
    "id2label": optional(labels),
    "label2id": optional(mapping(text, whole(0, 1_000_000))),
    "num_labels": optional(whole(0, 100_000)),
    "output_attentions": optional(flag),
    "output_hidden_states": optional(flag),
    "return_dict": optional(flag),
}
FLOATING_POINT_TYPES = ("float16", "bfloat16", "float32", "float64")


def check_fields(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """
    Raises:
        ValueError: a value that its rule does not allow, by name.
    """
    for name, rule in rules.items():
        if name in values and not rule.holds(values[name]):
            raise ValueError(f"{name} is {reprlib.repr(values[name])}; it must be {rule.says}")
