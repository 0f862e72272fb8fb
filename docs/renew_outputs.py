"""What the pages show is what comes out: `python docs/renew_outputs.py` runs their examples and writes what they print.

To be run after the bundled checkpoint or a docstring has changed. A test compares. On a page

* a block ```console holds commands, `$ mengzi-oscar …`, and below each of them what it prints;
* a block ```text right below a block ```python holds what that prints; the blocks of a page share their names;
* a block ```python notest is not run: it needs the network, or a test of its own runs it;
* between a heading of docs/api.md, ### `name`, and the example stand the signature and the docstring of that name.

Everything runs in a folder with photo.jpg (the cat), photos/ (six sample photos), original/ (the mini as the
original code would have saved it) and links to checkpoints/, metrics/ and train/.
Of notebooks/*.ipynb the outputs of the cells are renewed; they run where they lie, and need nbclient and ipykernel.
"""

import contextlib
import importlib
import inspect
import io
import json
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

from modeling_mengzi_oscar import cli  # noqa: E402
from modeling_mengzi_oscar.demo.samples import sample_photos  # noqa: E402

PAGES = ("README.md", "docs/api.md", "docs/matching.md", "docs/metrics.md", "docs/feature_row.md")
PICTURES = {"caption.png": "docs/img/caption.webp"}  # what a README's command draws -> what it shows
NOTEBOOKS = tuple(sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("notebooks/*.ipynb")))
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```\n(?:\n?^```text\n(.*?)^```\n)?", flags=re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"^(### `([\w.]+)`\n).*?(?=^```|^#|\Z)", flags=re.MULTILINE | re.DOTALL)
ENTRY = re.compile(
    r" {4}(\*{0,2}\w+(?:(?:, | \.\.\. )\*{0,2}\w+)*): (.*)"
)  # of a docstring's section: names and what they are
SECTION = re.compile(r"(Args|Returns|Raises|Shapes):(?: (.*))?")
MODULES = (  # where the names of docs/api.md are
    *("modeling_mengzi_oscar", "modeling_mengzi_oscar.hub", "modeling_mengzi_oscar.convert.oscar"),
    *("datasets_scripts.image_captions", "metrics.caption_zh.scores", "metrics.retrieval_recall.recall"),
    *("metrics.vqa_accuracy.answers", "metrics.gqa_accuracy.answers"),
)
LONGEST = 900  # pixels of a picture in a notebook


def main():
    torch.cpu.get_capabilities = dict  # float32 on every machine
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        lay_out(Path(folder))
        for page in PAGES:
            write(page, renewed((REPOSITORY / page).read_text("utf-8")))
        write("README_zh.md", with_blocks_of("README.md", (REPOSITORY / "README_zh.md").read_text("utf-8")))
        for picture, shown in PICTURES.items():
            Image.open(picture).save(REPOSITORY / shown, quality=80)
    for notebook in NOTEBOOKS:
        write(notebook, renewed_notebook(REPOSITORY / notebook))


def write(page, text):
    path = REPOSITORY / page
    print(page, "as it was" if path.read_text("utf-8") == text else "renewed")
    path.write_text(text, encoding="utf-8")


def lay_out(folder: Path):
    """What the examples find in the folder that they run in."""
    (folder / "photos").mkdir()
    for name, (path, _) in sample_photos().items():
        Image.open(path).convert("RGB").save(folder / "photos" / f"{name}.jpg", quality=95)
    (folder / "photo.jpg").write_bytes((folder / "photos" / "cat.jpg").read_bytes())
    for room in ("checkpoints", "metrics", "train"):
        (folder / room).symlink_to(REPOSITORY / room)
    as_original(folder / "checkpoints" / "mengzi-oscar-mini", folder / "original")


def as_original(mini: Path, folder: Path):
    """The mini's captioner as the original code would have saved it."""
    folder.mkdir()
    config = json.loads((mini / "config.json").read_text("utf-8"))
    ours = {"model_type", "region_model", "auto_map", "custom_pipelines", "architectures"}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in ours}), "utf-8")
    (folder / "vocab.txt").write_bytes((mini / "vocab.txt").read_bytes())
    weights = load_file(mini / "model.safetensors")
    torch.save({name: tensor.float() for name, tensor in weights.items()}, folder / "pytorch_model.bin")


def renewed(page: str) -> str:
    """The text of a page, with the outputs and descriptions of today."""
    names = {"__name__": "page"}

    def block(match):
        language, shown, printed = match.groups()
        if language == "console":
            return f"```console\n{''.join(map(run_command, commands_of(shown)))}```\n"
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(shown, names)
        if printed is None:
            return match[0]
        return f"```python\n{shown}```\n\n```text\n{without_the_folder(output.getvalue())}```\n"

    return BLOCK.sub(block, NAMED.sub(lambda match: match[1] + described(match[2]), page))


