"""Command lines of the training scripts, and the rows and tensors that their flags name."""

import argparse
import atexit
import gc
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import yaml
from datasets import Image, load_dataset
from transformers import HfArgumentParser, TrainingArguments, set_seed

from datasets_scripts.prepare import NAMES, builder_class
from modeling_mengzi_oscar import RegionFeatureStore
from modeling_mengzi_oscar.features.extraction import label_texts
from modeling_mengzi_oscar.pipeline_mengzi_oscar import load_region_model

DATASET_HELP = (
    f"Data set: a builder ({', '.join(NAMES)}; needs --data_dir), a folder of Parquet files that "
    "`python -m datasets_scripts.prepare` wrote, or a Hub id."
)


def flag(help, *, choices=None, **default):
    """A field of a dataclass of flags. Many read --help alone: say what it does, its unit, what None means."""
    return field(metadata={"help": help} | ({"choices": choices} if choices else {}), **default)


@dataclass
class RunArguments:
    """What every job takes beside `TrainingArguments`."""

    model_name_or_path: str = flag(
        "Checkpoint to start training from or, with --do_predict, to run: a local folder or a Hub id."
    )
    dataset: str = flag(DATASET_HELP)
    data_dir: str | None = flag(
        "Folder with the builder's original files, laid out as docs/data.md says. Only builders need it.", default=None
    )
    dataset_config: str | None = flag(
        "Configuration of the data set; required by builders that have several (docs/data.md).", default=None
    )
    test_split: str = flag("Split that --do_predict runs on.", default="test")
    features: list[str] = flag(
        "Region feature stores of the images, written by `mengzi-oscar extract`. The first is the plain one; the "
        "others hold augmented versions of the same images (mirrored, for instance), and training draws one store per "
        "sample.",
        default_factory=list,
    )
    add_od_labels: bool = flag(
        "Feed tags to the model: the names of the objects in an image, as the feature store holds them.", default=False
    )
    max_img_seq_length: int = flag(
        "Maximum number of regions per image; the first, most confident ones stay.", default=50
    )
    drop_out: float | None = flag(
        "Dropout probability of the hidden states. If not given, the checkpoint's.", default=None
    )
    ema_decay: float = flag(
        "Decay of the exponential moving average (EMA) of the weights, 0.999 for instance. Evaluations and best/ use "
        "the averaged weights. 0: no averaging.",
        default=0.0,
    )
    early_stopping_patience: int = flag(
        "Stop after this many evaluations in a row without a new best --metric_for_best_model. 0: never stop early.",
        default=0,
    )
    max_eval_rows: int | None = flag(
        "Score only the first N rows of the split, in evaluations and with --do_predict. If not given, all.",
        default=None,
    )


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it stands in the script, and the default behind every flag."""


def parse_arguments(*dataclass_types, description, arguments=None):
    """One instance of each dataclass. `--recipe FILE.yaml` is read first: its keys are names of flags.

    Seeds with `--seed`: what a checkpoint lacks, a head for instance, is drawn alike in every run and every process.

    Raises:
        SystemExit: an unknown flag, no such recipe, or a key of the recipe that is no flag.
    """
    parser = HfArgumentParser(dataclass_types, description=description, formatter_class=HelpFormatter)
    parser.add_argument(
        "--recipe", type=Path, help="YAML file that sets flags (train/recipes/). The command line overrides it."
    )
    only_recipe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only_recipe.add_argument("--recipe", type=Path)
    arguments = sys.argv[1:] if arguments is None else arguments
    recipe = only_recipe.parse_known_args(arguments)[0].recipe
    if recipe is not None:
        if not recipe.is_file():
            parser.error(f"{recipe}: no such recipe")
        names, from_recipe = {known.name for kind in dataclass_types for known in fields(kind)}, []
        for name, value in yaml.safe_load(recipe.read_text(encoding="utf-8")).items():
            if name not in names:
                parser.error(f"{recipe}: {name!r} is not a flag of this script")
            from_recipe += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        arguments = [*from_recipe, *arguments]
    parsed = parser.parse_args_into_dataclasses(args=arguments)[: len(dataclass_types)]
    for options in parsed:
        if isinstance(options, TrainingArguments):
            set_seed(options.seed)
    return parsed


def settings_of(options, *names) -> dict:
    """Those of these flags that were given and --drop_out, under their names in a checkpoint's config."""
    settings = {name: getattr(options, name) for name in names} | {"hidden_dropout_prob": options.drop_out}
    return {name: value for name, value in settings.items() if value is not None}


def attention_of(training) -> str:
    """On CPUs the fused attention is slower to train at these sizes."""
    return "sdpa" if training.do_predict or training.device.type != "cpu" else "eager"


@atexit.register
def leave_process_group():
    """Ends gloo's threads: one that still holds a tensor when the interpreter ends aborts the process, now and then."""
    if torch.distributed.is_initialized():
        gc.collect()  # the trainer, which refers to itself, holds the process group
        torch.distributed.destroy_process_group()


def load_splits(options, **settings):
    """The splits of `--dataset`; photos stay paths until they are opened. `settings` are for its builder.

    Raises:
        SystemExit: a builder without --data_dir.
    """
    if options.dataset in NAMES:
        if options.data_dir is None:
            raise SystemExit(f"--dataset {options.dataset} needs --data_dir: the original files, see docs/data.md")
        builder = builder_class(options.dataset)(
            data_dir=options.data_dir, config_name=options.dataset_config, **settings
        )
        builder.download_and_prepare()
        splits = builder.as_dataset()
    else:
        splits = load_dataset(options.dataset, options.dataset_config)
    if "image" in next(iter(splits.values())).features:
        splits = splits.cast_column("image", Image(decode=False))
    return splits


def split_of(splits, name):
    """One of `load_splits`.

    Raises:
        SystemExit: there is none of that name.
    """
    if name not in splits:
        raise SystemExit(f"--dataset has no split {name!r}; it has {', '.join(splits)}")
    return splits[name]


def open_stores(options) -> list[RegionFeatureStore]:
    """The stores of `--features`.

    Raises:
        SystemExit: none was named.
    """
    if not options.features:
        raise SystemExit("--features is missing: region features of the photos, made by mengzi-oscar extract")
    return [RegionFeatureStore.open(path) for path in options.features]


def tag_texts(options, store) -> list[str]:
    """The words of a store's tag or class ids, in Chinese; where it does not say them those of the checkpoint's region
    model.

    Raises:
        SystemExit: neither knows.
    """
    if store.labels is not None:
        return store.labels
    try:
        return label_texts(load_region_model(options.model_name_or_path)[0], "zh")
    except ValueError as error:
        raise SystemExit(
            f"{store.path} does not name its tags, nor does --model_name_or_path ({error}): go without tags"
        ) from None
