"""The releases of transformers that this model works with; the one place where they stand.

A repo of ours runs with the transformers of its user. What is too old ends here, in one line, before a name that it
lacks is imported; what is newer than the tests are told once and tried: there is no upper bound (docs/versions.md).
"""

import re
import sys
import warnings

import transformers

OLDEST, NEWEST_TESTED = "5.1", "5.24"


def minor(version: str) -> tuple[int, int]:
    """ "5.24.0.dev0" -> (5, 24)"""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def check(installed: str):
    """
    Raises:
        ImportError: older than `OLDEST`.
    """
    if minor(installed) < minor(OLDEST):
        raise ImportError(
            f"mengzi-oscar works with transformers {OLDEST} and newer, {installed} is installed: "
            f"pip install --upgrade 'transformers>={OLDEST}'"
        )
    if minor(installed) > minor(NEWEST_TESTED):
        # Python tells a warning once per place. This file may be there several times (a copy for each class that a
        # repo's Auto classes load), so the list of what was told is the one of the program that runs.
        warnings.warn_explicit(
            f"mengzi-oscar is tested with transformers {OLDEST} to {NEWEST_TESTED}, {installed} is installed: it "
            "should work; if it does not, please report it and use a release of that range",
            UserWarning,
            "mengzi-oscar",
            1,
            registry=vars(sys.modules["__main__"]).setdefault("__warningregistry__", {}),
        )


check(transformers.__version__)
