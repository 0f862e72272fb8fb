"""VinVL's convolutions in 8 bits, on CPUs: OpenVINO's networks in the place of torch's.

Weights become 8-bit integers, a scale per output channel, when a model is loaded. What meets them is rounded to 8 bits
between 0 and the largest value that photos showed there; `mengzi-oscar quantize` looks at some and keeps these numbers
in calibration.json, beside the weights that they are of. Stem, proposals, RoIAlign and scores stay in float32.

The networks are made here, operation by operation, of the weights in memory: no file holds one, nothing is traced.
"""

import re
import sys
import zlib

import numpy as np
import torch

from .checkpoint_folder import CALIBRATION, CheckpointError, CheckpointFolder
from .checksums import check_bytes
from .fields import Rule, check_fields, mapping, number, whole, word
from .modeling_vinvl import POOLED, VinVLModel, weight_and_shift

FIELDS = {
    "weights": Rule("a checksum", lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{8}", value)),
    "photos": whole(1, 1_000_000_000),
    "largest": mapping(word, number(0, 1e30)),
}
AGAIN = "make it again: mengzi-oscar quantize {} PHOTO…"
CHANNELS_LAST, CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def import_openvino():
    """The library, which otherwise tells Google Analytics that it was imported (openvino_telemetry).

    Raises:
        ImportError: what to install.
    """
    reports = "openvino_telemetry"
    if silenced := reports not in sys.modules:
        sys.modules[reports] = None  # as where it is not installed, which the library takes
    try:  # transformers wants everything installed that shipped files import outside of a try
        import openvino
    except ImportError:
        raise ImportError("8 bits for VinVL need OpenVINO: pip install openvino") from None
    finally:
        if silenced:
            sys.modules.pop(reports, None)
    return openvino


def read_calibration(folder: CheckpointFolder) -> dict | None:
    """What calibration.json says: "weights" (their checksum), "photos" (how many), "largest". None: there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder.file(CALIBRATION)
    if path is None:
        return None
    said = folder.json(CALIBRATION)
    with folder.reading(CALIBRATION):
        check_bytes(path)
        check_fields(dict.fromkeys(FIELDS) | said, FIELDS)
    return {name: said[name] for name in FIELDS}


def weights_checksum(state: dict[str, torch.Tensor]) -> str:
    """Of weights in whatever type they are stored: of what they are in float32."""
    checksum = 0
    for name, tensor in sorted(state.items()):
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        checksum = zlib.crc32(content, zlib.crc32(name.encode(), checksum))
    return f"{checksum:08x}"


def calibrate(model: VinVLModel, batches):
    """Looks at photos for the largest values, in float32; yields after each one what is known then.

    Args:
        model: in float32 on a CPU, as it was loaded; afterwards it is of no other use.
        batches: what its image processor makes of photos.

    Yields:
        A calibration, as `read_calibration` returns it.
    """
    checksum = weights_checksum(model.state_dict())
    networks = use_networks(model, None)
    for photos, inputs in enumerate(batches, start=1):
        with torch.inference_mode():
            model(**inputs)
        largest = {place: value for network in networks for place, value in network.largest.items()}
        yield {"weights": checksum, "photos": photos, "largest": largest}


def compute_in_8_bits(model: VinVLModel) -> VinVLModel:
    """Makes trunk and region part of a detector compute in 8 bits, in place; for inference on a CPU, not to be saved.

    Raises:
        CheckpointError: the calibration is of other weights, or lacks a place.
    """
    name = model.config.name_or_path
    check_calibration(model.calibration, model.state_dict(), name)
    try:
        use_networks(model, model.calibration["largest"])
    except KeyError as place:
        raise CheckpointError(f"{name}: {CALIBRATION} says nothing of {place.args[0]}; {AGAIN.format(name)}") from None
    model.in_8_bits = True
    return model


def why_in_float32(model) -> str | None:
    """What a region model lacks to compute in 8 bits, and what to do; None where it lacks nothing."""
    name = model.config.name_or_path
    if not isinstance(model, VinVLModel):
        return f"{name}: 8 bits are for VinVL's detector, its region model is another one"
    if model.calibration is None:
        return f"{name}: is not calibrated for 8 bits: mengzi-oscar quantize {name} PHOTO…"
    try:
        import_openvino()
    except ImportError as error:
        return f"{name}: {error}"
    return None


def check_calibration(calibration: dict, state: dict[str, torch.Tensor], name) -> None:
    """
    Raises:
        CheckpointError: it is of other weights.
    """
    if calibration["weights"] != weights_checksum(state):
        raise CheckpointError(f"{name}: {CALIBRATION} was made for other weights; {AGAIN.format(name)}")


def use_networks(model: VinVLModel, largest: dict[str, float] | None) -> tuple["Network", "Network"]:
    """Puts networks in the place of the trunk and of what follows RoIAlign.

    Args:
        model: in float32 on a CPU.
        largest: {place: largest value there}, for networks in 8 bits. None: in float32, and they watch the places.
    """
    model.fold_norms()
    extractor = model.roi_heads["box"].feature_extractor
    trunk, regions = trunk_network(model.backbone, largest), regions_network(extractor.head["layer4"], largest)
    model.backbone.forward, extractor.after_pooling = trunk, regions
    return trunk, regions


class Network:
    """A compiled network: tensors in, a tensor out, maps (B, C, H, W) channels-last. Threads may share it."""

    def __init__(self, parameters, result, watched: dict):
        """`watched`: {place: result with the largest value there}."""
        openvino = import_openvino()
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
        settings["INFERENCE_PRECISION_HINT"] = "f32"  # what is not in 8 bits: OpenVINO may think of bfloat16 there
        model = openvino.Model([result, *watched.values()], parameters)
        self.compiled = openvino.Core().compile_model(model, "CPU", settings)
        self.largest = dict.fromkeys(watched, 0.0)  # so far

    def __call__(self, *maps) -> torch.Tensor:
        rows = [one.float().permute(CHANNELS_LAST).contiguous().numpy() for one in maps]
        request = self.compiled.create_infer_request()
        result, *largest = request.infer(rows, share_inputs=True).to_tuple()
        for place, value in zip(self.largest, largest, strict=True):
            self.largest[place] = max(self.largest[place], float(value))
        result = torch.from_numpy(result)
        return result.permute(CHANNELS_FIRST) if result.dim() == 4 else result


class Layers:
    """VinVL's layers as operations of OpenVINO.

    Args:
        largest: {place: the value that becomes 255 there}. None: in float32, and every place is watched.
    """

    def __init__(self, largest: dict[str, float] | None):
        self.op = import_openvino().opset13
        self.largest, self.watched = largest, {}

    def rounded(self, x, place):
        """What a convolution is given: at least 0, since it comes from a ReLU."""
        if self.largest is None:
            self.watched[place] = self.op.reduce_max(x, np.arange(4))
            return x
        low, high = np.float32(0), np.float32(max(self.largest[place], 1e-6))
        return self.op.fake_quantize(x, low, high, low, high, 256)

    def convolve(self, x, conv, norm, in_8_bits=True):
        op = self.op
        weight, shift = (tensor.detach().float().numpy() for tensor in weight_and_shift(conv, norm))
        if conv.groups > 1:
            weight = weight.reshape(conv.groups, -1, *weight.shape[1:])
        if in_8_bits and self.largest is not None:
            scale = np.abs(weight).max(axis=(-3, -2, -1), keepdims=True).clip(1e-12) / 127
            weight = op.convert(op.constant(np.rint(weight / scale).astype(np.int8)), np.float32) * op.constant(scale)
        else:
            weight = op.constant(weight)
        convolution = op.group_convolution if conv.groups > 1 else op.convolution
        padding = list(conv.padding)
        return self.shifted(convolution(x, weight, list(conv.stride), padding, padding, [1, 1]), shift)

    def shifted(self, x, shift):
        return self.op.add(x, self.op.constant(np.asarray(shift, np.float32).reshape(1, -1, 1, 1)))

    def block(self, x, block, place):
        x8 = self.rounded(x, f"{place}.conv1")
        shortcut = self.convolve(x8, *block.downsample) if block.project else x
        return self.after_conv1(self.op.relu(self.convolve(x8, block.conv1, block.bn1)), shortcut, block, place)

    def after_conv1(self, x, shortcut, block, place):
        x = self.convolve(self.rounded(x, f"{place}.conv2"), block.conv2, block.bn2)
        x = self.convolve(self.rounded(self.op.relu(x), f"{place}.conv3"), block.conv3, block.bn3)
        return self.op.relu(self.op.add(x, shortcut))

    def given(self, *shape):
        """A map (B, H, W, C) that the network is given, and the same with the channels in front."""
        parameter = self.op.parameter(list(shape), np.float32)
        return parameter, self.op.transpose(parameter, CHANNELS_FIRST)


def trunk_network(backbone, largest) -> Network:
    """Pixels (B, 3, H, W) of any size to the C4 map."""
    layers = Layers(largest)
    pixels, x = layers.given(-1, -1, -1, 3)
    stem = backbone.body["stem"]
    x = layers.op.relu(layers.convolve(x, stem.conv1, stem.bn1, in_8_bits=False))
    x = layers.op.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
    for name in ("layer1", "layer2", "layer3"):
        for index, block in enumerate(backbone.body[name]):
            x = layers.block(x, block, f"{name}.{index}")
    return Network([pixels], layers.op.transpose(x, CHANNELS_LAST), layers.watched)


def regions_network(layer4, largest) -> Network:
    """See `VinVLRegionExtractor.after_pooling`."""
    layers, first = Layers(largest), layer4[0]
    pooled, x = layers.given(-1, POOLED, POOLED, first.conv1.out_channels)
    pooled_shortcut, shortcut = layers.given(-1, POOLED // 2, POOLED // 2, first.conv3.out_channels)
    shifts = [weight_and_shift(*pair)[1].detach() for pair in ((first.conv1, first.bn1), first.downsample)]
    x, shortcut = layers.op.relu(layers.shifted(x, shifts[0])), layers.shifted(shortcut, shifts[1])
    x = layers.after_conv1(x, shortcut, first, "layer4.0")
    for index, block in enumerate(layer4[1:], start=1):
        x = layers.block(x, block, f"layer4.{index}")
    return Network([pooled, pooled_shortcut], layers.op.reduce_mean(x, [2, 3]), layers.watched)
