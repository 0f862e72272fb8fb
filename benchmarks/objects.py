"""A region model's objects against boxes of a file: AP50, and the time per photo on one thread.

    python benchmarks/objects.py --model checkpoints/mengzi-oscar-mini --photos photos/ --boxes boxes.jsonl

A line of the file is {"image": "1.jpg", "boxes": [[class, score, x1, y1, x2, y2], ...]}, in pixels, the class by the
name that the detector gives it; boxes under `--least-score` are left out. AP50: of every class that is there the area
under precision over recall (all points, precision made falling), a box is right that overlaps one of its class by half
(IoU) which no surer one has; the mean over the classes.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou
from tqdm.auto import tqdm

from modeling_mengzi_oscar.loading import load_region_model
from modeling_mengzi_oscar.photos import open_photo


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint or region model: folder or Hub id")
    parser.add_argument("--photos", type=Path, required=True, help="folder that the names of images start from")
    parser.add_argument("--boxes", type=Path, required=True, help=".jsonl")
    parser.add_argument("--least-score", type=float, default=0.4, help="of boxes in the file (default %(default)s)")
    parser.add_argument("--limit", type=int, help="photos, the first ones")
    parser.add_argument("--all-objects", action="store_true", help="100 objects from 0.05 on, not those of the config")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    model, processor = load_region_model(options.model)
    model.eval()
    if options.all_objects:
        model.config.max_objects, model.config.object_threshold = 100, 0.05
    found, truth, seconds = [], [], []
    lines = options.boxes.read_text("utf-8").splitlines()[: options.limit]
    for row in tqdm([json.loads(line) for line in lines], unit="photo"):
        photo = open_photo(options.photos / row["image"])
        start = time.perf_counter()
        with torch.inference_mode():
            output = model(**processor([photo], return_tensors="pt"))
        seconds.append(time.perf_counter() - start)
        found.append([region for region in model.describe(output, "en")[0] if "label" in region])
        truth.append([(name, box) for name, score, *box in row["boxes"] if score >= options.least_score])
    scores = average_precisions(found, truth)
    objects = sum(map(len, found)) / len(found)
    least, median = 1000 * min(seconds), 1000 * float(np.median(seconds))
    print(f"AP50 {np.mean(list(scores.values())):.3f} over {len(scores)} classes, {objects:.1f} objects per photo")
    print(f"per photo, processor and model, one thread: min {least:.0f} ms, median {median:.0f} ms")


def average_precisions(found, truth) -> dict[str, float]:
    """Per photo [{"label", "score", "box"}] and [(label, box)] -> AP50 of every label there, without its blanks."""
    detections, boxes = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for photo, (regions, real) in enumerate(zip(found, truth, strict=True)):
        for region in regions:
            detections[region["label"].replace(" ", "")].append((region["score"], photo, region["box"]))
        for label, box in real:
            boxes[label.replace(" ", "")][photo].append(box)
    return {label: average_precision(detections[label], boxes[label]) for label in boxes}


def average_precision(detections, boxes) -> float:
    """Of one class: [(score, photo, box)] and {photo: boxes}."""
    taken, right = set(), []
    for _, photo, box in sorted(detections, key=lambda one: -one[0]):
        overlaps = box_iou(torch.tensor([box]), torch.tensor(boxes[photo]))[0] if photo in boxes else torch.zeros(0)
        free = [place for place in overlaps.argsort(descending=True).tolist() if (photo, place) not in taken]
        right.append(bool(free) and overlaps[free[0]].item() >= 0.5)
        if right[-1]:
            taken.add((photo, free[0]))
    if not right:
        return 0.0
    hits = np.cumsum(right)
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    recall = hits / sum(map(len, boxes.values()))
    return float((np.diff(recall, prepend=0) * precision).sum())


if __name__ == "__main__":
    main()
