"""What pages and notebook show is what comes out. Where one of these fails: python docs/renew_outputs.py."""

import re

import nbformat
import numpy as np
import pytest
import renew_outputs
from conftest import REPOSITORY
from PIL import Image

import modeling_mengzi_oscar

NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.])")
RENEW = "run python docs/renew_outputs.py, and read what it changed"


def assert_same(shown, today):
    """Word for word; of numbers with a point the last digits may depend on the processor."""
    assert NUMBER.split(shown) == NUMBER.split(today), RENEW
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (shown, today)]
    assert numbers[1] == pytest.approx(numbers[0], rel=0.01, abs=0.01), RENEW


@pytest.mark.parametrize("page", renew_outputs.PAGES)
def test_pages(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    renew_outputs.lay_out(tmp_path)
    shown = (REPOSITORY / page).read_text("utf-8")
    assert_same(shown, renew_outputs.renewed(shown))
    for picture, file in renew_outputs.PICTURES.items() if page == "README.md" else ():
        drawn, committed = (Image.open(path).convert("RGB") for path in (picture, REPOSITORY / file))
        assert drawn.size == committed.size, RENEW
        assert np.abs(np.subtract(drawn, committed, dtype=float)).mean() < 4, RENEW


def test_the_translation_has_the_same_examples_and_outputs():
    page = (REPOSITORY / "README_zh.md").read_text("utf-8")
    assert renew_outputs.with_blocks_of("README.md", page) == page, RENEW


def test_every_public_name_is_on_the_page():
    described = set(
        re.findall(r"^### `([\w.]+)`$", (REPOSITORY / "docs/api.md").read_text("utf-8"), flags=re.MULTILINE)
    )
    assert set(modeling_mengzi_oscar.__all__) <= described
    for kind in ("MengziOscarPipeline", "RegionFeatureStore"):
        methods = vars(getattr(modeling_mengzi_oscar, kind)).items()
        own = {
            name
            for name, method in methods
            if not name.startswith("_") and isinstance(method, (classmethod, staticmethod))
        }
        own |= {name for name, method in methods if not name.startswith("_") and callable(method)}
        assert {f"{kind}.{name}" for name in own} <= described


def test_an_output_that_is_wrong_is_found(tmp_path):
    page = "```python\nprint(1 + 1, 0.333)\n```\n\n```text\n3 0.333\n```\n"
    right = renew_outputs.renewed(page)
    assert "\n2 0.333\n" in right
    with pytest.raises(AssertionError):
        assert_same(page, right)
    assert_same(right, right.replace("0.333", "0.334"))


@pytest.mark.parametrize("notebook", renew_outputs.NOTEBOOKS)
def test_notebook(notebook):
    shown = (REPOSITORY / notebook).read_text("utf-8")
    today = renew_outputs.renewed_notebook(REPOSITORY / notebook)
    assert_same(*map(words_of, (shown, today)))
    assert len(shown) < 500_000


def words_of(notebook):
    """Without the outputs of cells whose tags say that they vary: a training may, with the processor."""
    cells = nbformat.reads(notebook, as_version=4).cells
    for cell in cells:
        assert not any(output.output_type == "error" for output in cell.get("outputs", ()))
        if "varies" in cell.metadata.get("tags", ()):
            cell.outputs = []
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    texts = [output.get("text") or output["data"]["text/plain"] for output in outputs]
    return "\n".join([*(cell.source for cell in cells), *texts])
