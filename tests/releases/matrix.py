"""The contract under each release of transformers: `python tests/releases/matrix.py [RELEASE ...]`, or `make matrix`.

RELEASE is a version, "oldest" or "newest" of releases.txt, "latest" (what the package index has today) or "installed"
(no overlay: what the environment has); without one, all of releases.txt. Prints a table, then a line for everything
that failed, and exits with 1 if something did. The digits of every check are compared with reference.json;
--write-reference makes that file of the release named.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path

import torch
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from releases.overlays import OVERLAYS, REPOSITORY, STRICT, named, overlay, size, versions  # noqa: E402

from modeling_mengzi_oscar.configuration_vinvl import VinVLConfig  # noqa: E402
from modeling_mengzi_oscar.hub import assemble  # noqa: E402
from modeling_mengzi_oscar.image_processing_vinvl import VinVLImageProcessor  # noqa: E402
from modeling_mengzi_oscar.modeling_vinvl import VinVLModel  # noqa: E402

REFERENCE = HERE / "reference.json"
MINI = REPOSITORY / "checkpoints" / "mengzi-oscar-mini"
TOLERANCE = 1e-4  # CPUs differ; releases on one CPU do not
TIME_LIMIT = 600  # seconds of one release
TINY_VINVL = {
    "depths": [1, 1, 1, 1],
    "stem_channels": 8,
    "stage_channels": 16,
    "groups": 4,
    "width_per_group": 2,
    "anchor_sizes": [8, 16, 32, 64, 128],
    "rpn_pre_nms_top_n": 400,
    "rpn_post_nms_top_n": 60,
    "num_classes": 31,
    "num_attributes": 25,
    "class_embedding_size": 8,
    "attribute_hidden_size": 16,
    "min_detections": 8,
    "max_detections": 12,
    "id2label": {i: f"thing {i}" for i in range(1, 31)},
    "id2attribute": {i: f"kind {i}" for i in range(1, 25)},
}


def write_vinvl(folder) -> None:
    """A tiny detector as a repo of its own: weights that depend on their names only, far enough apart to be told."""
    model = VinVLModel(VinVLConfig(**TINY_VINVL)).eval()
    trained = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in model.state_dict().items():
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            if name in trained:
                wide = 0.1 if "predictor" in name else (2 / max(values[0].numel(), 1)) ** 0.5
                values.normal_(0, wide, generator=generator)
            elif name.endswith("running_var"):
                values.uniform_(0.5, 2, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                values.normal_(0, 0.1, generator=generator)
        model.backbone.body["stem"].conv1.weight /= 64
    model.save_pretrained(folder)
    VinVLImageProcessor(shortest_edge=96, longest_edge=160).save_pretrained(folder)
    assemble(folder, "A tiny detector with random weights.")


@contextmanager
def repos(mini=MINI):
    """A temporary folder of the two repos that the contract reads, which every release may share."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(mini, Path(name) / "mini")
        write_vinvl(Path(name) / "vinvl")
        yield Path(name)


def run_contract(release, folders) -> dict:
    """The contract in a process of its own; `release` may be "installed", `folders` is what `repos` gives.

    Returns:
        {"versions", "seconds", "checks": {name: {"reason", "seconds", "digits"}}, "log"}
    """
    start = time.perf_counter()
    try:
        folder = None if release == "installed" else overlay(release)
    except RuntimeError as error:
        whole = {"reason": str(error), "seconds": 0, "digits": None}
        return {"versions": {"transformers": release}, "seconds": 0, "checks": {"whole": whole}, "log": ""}
    with tempfile.TemporaryDirectory() as name:
        temporary, checks = Path(name), {}
        (temporary / "elsewhere").mkdir()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"PYTHONPATH": str(folder)} if folder else {}
        environment |= {"HF_HOME": str(temporary / "home"), "HF_HUB_OFFLINE": "1"}
        environment["OMP_NUM_THREADS"] = "1"  # small products: more threads wait for one another on a busy machine
        # -P: this file's own folder is not on the path of imports
        command = [sys.executable, "-P", HERE / "contract.py", *(folders / "mini", folders / "vinvl")]
        process = subprocess.run(
            [*command, temporary / "result.json"],
            capture_output=True,
            text=True,
            env=environment,
            cwd=temporary / "elsewhere",
            timeout=TIME_LIMIT,
        )
        if (temporary / "result.json").exists():
            checks = json.loads((temporary / "result.json").read_text(encoding="utf-8"))["checks"]
    if process.returncode or not checks:
        lines = process.stderr.strip().splitlines() or ["no word"]
        checks["whole"] = {"reason": f"ended with {process.returncode}: {lines[-1]}", "seconds": 0, "digits": None}
    seconds = time.perf_counter() - start
    return {"versions": versions(folder), "seconds": seconds, "checks": checks, "log": process.stderr}


