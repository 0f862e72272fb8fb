"""What is installed from here: the lock against setup.cfg's ranges, and the wheel where there is no repository."""

import configparser
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from modeling_mengzi_oscar import __version__, bundled_checkpoint
from modeling_mengzi_oscar.cli import environment, main
from modeling_mengzi_oscar.demo.samples import sample_photos

spec = importlib.util.spec_from_file_location("lock", REPOSITORY / ".ci" / "lock.py")
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)

CONFIG = configparser.ConfigParser()
CONFIG.read(REPOSITORY / "setup.cfg", "utf-8")
EXTRAS = tuple(CONFIG["options.extras_require"])


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_the_lock_is_in_the_ranges(extra):
    locked = lock.locked()
    for line in lock.required(extra):
        assert line.specifier.contains(locked[canonicalize_name(line.name)]), line


@pytest.mark.parametrize("path", [lock.CONSTRAINTS, lock.SPACE], ids=lambda path: path.name)
def test_locks_are_plain(path):
    """A name and a version a line: no build of one platform, no place of one machine."""
    for line in path.read_text("utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line


def test_the_space_has_what_it_needs_in_the_locked_versions():
    """All of it in one file: a Space is built from requirements.txt before its other files are there."""
    yaml = pytest.importorskip("yaml")
    listed = lock.locked(lock.SPACE)
    assert listed.items() <= lock.locked().items()
    assert {canonicalize_name(line.name) for line in [*lock.required(), *lock.required("space")]} <= listed.keys()
    assert not {"pytest", "ruff", "datasets", "playwright"} & listed.keys()
    header = yaml.safe_load((REPOSITORY / "space" / "README.md").read_text("utf-8").split("---")[1])
    assert header["sdk_version"] == listed["gradio"]


@pytest.mark.parametrize("target", ["demo", "space", "test", "lint", "test-newest"])
def test_which_installs_are_locked(target):
    command = ["make", "--dry-run", "--always-make", target]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    installs = [line for line in result.stdout.splitlines() if "pip install" in line]
    lists = set() if target == "test-newest" else {"constraints.txt"}
    assert len(installs) >= 2
    for line in installs:
        assert set(re.findall(r"--(?:build-)?constraint (\S+)", line)) == lists, line


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_installs_of_the_pages_are_locked(name):
    [line] = re.findall(r"^\.venv/bin/pip install .*", (REPOSITORY / name).read_text("utf-8"), flags=re.MULTILINE)
    assert "-c constraints.txt" in line


def test_differences_are_named():
    before = {"numpy": "2.0.0", "torch": "2.6.0", "old": "1.0"}
    now = {"new": "3.1", "numpy": "2.0.0", "torch": "2.15.0"}
    assert lock.differences(before, now) == ["new    nothing -> 3.1", "old    1.0 -> nothing", "torch  2.6.0 -> 2.15.0"]
    assert lock.differences(now, now) == []


def test_what_a_requirement_brings():
    pytest.importorskip("torchvision")
    names = lock.needed_by([Requirement("torchvision")])
    assert {"torchvision", "torch", "numpy", "sympy", "mpmath"} <= names
    assert "pytest" not in names  # an extra that was not asked for


def test_every_package_is_listed():
    """setup.cfg names them one by one, since `find:` knows no package that lies elsewhere."""
    rooms = ("modeling_mengzi_oscar", "datasets_scripts", "evaluation", "metrics")
    folders = [path.parent for room in rooms for path in (REPOSITORY / room).rglob("__init__.py")]
    found = {str(folder.relative_to(REPOSITORY)).replace(os.sep, ".") for folder in folders}
    listed = {line for line in CONFIG["options"]["packages"].splitlines() if line and not line.startswith("#")}
    assert listed == found | {"modeling_mengzi_oscar.checkpoints"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked: built from the source archive of a copy that holds the repository's own files only."""
    pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools >= 77")
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "copy" / name).write_bytes((REPOSITORY / name).read_bytes())
    build(folder / "copy", "build_sdist", folder)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "archive", filter="data")
    build(folder / "archive" / archive.name.removesuffix(".tar.gz"), "build_wheel", folder)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "unpacked")
    return folder / "unpacked"


