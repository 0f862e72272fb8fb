"""What the pages say exists: links, files of the tree, make targets, flags of quoted commands."""

import re
import subprocess

import caption
import extract_features
import pytest
import start_mini
from conftest import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_links(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@every_page
def test_named_files_exist(page):
    """Files named in code style, as `train/caption.py`; what the pages mark as planned is left out."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if "(planned)" not in line]
    rooms = "modeling_mengzi_oscar|datasets_scripts|metrics|train|space|benchmarks|docs|tests|checkpoints"
    for path in re.findall(rf"(?<![\w/.-])((?:{rooms})/[\w./-]+\.(?:py|md|yaml))", "\n".join(lines)):
        assert (REPOSITORY / path).exists(), f"{page.name} names {path}"


def test_make_targets():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    listed = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"^make (\w+)", text, flags=re.MULTILINE):
        assert f"make {target}" in listed


def test_flags_of_quoted_commands(capsys):
    known = {}
    for script in (caption, extract_features, start_mini):
        with pytest.raises(SystemExit):
            script.main(["--help"])
        known[f"train/{script.__name__}.py"] = capsys.readouterr().out + " --recipe"
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES).replace("\\\n", " ")
    for script, help_text in known.items():
        commands = re.findall(rf"{re.escape(script)}([^\n`]*)", text)
        assert commands
        for flag in re.findall(r"--[a-z_]+", " ".join(commands)):
            assert re.search(rf"{flag}\b", help_text), f"{script} has no {flag}"


def test_no_paths_of_one_machine():
    """Readers have no shared/ folder beside the repository, and none of our machines' folders."""
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        path = REPOSITORY / name
        if path.suffix in (".md", ".py", ".yaml", ".cfg", ".toml") and path.exists() and name != "tests/test_docs.py":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(work|root|opt|home)/\w", text), name
            assert "../shared" not in text, name
