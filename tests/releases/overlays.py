"""One folder per release of transformers, put in front of the one environment: torch is installed once.

An overlay holds transformers and the two libraries whose versions it is strict about, huggingface_hub and tokenizers,
within the ranges that its own metadata asks for. Everything else comes from the environment.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
OVERLAYS = REPOSITORY / ".venv" / "matrix"
RELEASES = [
    line for line in (Path(__file__).parent / "releases.txt").read_text().splitlines() if not line.startswith("#")
]
STRICT = ("huggingface-hub", "tokenizers")


def pip(*arguments) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"pip {' '.join(arguments)}: {process.stderr.strip().splitlines()[-1]}")
    return process.stdout


def overlay(release) -> Path:
    """The folder of a release; installed beside its place and renamed, so that one which is there is whole."""
    folder = OVERLAYS / release
    if not folder.exists():
        temporary = OVERLAYS / f"{release}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        # The sources alone: what is imported is compiled then, the rest of transformers never.
        install = ("install", "--no-deps", "--no-compile", "--target", str(temporary))
        pip(*install, f"transformers=={release}")
        pip(*install, *strict_requirements(temporary))
        shutil.rmtree(temporary / "bin", ignore_errors=True)
        os.replace(temporary, folder)
    return folder


def strict_requirements(folder) -> list[str]:
    """What the transformers in `folder` asks of huggingface_hub and tokenizers, as pip takes it."""
    [transformers] = distributions(name="transformers", path=[str(folder)])
    wanted = [Requirement(line) for line in transformers.requires]
    return [f"{one.name}{one.specifier}" for one in wanted if one.name in STRICT and one.marker is None]


def versions(folder=None) -> dict[str, str]:
    """Of an overlay, or of the environment."""
    places = {"path": [str(folder)]} if folder else {}
    found = {one.name.replace("_", "-"): one.version for one in distributions(**places)}
    return {name: found[name] for name in ("transformers", *STRICT)}


def size(folder) -> int:
    """Bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def latest() -> str:
    """The newest release on the package index today; without an index the newest of the list."""
    try:
        arguments = ("install", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-", "transformers")
        [found] = json.loads(pip(*arguments))["install"]
    except RuntimeError:
        print(f"latest: no package index can be reached; {RELEASES[-1]} is the newest of releases.txt")
        return RELEASES[-1]
    release = found["metadata"]["version"]
    print(f"latest: {release} on the package index today, {RELEASES[-1]} in releases.txt")
    return release


def named(words) -> list[str]:
    """Releases from what was typed: versions, "oldest" and "newest" of the list, "latest"; nothing = the whole list."""
    meaning = {"oldest": lambda: RELEASES[0], "newest": lambda: RELEASES[-1], "latest": latest}
    return list(dict.fromkeys(meaning[word]() if word in meaning else word for word in words)) or RELEASES