def differences(found, expected, path="") -> list[str]:
    """Where two nests of digits differ: numbers with a point by more than the tolerance, everything else at all."""
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys():
        return [line for key in expected for line in differences(found[key], expected[key], f"{path} {key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for i, (one, other) in pairs for line in differences(one, other, f"{path}[{i}]")]
    if isinstance(expected, float) and isinstance(found, float):
        equal = abs(found - expected) <= TOLERANCE * max(1, abs(expected))
    else:
        equal = type(found) is type(expected) and found == expected
    return [] if equal else [f"{path.strip()}: {short(found)}, the reference has {short(expected)}"]


def short(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}…"


def failures(result, reference) -> dict[str, str]:
    """{check: reason} of what failed, what gave other digits than the reference, and what never ran."""
    found = {}
    for name, row in result["checks"].items():
        if row["reason"]:
            found[name] = row["reason"]
        elif lines := differences(row["digits"], reference.get(name)):
            found[name] = f"other digits: {lines[0]}" + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")
    if "whole" in found:
        return found | {name: None for name in reference if name not in found}  # one reason is enough
    return found | {name: "it did not run" for name in reference if name not in result["checks"]}


def table_head(names) -> str:
    heads = ["transformers", "huggingface_hub", "tokenizers", "held", "seconds", *names]
    return f"| {' | '.join(heads)} |\n|{'|'.join('---' for _ in heads)}|"


def table_row(result, names, failed) -> str:
    found = [result["versions"].get(name, "") for name in ("transformers", *STRICT)]
    held = f"{sum(name not in failed for name in names)}/{len(names)}"
    cells = ["**failed**" if name in failed else "ok" for name in names]
    return f"| {' | '.join([*found, held, format(result['seconds'], '.0f'), *cells])} |"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("releases", nargs="*", help='versions, "oldest", "newest", "latest", "installed"; none = all')
    parser.add_argument("--write-reference", action="store_true", help="make reference.json of the one release named")
    parser.add_argument("--model", type=Path, default=MINI, help="a folder to check in place of the bundled one")
    parser.add_argument("--jobs", type=int, default=2, help="releases at a time, one thread and 1.5 GB each")
    parser.add_argument("--log", action="store_true", help="print what the contract wrote to stderr")
    options = parser.parse_args(arguments)
    OVERLAYS.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    if options.write_reference:
        [release] = named(options.releases)
        with repos(options.model) as folders:
            result = run_contract(release, folders)
        reasons = {name: row["reason"] for name, row in result["checks"].items() if row["reason"]}
        if reasons:
            print(f"no reference of a release that fails: {reasons}")
            return 1
        digits = {name: row["digits"] for name, row in result["checks"].items()}
        rows = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in digits.items()]
        REFERENCE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
        return 0
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    releases, problems, largest = named(options.releases), [], 0
    print(table_head(reference), flush=True)
    with repos(options.model) as folders, ThreadPoolExecutor(options.jobs) as pool:
        for release, result in zip(releases, pool.map(run_contract, releases, repeat(folders)), strict=True):
            failed = failures(result, reference)
            print(table_row(result, reference, failed), flush=True)
            problems += [f"{release} {name}: {reason}" for name, reason in failed.items() if reason]
            if options.log:
                print(result["log"], file=sys.stderr)
            if (OVERLAYS / release).exists():
                largest = max(largest, size(OVERLAYS / release))
    print("\n".join(["", *problems]))
    of_all = f"{len(releases)} releases, {len({line.split()[0] for line in problems})} with failures"
    print(f"{of_all}; the largest overlay holds {largest / 1e6:.0f} MB")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
