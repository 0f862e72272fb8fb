"""The detector's choice of regions from scores, in turn with the plain one: `torchvision.ops.nms` class by class.

    python benchmarks/nms.py --threads 1

300 proposals of a photo of 951 x 600 pixels, 1,594 classes. How many boxes are confident decides how many classes have
to be looked at: "usual" has what a photo of things has, "a wall" few, "random weights" none, so that all classes
compete with all boxes. Both paths must choose the same regions.
"""

import torch
import torchvision
from measure import benchmark_parser, in_turn, prepare, report, table

from modeling_mengzi_oscar.configuration_vinvl import VinVLConfig
from modeling_mengzi_oscar.modeling_vinvl import detect_best_surviving_class

PROPOSALS = 300
KINDS = {"usual": (150, 14.0), "a wall": (4, 14.0), "random weights": (0, 0.0)}  # confident boxes, and how much


def scores(config, confident, height):
    """(P, classes) probabilities: `confident` rows have one logit that stands out."""
    logits = torch.randn(PROPOSALS, config.num_classes) * 0.5
    rows = torch.arange(confident)
    logits[rows, torch.randint(1, config.num_classes, (confident,))] += height
    return logits.softmax(dim=1)


def plain(boxes, probabilities, config):
    survived = torch.zeros_like(probabilities)
    for label in range(1, config.num_classes):
        kept = torchvision.ops.nms(boxes, probabilities[:, label], config.class_nms_threshold)
        survived[kept, label] = probabilities[kept, label]
    best, labels = survived.max(1)
    best, rows = best.sort(descending=True, stable=True)
    count = int((best >= config.score_threshold).sum().clamp(config.min_detections, config.max_detections))
    rows = rows[:count][best[:count] > 0]
    return rows, labels[rows], best[: len(rows)]


def main():
    options = benchmark_parser(__doc__, runs=5).parse_args()
    prepare(options)
    config, size = VinVLConfig(), torch.tensor([951.0, 600.0])
    corners = torch.rand(PROPOSALS, 2) * size * 0.8
    boxes = torch.cat([corners, (corners + 20 + torch.rand(PROPOSALS, 2) * size * 0.5).minimum(size)], dim=1)
    boxes, rows, result = boxes.to(options.device), [], {}
    for kind, settings in KINDS.items():
        found = scores(config, *settings).to(options.device)
        variants = {"plain": lambda p=found: plain(boxes, p, config)}
        variants["ours"] = lambda p=found: detect_best_surviving_class(boxes, p, config)
        for one, other in zip(variants["plain"](), variants["ours"](), strict=True):
            assert torch.equal(one, other), f"{kind}: other regions than the plain path's"
        measured = in_turn(variants, options.runs, options.device)
        milliseconds = {name: 1000 * run.seconds for name, run in measured.items()}
        result[kind] = milliseconds
        rows.append([kind, *milliseconds.values(), milliseconds["plain"] / milliseconds["ours"]])
    report("nms", options, table(["ms per photo", "plain", "ours", "x plain"], rows), result)


if __name__ == "__main__":
    main()