def build(source, hook, output):
    """What pip and `python -m build` do, with the setuptools that is here: nothing is downloaded."""
    code = f"from setuptools import build_meta; build_meta.{hook}({str(output)!r})"
    result = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_wheel_carries_the_mini_whole(wheel):
    names = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    source = REPOSITORY / "checkpoints"
    tracked = subprocess.run(["git", "ls-files"], cwd=source, capture_output=True, text=True, check=True)
    for name in tracked.stdout.splitlines():
        installed = wheel / "modeling_mengzi_oscar" / "checkpoints" / name
        assert installed.read_bytes() == (source / name).read_bytes(), name
    assert not [name for name in names if name.startswith(("tests", "train", "space", "checkpoints", "build"))]
    assert not [name for name in names if "__pycache__" in name]
    [metadata] = wheel.glob("*.dist-info/METADATA")
    fields = message_from_string(metadata.read_text("utf-8"))
    assert fields["Version"] == __version__
    assert "research-only" in fields["License-Expression"]
    licences = metadata.parent / "licenses"
    assert {"LICENSE", "checkpoints/mengzi-oscar-mini/README.md"} == set(fields.get_all("License-File"))
    assert "research use only" in (licences / "checkpoints" / "mengzi-oscar-mini" / "README.md").read_text("utf-8")


def test_the_wheel_carries_every_file_of_the_library(wheel):
    """Tables too, which are no Python."""
    command = ["git", "ls-files", "modeling_mengzi_oscar", "datasets_scripts", "evaluation", "metrics"]
    tracked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in tracked.stdout.splitlines():
        assert (wheel / name).read_bytes() == (REPOSITORY / name).read_bytes(), name


@pytest.mark.slow
def test_the_wheel_captions_where_there_is_no_repository(wheel, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(Path(sample_photos()["astronaut"][0]).read_bytes())
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(REPOSITORY)]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(wheel), *others])}

    def run(*arguments):
        command = [sys.executable, "-m", "modeling_mengzi_oscar", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)

    report = dict(re.split("  +", line, maxsplit=1) for line in run("environment").stdout.splitlines())
    assert report["mini"].endswith("modeling_mengzi_oscar/checkpoints/mengzi-oscar-mini")
    assert str(wheel).endswith(report["mini"].removeprefix("~").split("/modeling_mengzi_oscar")[0])
    result = run("caption", "photo.jpg")
    assert result.returncode == 0, result.stderr
    assert re.fullmatch("photo.jpg\t[\u4e00-\u9fff，。、]{2,18}\t0\\.\\d{3}(\t可能不准)?\n", result.stdout)
    assert "learnt from 10,000 photos" in result.stderr


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(["--version"])
    assert exit_status.value.code == 0
    assert capsys.readouterr().out == f"mengzi-oscar {__version__}\n"


def test_environment_tells_versions_device_and_checkpoint(capsys, monkeypatch):
    assert main(["environment"]) == 0
    report = dict(re.split("  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    torch = pytest.importorskip("torch")
    assert report["mengzi-oscar"] == __version__
    assert torch.__version__.startswith(report["torch"].partition("+")[0])
    assert report["runs on"].startswith("cpu in float32")
    assert f"{torch.get_num_threads()} threads" in report["threads, GPU"]
    monkeypatch.setenv("HOME", str(bundled_checkpoint().parents[1]))
    assert environment.environment()["mini"] == "~/checkpoints/mengzi-oscar-mini"  # no name of a user


def test_environment_says_what_is_broken(tmp_path):
    """The one command that has to work where nothing else does."""
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so:\\n wrong ELF class')")
    (tmp_path / "code.py").write_text(
        "import importlib.metadata as metadata\n"
        "from modeling_mengzi_oscar import cli\nfrom modeling_mengzi_oscar.cli import environment\n"
        "def version(name):\n"
        "    raise metadata.PackageNotFoundError(name)\n"
        "environment.version = version\n"
        "raise SystemExit(cli.main(['environment']))\n"
    )
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    command = [sys.executable, str(tmp_path / "code.py")]
    result = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    report = dict(re.split("  +", line, maxsplit=1) for line in result.stdout.splitlines())
    assert report["transformers"] == "not installed"
    assert report["runs on"] == "fails: OSError: libtorch.so: wrong ELF class"
