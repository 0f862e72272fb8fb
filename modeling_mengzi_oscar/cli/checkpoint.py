"""Which checkpoint a command runs: the one that was named, or the mini that comes with the project."""

import sys
from pathlib import Path

from .output import quiet

PACKAGE = Path(__file__).resolve().parents[1]


def bundled_checkpoint() -> Path:
    """The mini: inside an installed package, beside it in a clone and in a Space. The folder may be missing."""
    inside = PACKAGE / "checkpoints" / "mengzi-oscar-mini"
    return inside if inside.is_dir() else PACKAGE.parent / "checkpoints" / "mengzi-oscar-mini"


BUNDLED = bundled_checkpoint()


def load_pipeline(options, **parts):
    """
    Args:
        **parts: what else `MengziOscarPipeline.from_pretrained` takes.
    """
    if sys.stderr.isatty():  # the libraries below take seconds to import
        print("loading …", end="\r", file=sys.stderr, flush=True)
    quiet()
    from ..pipeline_mengzi_oscar import MengziOscarPipeline

    pipeline = MengziOscarPipeline.from_pretrained(model_or_bundled(options.model), dtype=options.dtype, **parts)
    if sys.stderr.isatty():
        print("         ", end="\r", file=sys.stderr, flush=True)  # where the first result will stand
    return pipeline


def model_or_bundled(model):
    if model is None and not BUNDLED.is_dir():
        raise ValueError(f"{BUNDLED}: the mini checkpoint is not there: name another one with --model")
    return str(BUNDLED) if model is None else model
