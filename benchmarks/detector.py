"""How long the VinVL detector takes per image, stage by stage, against the same network written plainly.

The plain path has the original's shape: NCHW convolutions with separate norms, layer4 on all regions after
torchvision's RoIAlign, one NMS call per class, and the region extractor run a second time for the attributes. Both
paths take turns, so that other work on the machine hits both. With a low precision the script also says how far the
regions drift from float32. Prints a table and one JSON line.

Examples:
    python benchmarks/detector.py --threads 1 --runs 3
    python benchmarks/detector.py --golden PATH/parity/vinvl --threads 1 --dtype bfloat16
    python benchmarks/detector.py --golden PATH/parity/vinvl --threads 1 --dtype int8 --calibrate photos/
    python benchmarks/detector.py --model PATH/vinvl --image photo.jpg --device cuda --dtype bfloat16 --batch-size 8 \\
        --rois-per-chunk 600 --skip-naive

Without --model or --golden the weights are random: the convolutions cost the same, but there is little to detect.
8 bits (OpenVINO) need a look at photos: --calibrate, else what mengzi-oscar quantize left beside the weights.
"""

import importlib.util
import json
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from measure import (
    DTYPES,
    Clock,
    benchmark_parser,
    count_flops,
    measure_machine,
    now,
    peak_memory,
    prepare,
    report,
    table,
)
from PIL import Image
from safetensors.torch import load_file

from modeling_mengzi_oscar import modeling_vinvl
from modeling_mengzi_oscar.configuration_vinvl import VinVLConfig
from modeling_mengzi_oscar.features.photo_stream import NamedPhotos, opened
from modeling_mengzi_oscar.image_processing_vinvl import VinVLImageProcessor
from modeling_mengzi_oscar.loading import load_region_model
from modeling_mengzi_oscar.modeling_vinvl import VinVLModel
from modeling_mengzi_oscar.openvino_networks import Network, calibrate
from modeling_mengzi_oscar.precision import compute_in

PHOTOS_CALIBRATED = 50  # at most
STAGES = ("trunk", "rpn", "roi_align", "layer4", "nms", "attributes", "rest")


def plain_convolution(x, conv, norm):
    scale, shift = norm.scale_and_shift()
    x = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, groups=conv.groups)
    return x * scale[:, None, None] + shift[:, None, None]


def plain_bottleneck(x, block):
    shortcut = plain_convolution(x, *block.downsample) if block.project else x
    x = plain_convolution(x, block.conv1, block.bn1).relu_()
    x = plain_convolution(x, block.conv2, block.bn2).relu_()
    return plain_convolution(x, block.conv3, block.bn3).add_(shortcut).relu_()


def plain_extractor(c4, boxes, extractor, clock):
    with clock.stage("roi_align"):
        x = torchvision.ops.roi_align(c4, [boxes], 14, 1 / 16, sampling_ratio=0, aligned=False)
    with clock.stage("layer4"):
        for block in extractor.head["layer4"]:
            x = plain_bottleneck(x, block)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


def plain_proposals(c4, size, rpn):
    conv, cls_logits, bbox_pred = rpn.head.values()
    hidden = conv(c4).relu_()
    scores = cls_logits(hidden).permute(0, 2, 3, 1).reshape(-1).sigmoid()
    deltas = bbox_pred(hidden).permute(0, 2, 3, 1).reshape(-1, 4)
    scores, index = scores.topk(min(rpn.config.rpn_pre_nms_top_n, len(scores)))
    anchors = rpn.anchor_generator(*c4.shape[-2:], c4.device)
    boxes = modeling_vinvl.clip_boxes(modeling_vinvl.decode_boxes(anchors[index], deltas[index]), size)
    return boxes[torchvision.ops.nms(boxes, scores, rpn.config.rpn_nms_threshold)[: rpn.config.rpn_post_nms_top_n]]


