"""How a checkpoint comes from a folder or the Hub into memory: looked at first, then loaded, or refused in one line."""

import os
import re
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig

if TYPE_CHECKING:  # transformers before 5.10 brings only the files that the file of a class names itself
    from .fields import Rule  # noqa: F401
    from .supported_transformers import OLDEST  # noqa: F401


class CheckpointError(ValueError):
    """One line: which checkpoint, what is wrong with it, what to do."""


def load_checked(model_class, name, **options):
    """`from_pretrained` that refuses a checkpoint which does not fit the model, in one line.

    Raises:
        CheckpointError
    """
    try:
        model, info = model_class.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        here = "" if os.path.exists(name) else "no such folder here, and as a Hub id it "
        raise CheckpointError(f"{name}: {here}cannot be loaded as {model_class.__name__}: {reason[:300]}") from None
    problems = {kind: sorted(map(str, info[kind])) for kind in info if kind.endswith("keys") and info[kind]}
    if problems:
        found = "; ".join(f"{len(keys)} {kind.replace('_', ' ')}, e.g. {keys[0]}" for kind, keys in problems.items())
        raise CheckpointError(
            f"{name}: its weights do not fit {model_class.__name__} ({found}); "
            "config.json and weights must be of one checkpoint"
        )
    return model


def region_model_classes(model_type):
    """Model and image processor of a `model_type`, None where it is no region model.

    They are ours: code of another repo never runs. Each is imported where it is needed: the detector needs no timm, the
    grid model no torchvision.
    """
    if model_type == "grid_regions":
        from .modeling_grid_regions import GridRegionImageProcessor, GridRegionModel

        return GridRegionModel, GridRegionImageProcessor
    if model_type == "vinvl":
        from .image_processing_vinvl import VinVLImageProcessor
        from .modeling_vinvl import VinVLModel

        return VinVLModel, VinVLImageProcessor
    return None


def load_region_model(name, subfolder="", revision=None):
    """Region model and its image processor, float32, from a folder or Hub id.

    `name` is a region model or a Mengzi-Oscar checkpoint that names one in its config: a subfolder of its own repo,
    or "org/name@revision".

    Raises:
        CheckpointError: it is neither, or its weights do not fit.
    """
    try:
        config, _ = PretrainedConfig.get_config_dict(name, subfolder=subfolder, revision=revision)
    except OSError as error:
        raise CheckpointError(f"{name}: no config.json there ({' '.join(str(error).split())[:200]})") from None
    model_type = config.get("model_type")
    if classes := region_model_classes(model_type):
        model_class, processor_class = classes
        options = {"subfolder": subfolder, "revision": revision}
        model = load_checked(model_class, name, dtype="float32", **options)
        model = model.eval().to(memory_format=torch.channels_last)  # convolutions are 1.5 times as fast on CPUs
        return model, processor_class.from_pretrained(name, **options)
    region_model = config.get("region_model")
    if not region_model:
        raise CheckpointError(f"{name}: no region model there, and its config names none (model_type {model_type!r})")
    if re.fullmatch(r"[\w.-]+/[\w.-]+@[\w.-]+", region_model):
        repository, region_revision = region_model.split("@")
        return load_region_model(repository, revision=region_revision)
    return load_region_model(name, subfolder=region_model, revision=revision)
