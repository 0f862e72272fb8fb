"""The house: the root of the library is what ships, rooms use one another one way, the picture is of today."""

import importlib.util

from conftest import REPOSITORY

from modeling_mengzi_oscar.hub import AUTO_MAPS, PACKAGE, PIPELINE, PROCESSORS, file_of, with_imports

spec = importlib.util.spec_from_file_location("draw_rooms", REPOSITORY / "docs" / "draw_rooms.py")
draw_rooms = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw_rooms)


def test_the_root_holds_exactly_what_hub_repos_carry():
    references = {name for names in AUTO_MAPS.values() for name in names.values()}
    references |= {name for _, names in PROCESSORS.values() for name in names.values()}
    references.add(PIPELINE["impl"])
    root = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}  # what makes it a package
    assert set(with_imports({file_of(name) for name in references})) == root


def test_rooms_use_one_another_one_way():
    uses = draw_rooms.arrows()
    draw_rooms.levels(uses)  # raises where two rooms use each other
    assert not uses[draw_rooms.SHIPS]
    assert not uses["metrics"]
    of_the_library = set().union(*(others for room, others in uses.items() if not room.startswith("train")))
    assert not {room for room in of_the_library if room.startswith(("train", "space", "datasets_scripts"))}


def test_the_picture_is_of_today(tmp_path):
    draw_rooms.draw(tmp_path / "rooms.svg")
    assert (tmp_path / "rooms.svg").read_text("utf-8") == draw_rooms.PICTURE.read_text("utf-8"), "docs/draw_rooms.py"
