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
from modeling_mengzi_oscar.extraction import label_texts
from modeling_mengzi_oscar.pipeline_mengzi_oscar import load_region_model


@dataclass
class RunArguments:
    """What every job takes beside `TrainingArguments`."""

    model_name_or_path: str = field(metadata={"help": "checkpoint to start from, or to score: folder or Hub id"})
    dataset: str = field(
        metadata={"help": f"a builder ({', '.join(NAMES)}), a folder of Parquet that prepare wrote, or a Hub id"}
    )
    data_dir: str | None = field(default=None, metadata={"help": "original files of a builder, as docs/data.md says"})
    dataset_config: str | None = field(default=None, metadata={"help": "where a builder has several"})
    test_split: str = field(default="test", metadata={"help": "split that --do_predict reads"})
    features: list[str] = field(default_factory=list, metadata={"help": "stores: the plain one, then augmented ones"})
    add_od_labels: bool = field(default=False, metadata={"help": "tags: the names of the regions, from the store"})
    max_img_seq_length: int = field(default=50, metadata={"help": "regions of an image"})
    drop_out: float | None = field(default=None, metadata={"help": "of the hidden states, instead of the checkpoint's"})
    ema_decay: float = field(default=0.0, metadata={"help": "weight averaging, 0.999 for instance; 0 = none"})
    early_stopping_patience: int = field(
        default=0, metadata={"help": "stop after so many evaluations without a better one; 0 = never"}
    )
    max_eval_rows: int | None = field(default=None, metadata={"help": "score the first so many rows only"})


def parse_arguments(*dataclass_types, description, arguments=None):
    """One instance of each dataclass. `--recipe FILE.yaml` is read first: its keys are names of flags.

    Seeds with `--seed`: what a checkpoint lacks, a head for instance, is drawn alike in every run and every process.

    Raises:
        SystemExit: an unknown flag, no such recipe, or a key of the recipe that is no flag.
    """
    parser = HfArgumentParser(
        dataclass_types, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, help="YAML file of flags; the command line overrides it")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", type=Path)
    arguments = sys.argv[1:] if arguments is None else arguments
    recipe = first.parse_known_args(arguments)[0].recipe
    if recipe is not None:
        if not recipe.is_file():
            parser.error(f"{recipe}: no such recipe")
        names, given = {flag.name for kind in dataclass_types for flag in fields(kind)}, []
        for name, value in yaml.safe_load(recipe.read_text(encoding="utf-8")).items():
            if name not in names:
                parser.error(f"{recipe}: {name!r} is not a flag of this script")
            given += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        arguments = [*given, *arguments]
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
