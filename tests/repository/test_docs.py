"""What the pages say exists: links, files of the tree, make targets, flags of quoted commands."""

import contextlib
import io
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import calibrate
import caption
import extract_features
import gqa
import make_questions
import nlvr2
import pretrain
import pytest
import renew_outputs
import retrieval
import start_captioner
import vqa
from common.tag_sentences import TagSentenceArguments
from conftest import REPOSITORY, shared_path

ANCHOR = re.compile(r"\]\((?:([^)#\s]+\.md))?#([^)\s]+)\)")  # [..](page.md#heading)
SCRIPTS = (
    calibrate,
    caption,
    extract_features,
    gqa,
    make_questions,
    nlvr2,
    pretrain,
    retrieval,
    start_captioner,
    vqa,
)
RUN_BY = {  # pages whose examples need more than renew_outputs.py gives them
    "docs/data.md": "datasets_scripts/test_flickr8k_cn.py",
    "docs/endpoints.md": "hub/test_endpoint.py",
    "docs/own_photos.md": "datasets_scripts/test_own_photos_page.py",
    "docs/own_photos_zh.md": "datasets_scripts/test_own_photos_page.py",
    "docs/recipes.md": "train/test_lora.py",
    "docs/released_weights.md": "repository/test_released_weights.py",
    "docs/released_weights_zh.md": "repository/test_released_weights.py",
    "docs/space.md": "space/test_space.py",
    "docs/vinvl.md": "repository/test_released_weights.py",
}
FLAGS = (
    calibrate.CalibrationArguments,
    caption.CaptionArguments,
    gqa.GqaArguments,
    nlvr2.ReasoningArguments,
    pretrain.PretrainingArguments,
    retrieval.RetrievalArguments,
    vqa.VqaArguments,
)
PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_links(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@every_page
def test_links_to_headings(page):
    for target, anchor in ANCHOR.findall(page.read_text(encoding="utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


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


@pytest.fixture(scope="module")
def helps():
    """What every training script prints for --help, by its path."""
    texts = {}
    for script in SCRIPTS:
        with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
            script.main(["--help"])
        texts[str(Path(script.__file__).relative_to(REPOSITORY))] = printed.getvalue() + " --recipe"
    return texts


def test_flags_of_quoted_commands(helps):
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES).replace("\\\n", " ")
    for script, help_text in helps.items():
        commands = re.findall(rf"{re.escape(script)}([^\n`]*)", text)
        assert commands, f"no page shows {script}"
        for flag in re.findall(r"--[a-z0-9_]+", " ".join(commands)):
            assert re.search(rf"{flag}\b", help_text), f"{script} has no {flag}"


def test_every_flag_of_ours_explains_itself():
    """In a sentence, for who reads --help alone."""
    flags = [flag for kind in (*FLAGS, TagSentenceArguments) for flag in fields(kind)]
    assert len(flags) > 100
    for flag in flags:
        assert re.fullmatch(r"\S.{15,}\.", flag.metadata["help"]), flag.name


def test_every_published_flag_has_a_place(helps):
    """Each flag of the original page is a flag here, or docs/from_oscar.md says what became of it."""
    published = shared_path("reference/published_commands.txt").read_text(encoding="utf-8")
    flags = set(re.findall(r"--([a-z_]+)", published)) - {"nproc_per_node", "config"}  # torch's and the detector's own
    here = " ".join(helps.values())
    page = (REPOSITORY / "docs" / "from_oscar.md").read_text(encoding="utf-8")
    assert len(flags) > 40
    nowhere = {flag for flag in flags if not re.search(rf"--{flag}\b", here) and not re.search(rf"\b{flag}\b", page)}
    assert not nowhere


def test_both_readmes_are_alike():
    """The same commands, code, links, pictures and numbers in both languages."""
    english, chinese = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md"))
    for pattern in (r"^\$ [^#\n]*[^#\s]", r"^(?:python|accelerate|make) [^#\n]*[^#\s]", r"```python\n.*?```", r"^#+ "):
        found = [re.findall(pattern, text, flags=re.MULTILINE | re.DOTALL) for text in (english, chinese)]
        assert found[0] == found[1]
    links = [re.findall(r"\]\(((?!README)[^)#]+)[)#]", text) for text in (english, chinese)]
    assert links[0] == [link.replace("_zh.md", ".md") for link in links[1]]  # some pages are there in Chinese, too
    tables = ["\n".join(re.findall(r"^\|.*", text, flags=re.MULTILINE)) for text in (english, chinese)]
    numbers = [re.findall(r"\d+(?:\.\d+)?", table) for table in tables]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_the_readmes_name_every_page_and_room(name):
    """Pages are linked, in either language; rooms stand in the file tree."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    for page in PAGES:
        path = str(page.relative_to(REPOSITORY))
        assert any(f"]({link})" in text for link in (path, path.replace("_zh.md", ".md"), path[:-3] + "_zh.md")), path
    rooms = subprocess.run(["git", "ls-files", "*/*"], cwd=REPOSITORY, capture_output=True, text=True)
    if rooms.returncode:
        pytest.skip("not a git checkout")
    for room in {file.partition("/")[0] for file in rooms.stdout.splitlines()} - {".ci", ".github"}:
        assert re.search(rf"^{re.escape(room)}/ ", text, flags=re.MULTILINE), room


@every_page
def test_code_of_others_is_pinned(page):
    """Whoever copies a line with trust_remote_code=True copies a revision with it."""
    for line in page.read_text(encoding="utf-8").splitlines():
        assert "trust_remote_code=True" not in line or re.search(r"revision\b", line), line


@every_page
def test_every_example_is_run(page):
    """By renew_outputs.py, whose outputs are compared, or by a test that reads the page; else it says `notest`."""
    name = str(page.relative_to(REPOSITORY))
    if "```python\n" in page.read_text("utf-8") and name not in [*renew_outputs.PAGES, "README_zh.md"]:
        assert page.name in (REPOSITORY / "tests" / RUN_BY[name]).read_text("utf-8")


def test_no_paths_of_one_machine():
    """Readers have no shared/ folder beside the repository, and none of our machines' folders."""
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        path = REPOSITORY / name
        if (
            path.suffix in (".md", ".py", ".yaml", ".cfg", ".toml")
            and path.exists()
            and name != "tests/repository/test_docs.py"
        ):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(work|root|opt|home)/\w", text), name
            assert "../shared" not in text, name
