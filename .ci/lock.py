"""The lock: the versions of all that is installed beside this Python, written down, and what differs from them.

    .venv-newest/bin/python .ci/lock.py write      # make lock: constraints.txt and space/requirements.txt
    .venv-newest/bin/python .ci/lock.py compare    # make test-newest: "package  locked -> installed"

A Space is built from requirements.txt alone, before its other files are there, so that `-c constraints.txt` would
find nothing: it gets the same versions as a list of its own, without what only tests and training need.
"""

import configparser
import platform
import re
import sys
from datetime import date
from importlib.metadata import distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
CONSTRAINTS = REPOSITORY / "constraints.txt"
SPACE = REPOSITORY / "space" / "requirements.txt"
HEADER = """\
# {what}
# Written by `make lock` on {day} with Python {python} on {machine}; not by hand.
"""


def installed() -> dict[str, str]:
    """Name -> version of every distribution but ours, without the local part: one torch for all (+cpu, +cu130)."""
    found = {canonicalize_name(each.metadata["Name"]): each.version.partition("+")[0] for each in distributions()}
    found.pop("mengzi-oscar", None)
    return dict(sorted(found.items()))


def locked(path=CONSTRAINTS) -> dict[str, str]:
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """A line per package whose version is another one, that is new, or that is gone."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    width = max(map(len, names), default=0)
    return [f"{name:{width}}  {before.get(name, 'nothing')} -> {now.get(name, 'nothing')}" for name in names]


def required(extra=None) -> list[Requirement]:
    """What setup.cfg asks for: the library's own lines, or those of an extra and of the extras that it names."""
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg", "utf-8")
    text = config["options.extras_require"][extra] if extra else config["options"]["install_requires"]
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def needed_by(requirements) -> set[str]:
    """Names of the distributions that these requirements bring, theirs included, as this machine has them."""
    found, waiting = set(), [(line, ("",)) for line in requirements]
    while waiting:
        requirement, extras = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        key = (canonicalize_name(requirement.name), *sorted(requirement.extras))
        if key in found:
            continue
        found.add(key)
        asked = ("", *requirement.extras)
        waiting += [(Requirement(line), asked) for line in distribution(requirement.name).requires or ()]
    return {name for name, *_ in found}


def text_of(what, versions) -> str:
    day, machine = date.today().isoformat(), f"{platform.system()} {platform.machine()}"
    header = HEADER.format(what=what, day=day, python=platform.python_version(), machine=machine)
    return header + "".join(f"{name}=={version}\n" for name, version in versions.items())


def write() -> None:
    versions = installed()
    CONSTRAINTS.write_text(text_of("The versions that the whole test suite passed with.", versions), "utf-8")
    names = needed_by([*required(), *required("space")])
    what = "What the Space installs: the versions of constraints.txt that the demo needs."
    SPACE.write_text(text_of(what, {name: versions[name] for name in sorted(names)}), "utf-8")
    page = SPACE.with_name("README.md")  # which names the version of gradio too
    said = re.sub(r"sdk_version: \S+", f"sdk_version: {versions['gradio']}", page.read_text("utf-8"))
    page.write_text(said, "utf-8")


def compare() -> None:
    lines = differences(locked(), installed())
    print("Other versions than in constraints.txt (locked -> installed):" if lines else "All versions as locked.")
    print("".join(f"  {line}\n" for line in lines), end="", flush=True)


if __name__ == "__main__":
    {"write": write, "compare": compare}[sys.argv[1]]()