def plain_detections(boxes, probabilities, config):
    survived = torch.zeros_like(probabilities)
    for k in range(1, probabilities.shape[1]):
        kept = torchvision.ops.nms(boxes, probabilities[:, k], config.class_nms_threshold)
        survived[kept, k] = probabilities[kept, k]
    best, labels = survived.max(1)
    best, rows = best.sort(descending=True, stable=True)
    count = int((best >= config.score_threshold).sum().clamp(config.min_detections, config.max_detections))
    return rows[:count], labels[rows[:count]]


@torch.inference_mode()
def plain_forward(model, pixel_values, size, clock):
    """One image (1, 3, H, W) -> labels; the model's norms must not be folded."""
    with clock.stage("trunk"):
        body = model.backbone.body
        x = plain_convolution(pixel_values, body["stem"].conv1, body["stem"].bn1).relu_()
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for name in ("layer1", "layer2", "layer3"):
            for block in body[name]:
                x = plain_bottleneck(x, block)
    with clock.stage("rpn"):
        proposals = plain_proposals(x, size, model.rpn)
    box_head = model.roi_heads["box"]
    probabilities = box_head.probabilities(plain_extractor(x, proposals, box_head.feature_extractor, clock))
    with clock.stage("nms"):
        rows, labels = plain_detections(proposals, probabilities, model.config)
    with clock.stage("attributes"):
        own_clock = Clock(clock.device)  # its RoIAlign and layer4 count as attributes
        appearance = plain_extractor(x, proposals[rows], box_head.feature_extractor, own_clock)
        model.attribute(appearance, labels)
    return labels


@contextmanager
def measured_stages(model, clock):
    """Inside, the stages of `model` report to `clock`."""
    saved = modeling_vinvl.roi_align, dict(modeling_vinvl.DETECT), model.backbone.forward
    extractor = model.roi_heads["box"].feature_extractor
    parts = {"trunk": model.backbone, "rpn": model.rpn, "layer4": extractor, "attributes": model.attribute}
    for name, part in parts.items():
        part.forward = clock.around(name, part.forward)
    modeling_vinvl.roi_align = clock.around("roi_align", modeling_vinvl.roi_align)
    modeling_vinvl.DETECT.update({key: clock.around("nms", value) for key, value in modeling_vinvl.DETECT.items()})
    yield
    modeling_vinvl.roi_align = saved[0]
    modeling_vinvl.DETECT.update(saved[1])
    for part in parts.values():
        del part.forward
    if isinstance(saved[2], Network):  # stood in its place before
        model.backbone.forward = saved[2]
    clock.seconds["layer4"] -= clock.seconds["roi_align"]


@contextmanager
def timed(wall: list, cpu: list, device: str, wanted: bool = True):
    """Append the seconds of the block, by the clock and of processor time."""
    start, cpu_start = now(device), time.process_time()
    yield
    if wanted:
        wall.append(now(device) - start)
        cpu.append(time.process_time() - cpu_start)


def load_model(arguments) -> VinVLModel:
    if arguments.model:
        return load_region_model(arguments.model)[0]
    if not arguments.golden:
        model = VinVLModel(VinVLConfig()).eval()
        with torch.no_grad():  # some confident classes: without any, all 1,594 compete (that case is in nms.py)
            model.roi_heads["box"].predictor["cls_score"].bias[1:4] = 20
        return model
    folder = Path(arguments.golden)
    spec = importlib.util.spec_from_file_location("fill_weights", folder / "fill_weights.py")
    fill_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill_weights)
    weights = json.loads((folder / "golden_dev.json").read_text())["weights"]
    overrides = {
        key.removeprefix("override."): value
        for key, value in load_file(folder / "golden_dev.safetensors").items()
        if key.startswith("override.")
    }
    config = VinVLConfig()
    with torch.device("meta"):
        model = VinVLModel(config)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    state_dict = fill_weights.fill_state_dict(shapes, weights["salt"], overrides, weights["gains"])
    anchors = modeling_vinvl.cell_anchors(config.anchor_sizes, config.anchor_ratios)
    model.load_state_dict(state_dict | {"rpn.anchor_generator.cell_anchors.0": anchors}, assign=True)
    return model.eval()