def with_blocks_of(page: str, translation: str) -> str:
    """A translation has the examples of its page, and so their outputs.

    Raises:
        ValueError: the pages differ in the number of their blocks.
    """
    blocks = iter([match[0] for match in BLOCK.finditer((REPOSITORY / page).read_text("utf-8"))])
    text, found = BLOCK.subn(lambda _: next(blocks, ""), translation)
    if next(blocks, None) is not None or not found:
        raise ValueError(f"{page} has more blocks than its translation")
    return text


def commands_of(block: str) -> list[str]:
    """The lines of a console block that are commands, as they stand there."""
    return re.findall(r"^\$ .*\n", block, flags=re.MULTILINE)


def run_command(line: str) -> str:
    """A command and what it prints.

    Raises:
        RuntimeError: it failed.
    """
    program, *words = shlex.split(line.removeprefix("$ "), comments=True)
    if program != "mengzi-oscar":
        raise RuntimeError(f"{line}: only mengzi-oscar is run")
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(io.StringIO()) as said:
        status = cli.main(words)
    if status:
        raise RuntimeError(f"{line}{said.getvalue()}")
    return line + without_the_folder(output.getvalue())


def without_the_folder(output: str) -> str:
    """The examples run in another folder each time."""
    return output.replace(f"{Path.cwd()}/", "")


def described(name: str) -> str:
    """Signature and docstring of a public name, as Markdown."""
    found = find(name)
    signature = str(inspect.signature(found)) if callable(found) else ""
    text = inspect.cleandoc(own_docstring(found))
    return f"\n`{name.split('.')[-1]}{plain(signature)}`\n\n{as_markdown(text)}\n"


def find(name: str):
    """
    Raises:
        AttributeError: none of the modules has it.
    """
    for module in map(importlib.import_module, MODULES):
        first, *rest = name.split(".")
        found = getattr(module, first, None)
        if found is not None and not inspect.ismodule(found):  # `convert` is also the name of a folder
            for part in rest:
                found = getattr(found, part)
            return found
    raise AttributeError(f"docs/api.md describes {name}, which is not there")


def own_docstring(found) -> str:
    """Not that of a parent, which describes the parent."""
    if inspect.isclass(found):
        return found.__dict__.get("__doc__") or ""
    return found.__doc__ or ""


def plain(signature: str) -> str:
    """A signature as a person writes it: without `self`, and without the modules of types."""
    signature = re.sub(r"\b(?:[a-zA-Z_]\w*\.)+(\w+)", r"\1", signature.replace("'", '"'))
    return re.sub(r"<(\w+)[^>]*>", r"\1", signature.replace("(self, ", "(").replace("(self)", "()"))


def as_markdown(docstring: str) -> str:
    """Sections begin with a bold word; of arguments and errors each is an entry of a list."""
    lines, section = [], None
    for line in docstring.splitlines():
        if started := SECTION.fullmatch(line):
            section = started[1]
            lines += ["", f"**{section}** {escaped(started[2] or '')}".rstrip(), ""]
            continue
        if line and not line.startswith(" "):
            section = None
        entry = section in ("Args", "Raises") and ENTRY.fullmatch(line)
        if entry:
            lines.append(f"* `{entry[1]}`: {escaped(entry[2])}")
        else:  # the text of an entry goes on below its bullet
            lines.append(("  " if section in ("Args", "Raises") and line else "") + escaped(line.strip()))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip()) + "\n"


def escaped(line: str) -> str:
    """What Markdown would take for its own, outside `code`."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"([*_<\[])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def renewed_notebook(path: Path) -> str:
    """The text of a notebook, every cell run anew in a kernel of this Python; pictures are stored small, as JPEG."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with (
        tempfile.TemporaryDirectory() as folder,  # what it writes, and what `datasets` keeps
        environment(PYTHONPATH=str(REPOSITORY), TMPDIR=folder, HF_DATASETS_CACHE=f"{folder}/datasets"),
    ):
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = joined(small(output) for output in cell.outputs if output.get("name") != "stderr")
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return nbformat.writes(notebook) + "\n"


def joined(outputs) -> list:
    """What a cell printed as one output: into how many a kernel cuts it depends on its speed."""
    kept = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


@contextlib.contextmanager
def environment(**variables):
    """Of the processes that are started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def small(output):
    """An output whose picture, where it has one, is one JPEG of at most LONGEST pixels."""
    import base64

    data = output.get("data", {})
    if encoded := data.pop("image/png", None):
        data.pop("image/jpeg", None)
        picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
        picture.thumbnail((LONGEST, LONGEST))
        picture.save(jpeg := io.BytesIO(), format="JPEG", quality=75)
        data["image/jpeg"] = base64.b64encode(jpeg.getvalue()).decode()
        data["text/plain"] = f"a picture, {picture.width} x {picture.height}"
    return output


if __name__ == "__main__":
    main()
