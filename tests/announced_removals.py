"""What the libraries below announce to remove, in code that we call, is an error in our tests: a release ahead of time.

Some announce it as Python warnings, others in their logs. A test in which one comes fails with its text. `EXCEPTIONS`
are those that we know and cannot act upon yet, each with its reason.
"""

import logging
import re
import warnings
from pathlib import Path

import pytest

ANNOUNCED = re.compile(r"deprecat|will be removed|no longer be supported|removed in (v|version )?\d", re.IGNORECASE)
LIBRARIES = ("transformers", "datasets", "accelerate", "evaluate", "huggingface_hub", "timm", "gradio", "torch")
EXCEPTIONS = {
    r"torch\.ao\.quantization|torch\.quantize_per|torch\.jit": "8-bit products: torchao, named instead, is slower "
    "than float32 on CPUs (docs/log.md); quantization.py says in one line when they are gone",
    r"`is_gradient_checkpointing` is deprecated": "peft's use of transformers, 0.21",
    r"gradio/queueing\.py: Pandas4Warning": "gradio's own use of pandas",
}


def is_announcement(text: str) -> bool:
    return bool(ANNOUNCED.search(text)) and not any(re.search(known, text) for known in EXCEPTIONS)


class Announcements(logging.Handler):
    """Collects them from the logs of the libraries."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(f"{record.name}: {record.getMessage()}")


def by_a_library(warning) -> bool:
    """Not by what these libraries themselves use, like starlette below gradio."""
    parts = Path(warning.filename).parts
    return "site-packages" not in parts or parts[parts.index("site-packages") + 1] in LIBRARIES


@pytest.fixture(autouse=True)
def no_announced_removals():
    handler = Announcements()
    for name in LIBRARIES:
        logging.getLogger(name).addHandler(handler)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    for name in LIBRARIES:
        logging.getLogger(name).removeHandler(handler)
    said = [f"{w.filename}: {w.category.__name__}: {w.message}" for w in said if by_a_library(w)]
    texts = [text for text in [*handler.texts, *said] if is_announcement(text)]
    assert not texts, "announced for removal:\n" + "\n".join(texts)