def in_8_bits(model, photos):
    """Calibrates with photos where some are named, with float32 networks of the same weights."""
    if photos:
        watching, processor = copy_of(model), VinVLImageProcessor()
        inputs = (processor([image]) for _, image in opened(NamedPhotos(photos).fetch_photos()))
        for number, model.calibration in enumerate(islice(calibrate(watching, inputs), PHOTOS_CALIBRATED), start=1):
            print(f"\rcalibration: photo {number}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    if model.calibration is None:
        raise SystemExit("--dtype int8: give --calibrate PHOTO…, or a --model calibrated by mengzi-oscar quantize")
    return compute_in("int8", model)


def copy_of(model) -> VinVLModel:
    with torch.device("meta"):
        copied = VinVLModel(model.config)
    copied.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)
    return copied.eval()


def drift(reference, output) -> dict:
    """How many float32 regions are found again (IoU of at least 0.9), how many with their label, and the cosines."""
    kept = labels = 0
    cosines = []
    for image in range(len(reference.boxes)):
        n, m = (int(result.region_attention_mask[image].sum()) for result in (reference, output))
        overlap = torchvision.ops.box_iou(reference.boxes[image, :n], output.boxes[image, :m])
        best, partner = overlap.max(1)
        same = output.class_ids[image, partner] == reference.class_ids[image, :n]
        # one proposal may be two regions with other labels only with nms_filter 0, so the best partner is the right one
        kept, labels = kept + int((best >= 0.9).sum()), labels + int((same & (best >= 0.9)).sum())
        ours, theirs = reference.region_features[image, :n, :-6], output.region_features[image, partner, :-6]
        cosines += F.cosine_similarity(ours, theirs)[best >= 0.9].tolist()
    return {
        "regions": int(reference.region_attention_mask.sum()),
        "regions_now": int(output.region_attention_mask.sum()),
        "kept": kept,
        "kept_with_label": labels,
        "cosine_median": round(median(cosines), 5) if cosines else None,
        "cosine_min": round(min(cosines), 5) if cosines else None,
    }


def parse_arguments():
    parser = benchmark_parser(__doc__, runs=3, int8=True)
    parser.add_argument("--model", help="folder of a converted checkpoint")
    parser.add_argument("--golden", help="folder with fill_weights.py and golden_dev.*: its weights and its photo")
    parser.add_argument("--image", help="photo to run on (default: golden_dev.jpg, or noise of 951 x 600 pixels)")
    parser.add_argument("--calibrate", nargs="+", metavar="PHOTO", help="for --dtype int8: photos, folders, patterns")
    parser.add_argument(
        "--layer4-only", action="store_true", help="--dtype for the region part only, float32 before it"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="copies of the photo per forward of the fast path")
    parser.add_argument("--rois-per-chunk", type=int, help="regions through layer4 at a time (default: the config's)")
    parser.add_argument("--skip-naive", action="store_true", help="do not run the plain path")
    return parser.parse_args()


