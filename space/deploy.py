"""Puts the demo on the Hub as a Space: its files, the library beside them, and the checkpoint it shows.

python space/deploy.py me/mengzi-oscar                                    # with the bundled mini
python space/deploy.py me/mengzi-oscar --model me/mengzi-oscar-caption    # a checkpoint of the Hub, pinned
python space/deploy.py me/mengzi-oscar --output space-repo                # only write the folder, to look at it
"""

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download

from modeling_mengzi_oscar.cli.checkpoint import BUNDLED

HERE = Path(__file__).resolve().parent
LIBRARY = HERE.parent / "modeling_mengzi_oscar"
FILES = ("*.py", "*.html", "*.css", "*.js", "*.md", "*.txt")
PLANNED = r"# The checkpoint that MODEL_ID names.*?(?=---\n)"  # the comment in the header of README.md


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", help="id of the Space, e.g. me/mengzi-oscar")
    parser.add_argument("--model", help="Hub id of a checkpoint, with @commit or its newest (default: the mini)")
    parser.add_argument("--output", help="write the folder there and send nothing")
    options = parser.parse_args(arguments)
    api = HfApi()
    pins = pinned(api, options.model) if options.model else []
    if options.output:
        assemble(Path(options.output), pins)
        return
    with tempfile.TemporaryDirectory() as folder:
        assemble(Path(folder), pins)
        api.create_repo(options.space, repo_type="space", space_sdk="gradio", exist_ok=True)
        if pins:
            api.add_space_variable(options.space, "MODEL_ID", "@".join(pins[0][::2]))
        print(api.upload_folder(repo_id=options.space, repo_type="space", folder_path=folder))


def pinned(api, model) -> list[tuple[str, str, str]]:
    """(repo, its files, commit) of a checkpoint and of the region model that its config names."""
    name, _, revision = model.partition("@")
    info = api.model_info(name, revision=revision or None)
    files = [file.rfilename for file in info.siblings if file.rfilename.endswith((".json", ".safetensors", ".txt"))]
    pins = [(name, ",".join(files), info.sha)]
    config = json.loads(Path(hf_hub_download(name, "config.json", revision=info.sha)).read_text("utf-8"))
    if "@" in (config.get("region_model") or ""):
        pins += pinned(api, config["region_model"])
    return pins


def assemble(folder: Path, pins) -> None:
    """The repo of the Space: space/ at its root, the library, and the mini where no checkpoint of the Hub is named."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in FILES:
        for file in HERE.glob(pattern):
            shutil.copy(file, folder)
    shutil.copytree(LIBRARY, folder / LIBRARY.name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    page = (folder / "README.md").read_text("utf-8")
    lines = ""
    if pins:
        lines = "models:\n" + "".join(f"- {name}\n" for name, _, _ in pins)
        lines += "preload_from_hub:\n" + "".join(f"- {' '.join(pin)}\n" for pin in pins)
    else:
        shutil.copytree(BUNDLED, folder / "checkpoints" / BUNDLED.name, dirs_exist_ok=True)
    (folder / "README.md").write_text(re.sub(PLANNED, lines, page, count=1, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":
    main()
