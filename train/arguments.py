"""Command lines of the training scripts: a recipe file gives the defaults, flags override it."""

import argparse
from pathlib import Path

import yaml
from transformers import HfArgumentParser


def parse_arguments(*dataclass_types, description, arguments=None):
    """One instance of each dataclass. `--recipe FILE.yaml` is read first: its keys are names of flags.

    Raises:
        SystemExit: an unknown flag, no such recipe, or a key of the recipe that is no flag.
    """
    parser = HfArgumentParser(
        dataclass_types, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, help="YAML file of flags; the command line overrides it")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", type=Path)
    recipe = first.parse_known_args(arguments)[0].recipe
    if recipe is not None:
        if not recipe.is_file():
            parser.error(f"{recipe}: no such recipe")
        settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        flags = {action.dest: action for action in parser._actions}
        for name in settings:
            if name not in flags:
                parser.error(f"{recipe}: {name!r} is not a flag of this script")
            flags[name].required = False
        parser.set_defaults(**settings)
    return parser.parse_args_into_dataclasses(args=arguments)[: len(dataclass_types)]
