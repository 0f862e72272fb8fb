"""VinVL in 8 bits: the tests of openvino_cases.py, in a process of their own.

In one that had run test_training.py before, the kernel ended it by SIGSEGV at the return of a system call some seconds
after OpenVINO 2026.4 was loaded (torch 2.15, glibc 2.36, Linux 6.18): docs/log.md.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import REPOSITORY

CASES = Path(__file__).with_name("openvino_cases.py")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
def test_in_a_process_of_its_own():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", CASES]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
