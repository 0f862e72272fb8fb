"""A head in the folder of a checkpoint, `both/match` or `both/ask`: where it goes, and whether it fits."""

from pathlib import Path

import torch

from ..checkpoint_folder import CheckpointError, CheckpointFolder, read_json
from ..configuration_mengzi_oscar import PINNED, MengziOscarConfig
from ..hub.repo import folder_of_region_model, task_of
from ..loading import KINDS, region_model_folder

TASK_BELOW = {"retrieval": "match", "vqa": "ask", "gqa": "ask"}  # of convert -> the subfolder that the pipeline reads
OF_A_FILE = {"architectures", "auto_map", "dtype", "transformers_version"}  # fields of a config that change no number


def checkpoint_around(output: Path) -> Path | None:
    """The checkpoint of ours in whose folder `output` lies, if that is named as a head is."""
    config = output.parent / "config.json"
    if output.name not in TASK_BELOW.values() or not config.is_file():
        return None
    return output.parent if read_json(config).get("model_type") == MengziOscarConfig.model_type else None


def check_fits(root: Path, output: Path, task: str, config, source: CheckpointFolder, region_model) -> str | None:
    """What the config of a head says of the region model: the root's, if the head was trained with it.

    Args:
        task, config: of the head. region_model: that it was trained with, where the caller says so.

    Raises:
        CheckpointError: the head does not go to `output`, or reads other features than the root.
    """
    around = CheckpointFolder(root)
    said = around.json("config.json")
    if task not in TASK_BELOW:
        raise CheckpointError(f"{source.name}: task {task} is no head for photos; give an OUTPUT outside of {root}")
    if output.name != TASK_BELOW[task]:
        raise CheckpointError(
            f"{output}: {KINDS[TASK_BELOW[task]]} of {root} lies in {root / TASK_BELOW[task]}: name that"
        )
    if task_of(said) == output.name:
        raise CheckpointError(f"{root}: is {KINDS[output.name]} itself; give another OUTPUT")
    root_config = around.config(MengziOscarConfig)
    if config.img_feature_dim != root_config.img_feature_dim:
        raise CheckpointError(
            f"{source.name}: reads features {config.img_feature_dim} wide, {root} {root_config.img_feature_dim}: they "
            "were trained with different region models"
        )
    named = region_model or named_by(source)
    if root_config.region_model and named and not is_of(root, root_config.region_model, named):
        raise CheckpointError(f"{source.name}: was trained with another region model ({named}) than {root}")
    return root_config.region_model


def named_by(source: CheckpointFolder) -> str | None:
    """The region model that a source names: a Hub id with revision, or the folder beside it, if that is there."""
    named = source.json("config.json").get("region_model")
    if not named or PINNED.fullmatch(str(named)):
        return named
    folder = source.path / str(named)
    return str(folder) if (folder / "config.json").is_file() else None


def is_of(root: Path, region_model: str, named: str) -> bool:
    """Whether the region model `named`, a Hub id with revision or a folder, is the one of `root`."""
    if named == region_model and PINNED.fullmatch(named):
        return True
    ours, other = region_model_folder(root), folder_of_region_model(named)
    configs = [
        {name: value for name, value in folder.json("config.json").items() if name not in OF_A_FILE}
        for folder in (ours, other)
    ]
    if configs[0] != configs[1]:
        return False
    ours, other = ours.weights(), other.weights()
    return ours.keys() == other.keys() and all(same_numbers(tensor, other[name]) for name, tensor in ours.items())


def same_numbers(one: torch.Tensor, other: torch.Tensor) -> bool:
    """In the coarser of their types: a training stores a copy in float16."""
    coarser = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return one.shape == other.shape and torch.equal(one.to(coarser), other.to(coarser))
