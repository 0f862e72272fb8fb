"""The house: the root of the library is what ships, rooms use one another one way, the picture is of today."""

import importlib.util
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from modeling_mengzi_oscar.hub import AUTO_MAPS, ENDPOINT, PACKAGE, PIPELINE, PROCESSORS, file_of, with_imports

spec = importlib.util.spec_from_file_location("draw_rooms", REPOSITORY / "docs" / "draw_rooms.py")
draw_rooms = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw_rooms)


def test_the_root_holds_exactly_what_hub_repos_carry():
    references = {name for names in AUTO_MAPS.values() for name in names.values()}
    references |= {name for _, names in PROCESSORS.values() for name in names.values()}
    references.add(PIPELINE["impl"])
    root = {path.name for path in PACKAGE.iterdir() if path.is_file()} - {"__init__.py", "__main__.py"}
    assert {*with_imports({file_of(name) for name in references}), *ENDPOINT} == root


def test_rooms_use_one_another_one_way():
    uses = draw_rooms.arrows()
    draw_rooms.levels(uses)  # raises where two rooms use each other
    assert not uses[draw_rooms.SHIPS]
    assert not uses["metrics"]
    of_the_library = set().union(
        *(others for room, others in uses.items() if not room.startswith(("train", "evaluation")))
    )
    assert not {room for room in of_the_library if room.startswith(("train", "space", "datasets_scripts"))}


def test_the_picture_is_of_today(tmp_path):
    draw_rooms.draw(tmp_path / "rooms.svg")
    assert (tmp_path / "rooms.svg").read_text("utf-8") == draw_rooms.PICTURE.read_text("utf-8"), "docs/draw_rooms.py"


PROGRAMS = [
    "modeling_mengzi_oscar/__main__.py",
    "space/app.py",
    *map(str, sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / "train").glob("*.py"))),
]
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
UNTIL_TORCH = """
import os, runpy, sys

class Torch:
    def find_spec(name, path, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)

program = sys.argv[1]
sys.meta_path.insert(0, Torch)
sys.path[:0] = [os.getcwd(), os.path.dirname(program)]
sys.argv[1:] = ["environment"]
if program.endswith("__main__.py"):
    runpy.run_module("modeling_mengzi_oscar", run_name="__main__")
else:
    runpy.run_path(program)
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_threads_that_wait_sleep_soon(program):
    """Said before anything loads torch, which reads it then."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    run = subprocess.run(
        [sys.executable, "-c", UNTIL_TORCH, program], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert run.stdout == "10000\n", run.stderr


@pytest.mark.parametrize("program", PROGRAMS[1:3])
def test_who_says_how_threads_wait_is_obeyed(program):
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    run = subprocess.run(
        [sys.executable, "-c", UNTIL_TORCH, program],
        cwd=REPOSITORY,
        env=environment | {"OMP_WAIT_POLICY": "ACTIVE"},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "None\n", run.stderr
