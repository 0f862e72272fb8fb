"""Which checkpoint a command runs: the one that was named, or the mini that comes with the project."""

from pathlib import Path

from .output import meanwhile, quiet, warnings_as_lines

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
    with meanwhile("loading …"):  # the libraries below take seconds to import, too
        quiet()
        from ..pipeline_mengzi_oscar import MengziOscarPipeline

        with warnings_as_lines():
            return MengziOscarPipeline.from_pretrained(model_or_bundled(options.model), dtype=options.dtype, **parts)


def model_or_bundled(model):
    if model is None and not BUNDLED.is_dir():
        raise ValueError(f"{BUNDLED}: the mini checkpoint is missing: name another one with --model")
    return str(BUNDLED) if model is None else model
