"""Command lines of the training scripts, and the rows and tensors that their flags name."""

import argparse
import atexit
import difflib
import gc
import math
import re
import sys
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import wraps
from pathlib import Path

import torch
from datasets import Image, load_dataset
from datasets.exceptions import DatasetGenerationError
from safetensors import SafetensorError
from transformers import HfArgumentParser, TrainingArguments, set_seed

from datasets_scripts.prepare import NAMES, builder_class
from datasets_scripts.reading import BadRow
from modeling_mengzi_oscar import RegionFeatureStore
from modeling_mengzi_oscar.checkpoint_folder import CheckpointError, CheckpointFolder
from modeling_mengzi_oscar.convert.oscar import (
    HEADS,
    OriginalFolder,
    checkpoint_to_start_from,
    may_miss,
    processor_settings,
)
from modeling_mengzi_oscar.features.stored_photos import region_labels
from modeling_mengzi_oscar.loading import load_model, load_processor
from modeling_mengzi_oscar.precision import another_precision

from .recipes import recipe_flags
from .report import LOGS, say

DATASET_HELP = (
    f"Data set: a builder ({', '.join(NAMES)}; needs --data_dir), a folder of Parquet files that "
    "`python -m datasets_scripts.prepare` wrote, or a Hub id."
)


PUBLISHED = "If not given, as the checkpoint was trained for this task, else as published (docs/conversion.md)."


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
        "others hold augmented versions of the training images (mirrored, for instance), and training draws one store "
        "per sample. NAME=STORE for rows of several data sets, which have a column dataset.",
        default_factory=list,
    )
    add_od_labels: bool | None = flag(
        "Feed tags to the model: the names of the objects in an image, as the feature store holds them or, from "
        "pixels, as the region model finds them. If not given, as the checkpoint was trained (an original one: with "
        "tags).",
        default=None,
    )
    max_img_seq_length: int | None = flag(
        f"Maximum number of regions per image; the first, most confident ones stay. {PUBLISHED}",
        default=None,
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
    dtype: str = flag(
        "--do_predict: compute dtype. auto: bfloat16 on GPUs and on CPUs with AMX, else float32; "
        "int8: 8 bits, on CPUs.",
        default="auto",
        choices=["auto", "float32", "bfloat16", "int8"],
    )
    max_eval_rows: int | None = flag(
        "Score only the first N rows of the split, in evaluations and with --do_predict. If not given, all.",
        default=None,
    )
    skip_bad: bool = flag(
        "Leave out, count and name what is broken: rows that the builder refuses, photos that cannot be read (from "
        "pixels), rows without a sentence or answer, references without a word. Without it such data stop the start.",
        default=False,
    )
    skip_missing: bool = flag(
        "Leave out, count and name the rows whose images have no features. Without it they stop the start.",
        default=False,
    )


# What a flag's type lets through and no training can use: the least value, and the greatest.
COUNTS = {  # None: no limit
    1: "max_img_seq_length max_seq_length num_beams num_hidden_layers cls_hidden_scale max_eval_rows sentence_rounds "
    "sentences_per_photo max_masked_tokens sc_train_sample_n hard_top shortlist validation_images train_batch_size "
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps save_total_limit",
    0: "early_stopping_patience max_tags num_captions_per_img_train num_captions_per_img_val seed drop_worst_after "
    "learning_rate region_model_learning_rate weight_decay max_grad_norm warmup_steps dataloader_num_workers "
    "num_train_epochs img_layer_norm_eps adam_epsilon logging_steps save_steps eval_steps "
    "lora_r",
    3: "max_seq_a_length max_gen_length",
}
RANGES = {name: (least, None) for least, names in COUNTS.items() for name in names.split()}
RANGES |= dict.fromkeys(("drop_out", "ema_decay", "corruption", "mask_prob", "tag_dropout", "foreign_regions"), (0, 1))
RANGES |= dict.fromkeys(("label_smoothing", "drop_worst_ratio", "adam_beta1", "adam_beta2"), (0, 1))
RANGES |= {"texta_false_prob": (0, 0.5), "seed": (0, 2**32 - 1)}


# Where `TrainingArguments` would leave a run without a line of its loss, without its beginning, or a full disk, and
# where it would refuse --bf16 because the CPU that is all there is was not asked for by name.
DEFAULTS = {"logging_steps": LOGS, "eval_on_start": True, "save_total_limit": 2}
DEFAULTS["use_cpu"] = not torch.accelerator.is_available()


class Refused(SystemExit):
    """One line on stderr and exit status 2."""

    def __init__(self, line):
        super().__init__(" ".join(str(line).split()))
        self.code = 2


def told_in_one_line(main):
    """Around a script's `main`: what is wrong with what it was given is one line, without a traceback."""
    script = Path(main.__code__.co_filename).name

    @wraps(main)
    def run(arguments=None):
        try:
            return main(arguments)
        except (ValueError, OSError, SafetensorError, DatasetGenerationError, SystemExit) as error:
            if isinstance(error, SystemExit) and not isinstance(error.code, str):
                raise  # --help
            refuse(script, error)

    return run


def refuse(script, error):
    refused = Refused(error)
    print(f"{script}: {refused}", file=sys.stderr)
    raise refused from error


class FlagParser(HfArgumentParser):
    """A parser whose errors are one line, without the list of all flags before it."""

    def __init__(self, dataclass_types, **kwargs):
        self.flags = {known.name: known for kind in dataclass_types for known in fields(kind) if known.init}
        super().__init__(dataclass_types, **kwargs)

    def error(self, message):
        raise ValueError(message)

    def did_you_mean(self, name) -> str:
        close = difflib.get_close_matches(name, self.flags, n=1)
        return f"; did you mean {close[0]}?" if close else ""

    def check_flag(self, arguments, where):
        """Parses one flag of a recipe by itself, so that an error can name its place."""
        required = [f"--{name}=x" for name, known in self.flags.items() if default_of(known) is MISSING]
        try:
            _, too_many = self.parse_known_args([*required, *arguments])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if too_many:
            raise ValueError(f"{where}: {arguments[0]} takes one value, not a list")


def default_of(known):
    return known.default if known.default_factory is MISSING else known.default_factory()


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it stands in the script, and the default behind every flag."""


def parse_arguments(*dataclass_types, description, arguments=None):
    """One instance of each dataclass. `--recipe FILE.yaml` is read first: its keys are names of flags.

    Seeds with `--seed`: what a checkpoint lacks, a head for instance, is drawn alike in every run and every process.

    Raises:
        Refused: an unknown flag or value; names file, row and key where a recipe has it.
    """
    parser = FlagParser(dataclass_types, description=description, formatter_class=HelpFormatter)
    try:
        return read_flags(parser, dataclass_types, arguments)
    except ValueError as error:
        refuse(parser.prog, error)


def read_flags(parser, dataclass_types, arguments):
    parser.add_argument(
        "--recipe", type=Path, help="YAML file that sets flags (train/recipes/). The command line overrides it."
    )
    only_recipe = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    only_recipe.add_argument("--recipe", type=Path, nargs="?", const=None)
    arguments = sys.argv[1:] if arguments is None else arguments
    recipe, given = only_recipe.parse_known_args(arguments)[0].recipe, {}
    parser.set_defaults(**{name: value for name, value in DEFAULTS.items() if name in parser.flags})
    if recipe is not None:
        if not recipe.exists():
            parser.error(f"{recipe}: no such recipe")
        defaults = {name: default_of(known) for name, known in parser.flags.items()}
        given = recipe_flags(parser, recipe, defaults)
    from_recipe = [argument for _, flags in given.values() for argument in flags]
    *_, unknown = parser.parse_known_args([*from_recipe, *arguments])
    if unknown:
        name = unknown[0].partition("=")[0]
        parser.error(f"{name} is not a flag of this script{parser.did_you_mean(name.lstrip('-').replace('-', '_'))}")
    try:
        parsed = parser.parse_args_into_dataclasses([*from_recipe, *arguments])[: len(dataclass_types)]
    except Exception as error:  # `TrainingArguments` looks at its flags together, and at what is installed
        named = [f" ({where})" for name, (where, _) in given.items() if name in str(error)]
        named = named or [f" (flags of the command line and of {recipe})"] * bool(recipe)
        raise ValueError(f"{error}" + "".join(named)) from error
    for options in parsed:
        check_ranges(options, given)
        if isinstance(options, TrainingArguments):
            set_seed(options.seed)
    check_together(parsed)
    return parsed


def check_ranges(options, from_recipe):
    """Raises ValueError where a number is none that a training can use."""
    for known in fields(options):
        value, name = getattr(options, known.name), known.name
        least, greatest = RANGES.get(name, (None, None))
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        where = f"{from_recipe[name][0]}: {name}" if name in from_recipe else f"--{name}"
        if least is not None and value < least or greatest is not None and value > greatest:
            limits = f"{least:,} or more" if greatest is None else f"{least} to {greatest:,}"
            raise ValueError(f"{where} is {value}; it takes {limits}")
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; it takes a number")


def check_together(parsed):
    """Raises ValueError for flags that do not go together, and for a regular expression that is none."""
    flags = {known.name: getattr(options, known.name) for options in parsed for known in fields(options)}
    try:
        re.compile(flags.get("tune_region_model") or "")
    except re.error as error:
        raise ValueError(f"--tune_region_model {flags['tune_region_model']}: no regular expression ({error})") from None
    if flags.get("early_stopping_patience") and flags["eval_strategy"] == "no" and not flags["do_predict"]:
        raise ValueError("--early_stopping_patience counts evaluations: --eval_strategy steps or epoch is missing")
    if flags.get("sc_baseline_type") == "sample" and flags["sc_train_sample_n"] < 2:
        raise ValueError("--sc_baseline_type sample compares samples of a photo: --sc_train_sample_n 2 or more")


def settings_of(options, *names) -> dict:
    """Those of these flags that were given and --drop_out, under their names in a checkpoint's config."""
    settings = {name: getattr(options, name) for name in names} | {"hidden_dropout_prob": options.drop_out}
    return {name: value for name, value in settings.items() if value is not None}


def checkpoint_of(options) -> CheckpointFolder:
    """--model_name_or_path: a checkpoint of ours, or an original one, read as `convert` reads it.

    Raises:
        SystemExit: one line: nothing to load.
    """
    try:
        return checkpoint_to_start_from(options.model_name_or_path)
    except CheckpointError as error:
        raise SystemExit(f"--model_name_or_path {error}") from None


def model_from(kind, folder, *, trained=False, new=(), **settings):
    """A model to train; what its checkpoint has not of the heads begins at random.

    Args:
        folder: of `checkpoint_of`.
        trained: it is not trained any more, so that nothing may be missing.
        new: beginnings of the names of parameters that may have another shape there: they begin at random.
        **settings: as `load_model` takes them.

    Raises:
        SystemExit: one line: nothing to load, damaged, or parameters that are missing, left over or of another shape.
    """
    try:
        model, report = load_model(kind, folder, **settings)
    except CheckpointError as error:
        raise SystemExit(f"--model_name_or_path {error}") from None
    wrong = sorted(key for key, *_ in report["mismatched_keys"] if not key.startswith(tuple(new)))
    if wrong:
        raise SystemExit(f"--model_name_or_path {folder.name}: {wrong[0]} has another shape than this run needs")
    left = sorted(
        key for key in report["unexpected_keys"] if key.startswith(("bert.img_embedding.", "bert.LayerNorm."))
    )
    if left:
        hint = "; config.json lacks use_img_layernorm" if "bert.LayerNorm.weight" in left else ""
        raise SystemExit(f"--model_name_or_path {folder.name}: its weights have {left[0]}, the model has not{hint}")
    missing, of_text = sorted(report["missing_keys"]), "bert.img_embedding.weight" in report["missing_keys"]
    if lacking := [key for key in missing if trained or not may_miss(key, of_text, allow_missing=True)]:
        raise SystemExit(
            f"--model_name_or_path {folder.name}: has no {lacking[0]}"
            + (f", of {len(lacking)} weights that it lacks" if len(lacking) > 1 else "")
            + (f": it was never trained as {kind.__name__}; name a checkpoint that was" if trained else "")
        )
    return model


def processor_from(task, folder, options, config):
    """The processor of a checkpoint as this run uses it, and as what the run saves will use it.

    Layout and lengths are the checkpoint's where it was trained for this task, else those of the published commands;
    tags the checkpoint's. A flag that was given wins.

    Args:
        task: a key of `HEADS`. folder: of `checkpoint_of`. config: of the model.

    Raises:
        SystemExit: one line: nothing to load, or damaged.
    """
    try:
        if isinstance(folder, OriginalFolder):
            processor = folder.processor(task)
        else:
            processor = load_processor(folder.checkpoint)
            if folder.json("config.json").get("architectures") != [HEADS[task].__name__]:
                for name, value in processor_settings(task, config).items():
                    setattr(processor, name, value)
    except CheckpointError as error:
        raise SystemExit(f"--model_name_or_path {error}") from None
    if options.max_img_seq_length is not None:
        processor.max_regions = options.max_img_seq_length
    if getattr(options, "max_seq_length", None) is not None:
        processor.max_length = within_positions(options, "max_seq_length", config)
    return processor


def within_positions(options, flag, config) -> int:
    """A length in tokens that a flag limits, and the position embeddings of the checkpoint, too."""
    length, most = getattr(options, flag), config.max_position_embeddings
    if length > most:
        say(f"--{flag} is {length:,}; the checkpoint has positions for {most:,} tokens, which is the limit")
    return min(length, most)


def attention_of(training) -> str:
    """On CPUs the fused attention is slower to train at these sizes."""
    return "sdpa" if training.do_predict or training.device.type != "cpu" else "eager"


@atexit.register
def leave_process_group():
    """Ends gloo's threads: one that still holds a tensor when the interpreter ends aborts the process, now and then."""
    if torch.distributed.is_initialized():
        gc.collect()  # the trainer, which refers to itself, holds the process group
        torch.distributed.destroy_process_group()


def load_splits(options, *needed, **settings):
    """The splits of `--dataset`; photos stay paths until they are opened. `settings` are for its builder.

    Raises:
        SystemExit: a builder without --data_dir, or there is no split of a name in `needed`.
        ValueError: the builder met a bad row and --skip_bad was not given.
    """
    if options.dataset in NAMES:
        if options.data_dir is None:
            raise SystemExit(f"--dataset {options.dataset} needs --data_dir: the original files, see docs/data.md")
        settings |= {"skip_bad": True} if options.skip_bad else {}
        builder = builder_class(options.dataset)(
            data_dir=options.data_dir, config_name=options.dataset_config, **settings
        )
        try:
            builder.download_and_prepare()
        except BadRow as error:
            raise ValueError(f"{error}; --skip_bad leaves bad rows out") from None
        splits = builder.as_dataset()
    else:
        splits = load_dataset(options.dataset, options.dataset_config)
    if not splits:
        raise SystemExit(f"--data_dir {options.data_dir}: there is no row that can be used")
    for name in needed:
        split_of(splits, name)
    if "image" in next(iter(splits.values())).features:
        splits = splits.cast_column("image", Image(decode=False))
    return splits


def splits_needed(options, training, train="train", validation="validation") -> tuple:
    """Names of the splits that a run works on."""
    return (options.test_split,) if training.do_predict else (train, validation)


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
    stores = [RegionFeatureStore.open(path) for path in options.features]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for store in stores:
        if line := another_precision(store.precision, options.dtype, device):
            say(f"{store.path}: {line}")
    return stores


def stores_of_datasets(options) -> dict:
    """{data set: its stores} of `--features NAME=STORE ..`, or {None: all of them} where none is named.

    Raises:
        SystemExit: some are named and some are not, or they name their tags differently.
    """
    names = [text.partition("=")[0] if is_named(text) else None for text in options.features]
    if None in names and any(names):
        raise SystemExit("--features: name the data set of each store (NAME=STORE), or of none")
    paths = [text.partition("=")[2] if is_named(text) else text for text in options.features]
    stores = {}
    for name, store in zip(names, open_stores(replace(options, features=paths)), strict=True):
        stores.setdefault(name, []).append(store)
    first, *others = every(stores)
    for store in others:
        if store.labels != first.labels:
            raise SystemExit(f"--features: {first.path} and {store.path} name their tags differently")
    return stores


def every(stores) -> list[RegionFeatureStore]:
    """The stores of all data sets."""
    return [store for group in stores.values() for store in group]


def is_named(text) -> bool:
    """Whether a store is written NAME=STORE; a path may have the sign, too."""
    return "=" in text and not Path(text).exists()


def check_width(start, config, stores):
    """
    Raises:
        SystemExit: a store has features of another region model than the checkpoint learnt from.
    """
    for store in stores:
        if store.feature_dim != config.img_feature_dim:
            raise SystemExit(
                f"{start.name} does not fit: it has features {config.img_feature_dim} wide, --features has rows of "
                f"{store.feature_dim} ({store.path})"
            )


def tag_texts(options, training, processor, store) -> list[str] | None:
    """The words of a store's tag or class ids where this run reads tags, else None. The processor is told which.

    It reads them as the checkpoint was trained; --add_od_labels that says another thing wins. A store without tags is
    said. store: None = from pixels, the tags are those of the checkpoint's region model.

    Raises:
        SystemExit: --add_od_labels asked for tags that are not known.
    """
    trained_with = processor.max_tags != 0
    wanted = trained_with if options.add_od_labels is None else options.add_od_labels
    if training.do_predict and wanted != trained_with:
        say(f"--add_od_labels {str(wanted).lower()}: the checkpoint was trained {'without' if wanted else 'with'} tags")
    if wanted:
        try:
            labels = tag_words_of(store, options.model_name_or_path)
        except ValueError as error:
            if options.add_od_labels:
                raise SystemExit(f"{error}: --add_od_labels false goes without") from None
            say(f"{error}: this run goes without" + ", the checkpoint learnt with tags" * training.do_predict)
        else:
            processor.max_tags = processor.max_tags or None
            note_language(processor, labels, options.model_name_or_path if store is None else store.path)
            return labels
    processor.max_tags = 0
    return None


def tag_words_of(store, checkpoint) -> list[str]:
    """The words of a store's tag or class ids; where it does not say them those, in Chinese, of the region model that
    the checkpoint names. store: None = those of the region model.

    Raises:
        ValueError: there are no tags, or nobody names them.
    """
    if store is None:
        try:
            return region_labels(checkpoint)
        except ValueError:
            raise ValueError(f"the region model of {checkpoint} has no tags") from None
    if not {"tag_ids", "class_ids"} & {*store.fields}:
        raise ValueError(f"{store.path} holds no tags")
    if store.labels is not None:
        return store.labels
    try:
        return region_labels(checkpoint)
    except ValueError as error:
        raise ValueError(f"{store.path} does not name its tags, nor does --model_name_or_path ({error})") from None


def note_language(processor, labels, source):
    """Tags are read in one language: what is saved says which, and other words than it learnt are said."""
    words = [word for word in labels if word]
    language = "zh" if sum(not word.isascii() for word in words) * 2 > len(words) else "en"
    if processor.tag_language not in (None, language):
        names = {"zh": "Chinese", "en": "English"}
        learnt = names[processor.tag_language]
        say(f"{source}: its tags are {names[language]}; the checkpoint learnt {learnt} ones (docs/feature_row.md)")
    processor.tag_language = language
