"""Recipes: YAML files that set flags. Their keys go through the parser of the command line, one by one."""

import json

import yaml

NOTHING = ("", "~", "null", "Null", "NULL")  # how YAML writes that there is no value


def recipe_flags(parser, path, defaults) -> dict[str, tuple[str, list[str]]]:
    """{flag: (where it stands, what to give the parser)} of a recipe.

    Values are taken as they are written (`no`, `1e-4`), not as YAML would read them: the flags' own types decide.

    Args:
        parser: `arguments.FlagParser`. defaults: {flag: its default, or `dataclasses.MISSING` where it must be given}.

    Raises:
        ValueError: names the file, row and key of what is no flag, stands twice, or has a value of another kind.
    """
    flags = {}
    for key, value in read_pairs(path):
        where = f"{path}, row {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{where}: a name of a flag is expected before the colon")
        name = key.value.replace("-", "_")
        if name not in defaults:
            raise ValueError(f"{where}: {key.value!r} is not a flag of this script{parser.did_you_mean(name)}")
        if name in flags:
            raise ValueError(f"{where}: {key.value} stands there twice, first in {flags[name][0].rpartition(', ')[2]}")
        if isinstance(value, yaml.ScalarNode) and value.style is None and value.value in NOTHING:
            if defaults[name] is not None:
                raise ValueError(f"{where}: {key.value} has no value")
            continue  # as if it were not there
        flags[name] = where, written(name, value, f"{where}: {key.value}")
        parser.check_flag(flags[name][1], where)
    return flags


def read_pairs(path):
    """The keys and values of a YAML mapping, as nodes with their places; nothing in it is built or run."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise ValueError(f"{path}: {'is a folder' if path.is_dir() else error.strerror}; a recipe is a file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: broken UTF-8 ({error.reason} at byte {error.start})") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if node is None:
        raise ValueError(f"{path}: the recipe is empty; it has a line `flag: value` for each flag")
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{path}: not a recipe: it has a line `flag: value` for each flag")
    return node.value


def written(name, value, where) -> list[str]:
    """What the parser is given for a value: `--name=value`; `--name first second` for a list; JSON for a mapping."""
    if isinstance(value, yaml.ScalarNode):
        return [f"--{name}={value.value}"]
    if isinstance(value, yaml.MappingNode):
        return [f"--{name}={json.dumps(plain(value, where))}"]
    for item in value.value:
        if not isinstance(item, yaml.ScalarNode) or item.value.startswith("-"):
            raise ValueError(f"{where}: a list of plain values is expected")
    return [f"--{name}", *(item.value for item in value.value)]


def plain(node, where, depth=0):
    """A node as dicts, lists, numbers and texts, for flags that take JSON."""
    if depth > 20:
        raise ValueError(f"{where}: nested too deep")
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): plain(value, where, depth + 1) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [plain(item, where, depth + 1) for item in node.value]
    try:
        return json.loads(node.value) if node.style is None else node.value  # numbers, true, false and null
    except ValueError:
        return node.value
