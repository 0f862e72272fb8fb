"""A checkpoint as a Hub repo: laid out, described, checked, sent."""

from .repo import (
    AUTO_MAPS,
    ENDPOINT,
    PACKAGE,
    PIPELINE,
    PROCESSORS,
    add_head,
    assemble,
    check_repo,
    file_of,
    push,
    read_json,
    save_checkpoint,
    save_vocabulary,
    with_imports,
)

__all__ = [
    "AUTO_MAPS",
    "ENDPOINT",
    "PACKAGE",
    "PIPELINE",
    "PROCESSORS",
    "add_head",
    "assemble",
    "check_repo",
    "file_of",
    "push",
    "read_json",
    "save_checkpoint",
    "save_vocabulary",
    "with_imports",
]
