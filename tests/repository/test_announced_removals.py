"""An announcement of a library below fails the test in which it comes; other warnings do not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TEST = """
import logging, warnings
def test_it():
    {}
"""


@pytest.mark.parametrize(
    ("said", "fails"),
    [
        ('warnings.warn("`cache` is deprecated", FutureWarning)', True),
        ('warnings.warn("this will be removed in 6.0", UserWarning)', True),
        ('logging.getLogger("transformers.generation.utils").warning("`x` is deprecated and goes in v6")', True),
        ('warnings.warn("few photos", UserWarning)', False),
        ('warnings.warn("torch.ao.quantization is deprecated", DeprecationWarning)', False),
        ('logging.getLogger("transformers").warning("no pad token")', False),
        ('logging.getLogger("somebody").warning("deprecated")', False),
    ],
)
def test_what_fails(said, fails, tmp_path):
    (tmp_path / "conftest.py").write_text("from announced_removals import no_announced_removals\n", encoding="utf-8")
    (tmp_path / "test_one.py").write_text(TEST.format(said), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode != 0) == fails, result.stdout
    assert ("announced for removal" in result.stdout) == fails
