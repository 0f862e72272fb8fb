"""The picture of the house in docs/design.md, drawn from the imports: `python docs/draw_rooms.py`.

A box is a room (a folder of Python files), an arrow says whose files import whose. Rooms stand above those that they
use, so every arrow points down; two rooms that use each other cannot be drawn and end the script. An arrow is left out
where a way over other rooms says it already.
"""

import ast
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURE = REPOSITORY / "docs" / "img" / "rooms.svg"
LIBRARY = "modeling_mengzi_oscar"
SHIPS = f"{LIBRARY}\n(what a Hub repo carries)"
OUTSIDE = ("tests", "benchmarks", "checkpoints", "docs")  # they use everything, or are no code of the house


def room_of(path: Path) -> str | None:
    """The room that a file of the repository is in."""
    parts = path.relative_to(REPOSITORY).parts[:-1]
    if not parts or parts[0].startswith(".") or parts[0] in OUTSIDE:
        return None
    if parts == (LIBRARY,):
        return None if path.name in ("__init__.py", "__main__.py") else SHIPS
    return "/".join(parts[1:] if parts[0] == LIBRARY else parts[:2] if parts[0] == "train" else parts[:1])


def modules_of(path: Path) -> list[str]:
    """What a file imports, as dotted names from the root of the repository; relative imports are resolved."""
    package, found = list(path.relative_to(REPOSITORY).parts[:-1]), []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return found


def arrows() -> dict[str, set[str]]:
    """Room -> the rooms that it uses."""
    files = {path: room_of(path) for path in sorted(REPOSITORY.rglob("*.py"))}
    files = {path: room for path, room in files.items() if room}
    names = {}  # dotted name of a module -> its room, also as scripts of train/ and space/ say it
    for path, room in files.items():
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        names[".".join(parts)] = room
        if parts[0] in ("train", "space"):
            names[".".join(parts[1:])] = room
    uses = {room: set() for room in files.values()}
    for path, room in files.items():
        for module in modules_of(path):
            other = names.get(module) or names.get(f"{module}.__init__")
            if other and other != room:
                uses[room].add(other)
    return uses


def without_detours(uses: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same without a -> c where a -> b -> ... -> c."""

    def below(room) -> set[str]:
        return uses[room].union(*map(below, uses[room]))

    return {room: others - set().union(*map(below, others)) for room, others in uses.items()}


def levels(uses: dict[str, set[str]]) -> dict[str, int]:
    """How high a room stands: above everything that it uses.

    Raises:
        ValueError: two rooms use each other.
    """
    found = {}

    def level(room, above=()):
        if room in above:
            raise ValueError(f"these rooms use each other: {', '.join([*above[above.index(room) :], room])}")
        if room not in found:
            found[room] = 1 + max((level(other, (*above, room)) for other in uses[room]), default=-1)
        return found[room]

    for room in uses:
        level(room)
    return found


def draw(path=PICTURE):
    from matplotlib import pyplot, rcParams

    rcParams["svg.hashsalt"] = "rooms"  # the same file for the same imports
    uses = arrows()
    heights = levels(uses)
    rows = {}
    for room in sorted(uses, key=lambda room: (heights[room], room)):
        rows.setdefault(heights[room], []).append(room)
    place = {}  # room -> x, y
    for height, row in rows.items():
        place |= {room: ((index + 0.5) / len(row) * 10, height * 1.5) for index, room in enumerate(row)}
    figure, axes = pyplot.subplots(figsize=(10, 1.3 * len(rows) + 0.6))
    for room, others in without_detours(uses).items():
        for other in sorted(others):
            axes.annotate(
                "",
                xy=(place[other][0], place[other][1] + 0.28),
                xytext=(place[room][0], place[room][1] - 0.28),
                arrowprops={"arrowstyle": "-|>", "color": "#8a8f98", "lw": 0.9, "shrinkA": 0, "shrinkB": 0},
            )
    for room, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.45", "fc": "#fff4d6" if room == SHIPS else "#eef2f7", "ec": "#4a5568"}
        axes.text(x, y, room, ha="center", va="center", fontsize=10, bbox=box, zorder=3)
    axes.set(xlim=(0, 10), ylim=(-0.7, max(heights.values()) * 1.5 + 0.7))
    axes.axis("off")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    draw()
    print(PICTURE.relative_to(REPOSITORY))