@torch.inference_mode()
def main():
    # 1. Model and photo
    arguments = parse_arguments()
    device, dtype = arguments.device, DTYPES.get(arguments.dtype, torch.int8)
    prepare(arguments)
    model = load_model(arguments).to(device)
    if arguments.rois_per_chunk:
        model.config.rois_per_chunk = arguments.rois_per_chunk
    path = arguments.image or (arguments.golden and Path(arguments.golden) / "golden_dev.jpg")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).resize((951, 600))
    photo = Image.open(path) if path else noise
    start = time.perf_counter()
    inputs = VinVLImageProcessor()([photo] * arguments.batch_size)
    preprocessing = time.perf_counter() - start
    inputs = inputs.to(device)
    plain_inputs = inputs["pixel_values"][:1], inputs["reshaped_input_sizes"][0]

    # 2. Reference for the drift; a copy for the plain path, whose norms must stay
    reference = model(**inputs) if dtype != torch.float32 else None
    plain = None if arguments.skip_naive else copy_of(model)
    counted = {}
    if dtype == torch.int8:
        counted["fast"] = count_flops(lambda: model(**inputs))  # while torch does the work
        in_8_bits(model, arguments.calibrate)
        if arguments.layer4_only:
            del model.backbone.forward  # torch's again
    else:
        model.fold_norms()
        (model.roi_heads if arguments.layer4_only else model).to(dtype)

    # 3. Both paths in turn
    times, cpu_times = defaultdict(list), defaultdict(list)
    stages = {"fast": defaultdict(list), "plain": defaultdict(list)}
    output = model(**inputs)  # warm up
    memory = {"fast": peak_memory(device)}
    if plain:
        plain_forward(plain, *plain_inputs, Clock(device))
        memory["plain"] = peak_memory(device)
    for _ in range(arguments.runs):
        if device == "cuda":  # waiting at every stage costs time there, so the whole is measured without
            with timed(times["fast"], cpu_times["fast"], device):
                model(**inputs)
        clock = Clock(device)
        with measured_stages(model, clock), timed(times["fast"], cpu_times["fast"], device, device == "cpu"):
            model(**inputs)
        for name in STAGES[:-1]:
            stages["fast"][name].append(clock.seconds[name])
        if plain:
            clock = Clock(device)
            with timed(times["plain"], cpu_times["plain"], device):
                plain_forward(plain, *plain_inputs, clock)
            for name in STAGES[:-1]:
                stages["plain"][name].append(clock.seconds[name])

    # 4. Table and JSON line
    machine = measure_machine(device, "float32" if dtype == torch.int8 else arguments.dtype)
    result = {
        "dtype": arguments.dtype + (" (regions only)" if arguments.layer4_only else ""),
        "threads": torch.get_num_threads(),
        "batch_size": arguments.batch_size,
        "input": list(inputs["pixel_values"].shape[-2:]),
        "regions": output.region_attention_mask.sum(1).tolist(),
        "runs": arguments.runs,
        "preprocessing_s": round(preprocessing / arguments.batch_size, 4),
        "machine": vars(machine),
    }
    runs = {"fast": lambda: model(**inputs), "plain": lambda: plain_forward(plain, *plain_inputs, Clock(device))}
    for name, values in times.items():
        images = arguments.batch_size if name == "fast" else 1
        seconds = median(values) / images
        work = (counted.get(name) or count_flops(runs[name])) / images
        breakdown = {stage: round(median(stages[name][stage]) / images, 4) for stage in STAGES[:-1]}
        result[name] = {
            "seconds_per_image": round(seconds, 4),
            "cpu_seconds_per_image": round(median(cpu_times[name]) / images, 4),
            "images_per_s": round(1 / seconds, 4),
            "peak_mib": round(memory[name]),
            "tflop": round(work / 1e12, 3),
            "of_matrix_rate": round(machine.floor(work) / seconds, 3),
            "stages": breakdown | {"rest": round(max(seconds - sum(breakdown.values()), 0), 4)},
        }
    if plain:
        for key in ("seconds_per_image", "cpu_seconds_per_image"):
            result[f"ratio_{key}"] = round(result["plain"][key] / result["fast"][key], 3)
    if reference is not None:
        result["drift"] = drift(reference, output)
    columns = [name for name in ("plain", "fast") if name in result]
    names = {"seconds_per_image": "whole forward", "cpu_seconds_per_image": "processor time"}
    rows = [[names[key], *(result[c][key] for c in columns)] for key in names]
    rows += [[stage, *(result[c]["stages"][stage] for c in columns)] for stage in STAGES]
    names = {"peak_mib": "peak memory, MiB", "tflop": "TFLOP", "of_matrix_rate": "of the matrix rate"}
    rows += [[names[key], *(result[c][key] for c in columns)] for key in names]
    text = table([f"seconds per image, {result['dtype']}, batch {arguments.batch_size}", *columns], rows)
    report("detector", arguments, f"{text}\n\n{machine}.", result)


if __name__ == "__main__":
    main()
