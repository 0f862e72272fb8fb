"""Every builder's data set through the Hub: pushed as Parquet, read by `load_dataset(id)` where our code is not."""

import inspect
import json

import pytest
from builders import BUILDERS, build, copy_files
from conftest import REPOSITORY
from hub_server import HubServer
from test_hub import WITHOUT_PACKAGE, answer, run_python


def pixels(row):
    """A photo as JSON, or None."""
    return [row["image"].mode, *row["image"].size, sum(row["image"].tobytes())] if row.get("image") else None


PUSH = """
import json, sys, tempfile
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from builders import BUILDERS, build, copy_files
folder = Path(sys.argv[3])
for name in BUILDERS:
    build(name, copy_files(name, folder)).push_to_hub(f"user/{name}", private=True)
print(json.dumps(len(BUILDERS)))
"""
READ = """
from datasets import load_dataset
found = {}
for name in options["names"]:
    dataset = load_dataset(f"user/{name}")
    assert load_dataset(f"user/{name}", streaming=True).keys() == dataset.keys(), name
    for split, rows in dataset.items():
        streamed = load_dataset(f"user/{name}", split=split, streaming=True)
        assert [{**row, "image": None} for row in streamed] == [{**row, "image": None} for row in rows], name
    found[name] = {split: [str(rows.features), [{**row, "image": pixels(row)} for row in rows]]
                   for split, rows in dataset.items()}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def read_back(tmp_path_factory):
    """{builder: {split: [features, rows]}} as a process without our package reads them from the Hub."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "originals").mkdir()
    with HubServer() as hub:
        online = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
        for name in ("pushed", "home"):
            (folder / name).mkdir()
        arguments = (REPOSITORY, REPOSITORY / "tests" / "datasets_scripts", folder / "originals")
        assert answer(run_python(PUSH, *arguments, HF_HOME=str(folder / "pushed"), **online)) == len(BUILDERS)
        assert all(repo["private"] for repo in hub.repos.values())
        (folder / "originals").rename(folder / "gone")
        names = json.dumps({"names": list(BUILDERS)})
        process = run_python(
            WITHOUT_PACKAGE + inspect.getsource(pixels) + READ, "", "", names, HF_HOME=str(folder / "home"), **online
        )
    return answer(process)


@pytest.mark.parametrize("name", BUILDERS)
def test_what_was_pushed_is_read_without_code(name, read_back, tmp_path):
    """The same rows, features and photos; the photos travel inside, where a data set comes with them."""
    dataset = build(name, copy_files(name, tmp_path))
    expected = {
        split: [str(rows.features), [{**row, "image": pixels(row)} for row in rows]] for split, rows in dataset.items()
    }
    assert read_back[name] == json.loads(json.dumps(expected))
    photos = [row["image"] for _, rows in read_back[name].values() for row in rows]
    assert all(photo is not None for photo in photos) if BUILDERS[name][2] else not any(photos)
