"""Teaches the classifier of a mini's region model the classes of Caltech-101, beside ImageNet's: a linear probe.

    python train/mini/add_thing_classes.py --model outputs/objects-start --things data/things \\
        --teacher data/teacher/yolox_nano_things.jsonl --flickr8k_cn data/flickr8k-cn --output outputs/things-start

The backbone stays as it is, and so do ImageNet's logits: each new class gets a row of the classifier, and the softmax
runs over all. Photos of Caltech-101 should have their class; ImageNet's, and training photos of Flickr8k-CN, none of
them. A class brings a word for tags, or has one that ImageNet's classes have already. Held-out photos choose the weight
decay.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from add_objects import own_fields
from things import read_things
from torch.nn import functional as F
from tqdm.auto import tqdm

from datasets_scripts.prepare import builder_class
from datasets_scripts.reading import smallest_hashes
from modeling_mengzi_oscar import MengziOscarForImageCaptioning, MengziOscarProcessor, ObjectRegionModel
from modeling_mengzi_oscar.hub import save_checkpoint
from modeling_mengzi_oscar.labels.imagenet import DOUBT
from modeling_mengzi_oscar.loading import load_region_model
from modeling_mengzi_oscar.photos import open_photo

OTHERS = 700  # photos of Flickr8k-CN
WEIGHT_DECAYS = (0.01, 0.03, 0.1, 0.3)
STEPS, LEARNING_RATE = 300, 0.05


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder that add_objects.py wrote")
    parser.add_argument("--things", required=True, type=Path, help="folder with images/ and photos.jsonl")
    parser.add_argument("--teacher", required=True, help="the detector's boxes, one line per photo")
    parser.add_argument("--flickr8k_cn", required=True, type=Path, help="its files, laid out as docs/data.md says")
    parser.add_argument("--output", required=True, help="folder to write")
    options = parser.parse_args(arguments)

    # 1. Features of the photos
    region_model, image_processor = load_region_model(options.model)
    region_model.eval()
    things = [thing for thing in read_things(options.things, options.teacher) if thing.split != "test" and thing.nouns]
    others = smallest_hashes(training_images(options.flickr8k_cn), OTHERS)
    others = [options.flickr8k_cn / "images" / f"{image_id}.jpg" for image_id in others]
    paths = [options.things / "images" / thing.image for thing in things] + others
    pooled = pooled_features(region_model.grid, image_processor.grid_processor(), paths)

    # 2. Fit
    classes = sorted({thing.name for thing in things if is_caltech(thing)})
    targets = torch.tensor(
        [classes.index(thing.name) if is_caltech(thing) else -1 for thing in things] + [-1] * len(others)
    )
    held_out = torch.tensor(
        [thing.split == "validation" for thing in things] + [i % 10 == 0 for i in range(len(others))]
    )
    weight, bias, decay, scores = fit(region_model.grid.tag_branch, pooled, targets, held_out, len(classes))
    print(f"weight decay {decay}; held-out photos: {scores}")

    # 3. Save
    nouns = {thing.name: thing.nouns[0] for thing in things}
    larger = with_classes(region_model, weight, bias, [nouns[name] for name in classes])
    captioner = MengziOscarForImageCaptioning.from_pretrained(options.model, dtype=torch.float32)
    processor = MengziOscarProcessor.from_pretrained(options.model)
    save_checkpoint(options.output, captioner, processor, larger, image_processor, dtype=torch.float32)
    words = len(larger.grid.config.tag_labels) // 2 - len(region_model.grid.config.tag_labels) // 2
    print(f"{options.output}: {len(classes)} classes more, {words} words more for tags")


def training_images(data_dir) -> list[str]:
    builder = builder_class("flickr8k_cn")(data_dir=data_dir, config_name=None)
    builder.download_and_prepare()
    return builder.as_dataset(split="train")["image_id"][:]


def is_caltech(thing) -> bool:
    return thing.image.startswith("caltech101/")


@torch.inference_mode()
def pooled_features(grid, processor, paths) -> torch.FloatTensor:
    """(N, num_features), as the classifier of `grid` sees the photos."""
    features = []
    for path in tqdm(paths, "photos", unit="photo"):
        pixels = processor([open_photo(path)], return_tensors="pt")["pixel_values"]
        features.append(grid.tag_branch.pool(grid.trunk(pixels)))
    return torch.cat(features)


def fit(branch, pooled, targets, held_out, number):
    """Rows of a classifier for `number` new classes beside the old ones of `branch`.

    Args:
        pooled: (N, D). targets: (N,) new classes, -1: none of them. held_out: (N,) bool, not learnt from.

    Returns:
        weight (number, D), bias (number,), the weight decay that was best on what is held out, and its scores there.
    """
    old = branch.logits(pooled).logsumexp(dim=-1)  # (N,): of all old classes together
    found = []
    for decay in WEIGHT_DECAYS:
        weight = torch.zeros((number, pooled.shape[-1]), requires_grad=True)
        bias = torch.zeros(number, requires_grad=True)
        with torch.no_grad():
            bias += old.mean() - np.log(number) - 5  # rare at first
        optimizer = torch.optim.AdamW(
            [{"params": [weight], "weight_decay": decay}, {"params": [bias]}], lr=LEARNING_RATE
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        learnt = pooled[~held_out], old[~held_out], targets[~held_out]
        for _ in range(STEPS):
            loss = loss_of(*learnt, weight, bias)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            judged = pooled[held_out], old[held_out], targets[held_out]
            loss = loss_of(*judged, weight, bias).item()
            found.append((loss, decay, weight.detach(), bias.detach(), judge(*judged, weight, bias)))
    _, decay, weight, bias, scores = min(found, key=lambda one: one[0])
    return weight, bias, decay, scores


def loss_of(features, old, targets, weight, bias):
    """Cross entropy; what is none of the new classes is one class, the old ones together."""
    return F.cross_entropy(torch.cat([old[:, None], features @ weight.T + bias], dim=1), targets + 1)


def judge(features, old, targets, weight, bias) -> str:
    probabilities = torch.cat([old[:, None], features @ weight.T + bias], dim=1).softmax(dim=1)
    best = probabilities[:, 1:].max(dim=1)
    lines = []
    for least in (0.2, 0.5):
        there, sure = targets >= 0, best.values >= least
        right = (best.indices == targets) & sure & there
        lines.append(
            f"from {least} on {right.sum() / there.sum():.1%} of the things named, {(sure & ~there).sum()} of "
            f"{(~there).sum()} others named as a thing, {right.sum() / sure.sum().clamp(min=1):.1%} of the names right"
        )
    return "; ".join(lines)


def with_classes(region_model, weight, bias, nouns) -> ObjectRegionModel:
    """The same region model with rows more in its classifier, and their words among its tags."""
    config = own_fields(region_model.config)
    grid = dict(config["grid"])
    words = grid["tag_labels"][: len(grid["tag_labels"]) // 2]
    words = [*dict.fromkeys([*words, *nouns])]
    grid["tag_labels"] = words + [word + DOUBT for word in words]
    grid["tag_classes"] = grid["tag_classes"] + [words.index(noun) + 1 for noun in nouns]
    larger = ObjectRegionModel(type(region_model.config)(**(config | {"grid": grid})))
    state, own = region_model.state_dict(), larger.state_dict()
    scale = weight.abs().amax(dim=1) / 127
    more = {"weight": (weight / scale[:, None]).round().to(torch.int8), "scale": scale, "bias": bias}
    for name, tensor in more.items():
        state[f"grid.tag_branch.{name}"] = torch.cat([state[f"grid.tag_branch.{name}"], tensor])
    assert state.keys() == own.keys()
    larger.load_state_dict(state)
    return larger.eval()


if __name__ == "__main__":
    main()
