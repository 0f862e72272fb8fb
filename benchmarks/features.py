"""RegionFeatureStore against Oscar's feature TSV: rows per second, bytes, memory of loader workers, opening time.

    OMP_NUM_THREADS=1 python benchmarks/features.py --folder DIR

writes invented features to DIR (2 GB with the defaults), measures, prints a Markdown table and removes them.
"""

import argparse
import base64
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import safetensors
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from modeling_mengzi_oscar.features.oscar_tsv import import_tsv  # noqa: E402
from modeling_mengzi_oscar.features.store import RegionFeatureStore  # noqa: E402

OPEN = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from modeling_mengzi_oscar.features.store import RegionFeatureStore
def memory(kind):
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024
before = memory("Rss:")
start = time.perf_counter()
store = RegionFeatureStore.open(sys.argv[2])
opened = time.perf_counter() - start
grown = memory("Rss:") - before
ids = [str(number * 997 % len(store)) for number in range(2000)]
rates = []
for _ in range(2):
    start = time.perf_counter()
    for image_id in ids:
        assert image_id in store
    rates.append(len(ids) / (time.perf_counter() - start))
print(opened, grown, *rates, len(store))
"""


def tsv_row(file, offset):
    """One row as Oscar's CaptionTSVDataset reads it."""
    file.seek(offset)
    columns = [column.strip() for column in file.readline().split("\t")]
    record = json.loads(columns[1])
    features = np.frombuffer(base64.b64decode(record["features"]), np.float32).reshape(record["num_boxes"], -1)
    return torch.from_numpy(features.copy())


def forget(path):
    """Take a file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def rate(read, keys):
    start = time.perf_counter()
    for key in keys:
        read(key)
    return len(keys) / (time.perf_counter() - start)


def shared_memory(path, barrier, results, seed):
    """A loader worker that has read every row in an order of its own: its share of the store's pages in bytes."""
    store = RegionFeatureStore.open(path)
    ids = list(store)
    for number in np.random.default_rng(seed).permutation(len(ids)):
        store[ids[number]]
    barrier.wait()
    pages, mapped = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            mapped = str(path) in line
        elif mapped and line.startswith("Pss:"):
            pages += int(line.split()[1]) * 1024
    results.put(pages)
    barrier.wait()


def opening(path, images, state):
    """Rows of the table: opening a store in a fresh process, and looking ids up in it."""
    command = [sys.executable, "-c", OPEN, str(REPOSITORY), str(path)]
    runs = [list(map(float, subprocess.check_output(command).split())) for _ in range(3)]
    seconds, grown, first, again, count = min(runs)
    assert count == images
    files = len(list(path.glob("*-*.safetensors")))
    return [
        (
            f"open {images:,} images in {files:,} shards, {state}",
            f"{seconds * 1e3:.0f} ms, {grown:.0f} MB more resident",
        ),
        (f"`id in store` on it, {state}", f"{first:.0f} /s while shards are mapped, then {again:.0f} /s"),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="made, filled and removed")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--boxes", type=int, default=50)
    parser.add_argument("--dim", type=int, default=2054)
    parser.add_argument("--images", type=int, default=1_000_000, help="of the store that is only opened")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    tsv, path = arguments.folder / "features.tsv", arguments.folder / "store"
    table = []

    # 1. The same features as TSV and as a store
    generator = np.random.default_rng(0)
    offsets = []
    with open(tsv, "wb") as file:
        for number in range(arguments.rows):
            matrix = generator.normal(size=(arguments.boxes, arguments.dim)).astype("<f4")
            record = {"num_boxes": arguments.boxes, "features": base64.b64encode(matrix).decode()}
            offsets.append(file.tell())
            file.write(f"{number}\t{json.dumps(record)}\n".encode())
    for num_proc in (1, 2):
        best = 0
        for _ in range(2):
            shutil.rmtree(path, ignore_errors=True)
            start = time.perf_counter()
            import_tsv(tsv, path, num_proc=num_proc)
            best = max(best, tsv.stat().st_size / (time.perf_counter() - start))
        what = "1 process" if num_proc == 1 else f"{num_proc} processes, their start included"
        table.append((f"import_tsv, {what}", f"{best / 1e6:.0f} MB of TSV/s"))
    size = sum(file.stat().st_size for file in path.iterdir())
    table.append(("TSV", f"{tsv.stat().st_size / 1e6:.0f} MB"))
    table.append(("store, float16", f"{size / 1e6:.0f} MB, {size / tsv.stat().st_size:.1%} of the TSV"))

    # 2. Random access, with the files in the page cache and without
    order = generator.permutation(arguments.rows)
    store, text = RegionFeatureStore.open(path), open(tsv, encoding="utf-8")  # noqa: SIM115
    assert np.allclose(store["7"]["region_features"], tsv_row(text, offsets[7]), rtol=1e-3, atol=1e-6)
    for state in ("page cache", "cold"):
        best = {"TSV": 0, "store": 0}
        for _ in range(3):
            store, text = RegionFeatureStore.open(path), open(tsv, encoding="utf-8")  # noqa: SIM115
            for file in (tsv, *path.iterdir()) if state == "cold" else ():
                forget(file)
            best["TSV"] = max(best["TSV"], rate(partial(tsv_row, text), [offsets[number] for number in order[:400]]))
            best["store"] = max(best["store"], rate(store.__getitem__, [str(number) for number in order]))
        table.append((f"random access, TSV, {state}", f"{best['TSV']:.0f} rows/s"))
        times = best["store"] / best["TSV"]
        table.append((f"random access, store, {state}", f"{best['store']:.0f} rows/s, {times:.0f} x"))
    store = None  # its mapping would share the pages of the workers

    # 3. Four loader workers that have read everything
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=shared_memory, args=(path, barrier, results, seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    resident = sum(results.get() for _ in workers)
    for worker in workers:
        worker.join()
    table.append(("pages of four workers together", f"{resident / size:.3f} copies of the store"))

    # 4. Opening a store of very many images
    many = arguments.folder / "many"
    start = time.perf_counter()
    with RegionFeatureStore.writer(many) as writer:
        for number in range(arguments.images):
            writer.add(str(number), {"region_features": np.zeros((1, 1), np.float32)})
        table.append(
            ("writing images of one number each", f"{arguments.images / (time.perf_counter() - start):.0f} images/s")
        )
        writer.flush()
        table += opening(many, arguments.images, "its writer was killed")
    table += opening(many, arguments.images, "indexed")
    (many / "index.safetensors").unlink()
    table += opening(many, arguments.images, "index deleted")

    shutil.rmtree(arguments.folder)
    print(f"{arguments.rows:,} rows x {arguments.boxes} boxes x {arguments.dim}, {os.cpu_count()} cores")
    versions = f"torch {torch.__version__}, numpy {np.__version__}, safetensors {safetensors.__version__}"
    print(f"python {platform.python_version()}, {versions}\n")
    print("| what | measured |\n|---|---|")
    for row in table:
        print(f"| {row[0]} | {row[1]} |")


if __name__ == "__main__":
    main()
