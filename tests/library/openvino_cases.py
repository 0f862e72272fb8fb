"""VinVL in 8 bits: OpenVINO's networks against torch's, calibrations of other weights, every door that takes int8."""

import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import CHARACTERS, SPECIAL_TOKENS, tiny_captioner
from PIL import Image
from safetensors.torch import load_file, save_file
from test_vinvl import TINY, random_model
from transformers import BertTokenizer
from transformers.dynamic_module_utils import get_imports

from modeling_mengzi_oscar import (
    MengziOscarPipeline,
    MengziOscarProcessor,
    RegionFeatureStore,
    modeling_vinvl,
    openvino_networks,
)
from modeling_mengzi_oscar.checkpoint_folder import CALIBRATION, CheckpointError, CheckpointFolder
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.generation_mengzi_oscar import published_generation_config
from modeling_mengzi_oscar.hub import check_repo, save_checkpoint
from modeling_mengzi_oscar.hub.repo import take_along
from modeling_mengzi_oscar.image_processing_vinvl import VinVLImageProcessor
from modeling_mengzi_oscar.loading import load_region_model
from modeling_mengzi_oscar.precision import another_precision, compute_in

if find_spec("openvino") is None:  # not `importorskip`, since importing it by itself is told to others
    pytest.skip("the extra `openvino` is not installed", allow_module_level=True)


def noise(seed, size=(120, 90)):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Paths, of several sizes; the last one is not calibrated with."""
    folder = tmp_path_factory.mktemp("photos")
    for seed, size in enumerate([(120, 90), (90, 120), (110, 100), (131, 97)]):
        noise(seed, size).save(folder / f"{seed}.png")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole checkpoint whose region model is a tiny VinVL with random weights; not calibrated."""
    folder = tmp_path_factory.mktemp("checkpoint")
    words = {index: "dog" for index in range(1, TINY["num_classes"])}
    detector = random_model(id2label=words, id2label_zh=dict.fromkeys(words, "狗"), id2attribute=words | {0: ""})
    (folder / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS + CHARACTERS) + "\n", encoding="utf-8")
    captioner = tiny_captioner(img_feature_dim=detector.config.region_feature_size)
    captioner.generation_config = published_generation_config(captioner.config, max_length=12, num_beams=3)
    processor = MengziOscarProcessor(BertTokenizer.from_pretrained(folder), max_regions=9)
    pixels = VinVLImageProcessor(shortest_edge=96, longest_edge=160)
    save_checkpoint(folder / "vinvl", captioner, processor, detector, pixels, dtype=torch.float32)
    return folder / "vinvl"


@pytest.fixture(scope="module")
def calibrated(checkpoint, photos, tmp_path_factory):
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("calibrated") / "vinvl")
    assert main(["quantize", str(folder), *photos[:3]]) == 0
    return folder


@torch.inference_mode()
def test_in_float32_the_networks_are_torch(photos):
    """Trunk and region part, of several sizes and numbers of regions; and the largest values are those of torch."""
    exact, same = random_model().fold_norms(), random_model()
    largest = {}

    def watched(x, conv, norm, convolve=modeling_vinvl.convolve):
        largest[id(conv)] = max(largest.get(id(conv), 0), x.max().item())
        return convolve(x, conv, norm)

    trunk, regions = openvino_networks.use_networks(same, None)
    for number, path in enumerate(photos):
        inputs = VinVLImageProcessor(shortest_edge=96, longest_edge=160)(Image.open(path))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(modeling_vinvl, "convolve", watched)
            expected = exact.backbone(inputs["pixel_values"])
        torch.testing.assert_close(trunk(inputs["pixel_values"]), expected, rtol=1e-4, atol=1e-4)
        size = exact.config.stage_channels * 8
        pooled = [torch.randn(number + 1, channels, *side) for channels, side in ((64, (14, 14)), (size, (7, 7)))]
        extractor = exact.roi_heads["box"].feature_extractor
        expected = extractor.after_pooling(*(tensor.clone() for tensor in pooled))
        torch.testing.assert_close(regions(*pooled), expected, rtol=1e-4, atol=1e-4)
    block = exact.backbone.body["layer3"][1]
    for conv in ("conv1", "conv2", "conv3"):
        assert trunk.largest[f"layer3.1.{conv}"] == pytest.approx(largest[id(getattr(block, conv))], rel=1e-4)


@torch.inference_mode()
def test_in_8_bits_near_the_same_regions(calibrated, photos):
    """A photo that was not calibrated with. The proposals of random weights are near ties, so features are compared
    of given boxes."""
    exact, processor = load_region_model(str(calibrated))
    rounded = compute_in("int8", load_region_model(str(calibrated))[0])
    inputs = processor([Image.open(photos[3])], return_tensors="pt")
    maps = [model.backbone(inputs["pixel_values"]) for model in (exact, rounded)]
    assert not torch.equal(*maps)
    assert torch.cosine_similarity(*(one.flatten(2) for one in maps), dim=1).median() > 0.99
    boxes = [torch.tensor([[0.0, 0, 60, 60], [20, 30, 100, 90], [5, 5, 30, 80]])]
    rows = [
        model.roi_heads["box"].feature_extractor(one, boxes) for model, one in zip((exact, rounded), maps, strict=True)
    ]
    assert torch.cosine_similarity(*rows, dim=-1).min() > 0.99
    output = rounded(**inputs)
    assert output.region_features.dtype == torch.float32
    assert torch.equal(output.region_features, rounded(**inputs).region_features)
    twice = rounded(**processor([Image.open(photos[3])] * 2, return_tensors="pt"))
    assert torch.equal(twice.class_ids[1], output.class_ids[0])  # sums in another order may round the other way
    assert torch.cosine_similarity(twice.region_features[1], output.region_features[0], dim=-1).min() > 0.9999


def test_calibration_looks_at_no_more_than_asked(checkpoint, photos, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "vinvl")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    assert main(["quantize", str(folder), *photos, "--photos-used", "2"]) == 0
    said = json.loads((folder / "region_model" / CALIBRATION).read_text("utf-8"))
    assert said["photos"] == 2
    assert len(said["largest"]) == 3 * 6 - 1  # layer4's first conv1 comes before RoIAlign, in float32
    assert main(["quantize", str(folder), str(tmp_path / "broken.jpg"), photos[0]]) == 2  # the other one counts
    assert json.loads((folder / "region_model" / CALIBRATION).read_text("utf-8"))["photos"] == 1
    before = (folder / "region_model" / CALIBRATION).read_bytes()
    assert main(["quantize", str(folder), str(tmp_path / "broken.jpg")]) == 2
    assert "none of the photos can be read; nothing was written" in capsys.readouterr().err
    assert (folder / "region_model" / CALIBRATION).read_bytes() == before


def test_every_door(calibrated, photos, tmp_path, capsys):
    exact, small = (MengziOscarPipeline.from_pretrained(calibrated, dtype=dtype) for dtype in ("float32", "int8"))
    assert (exact.region_model.in_8_bits, small.region_model.in_8_bits) == (False, True)
    sums = [pipeline.finder.checksum for pipeline in (exact, small)]
    assert sums[0].startswith("float32 ")
    assert sums[1].startswith("int8 ")
    caption = small.caption(photos[3])["caption"]
    assert main(["caption", photos[3], "--model", str(calibrated), "--dtype", "int8"]) == 0
    output = capsys.readouterr()
    assert (output.out.split("\t")[1], output.err) == (caption, "")
    piped = transformers.pipeline(
        "mengzi-oscar-captioning", model=str(calibrated), trust_remote_code=True, dtype="int8"
    )
    assert piped.photos.region_model.in_8_bits
    assert piped(photos[3])["caption"] == caption
    store = tmp_path / "store"
    extraction = ["extract", photos[3], "--model", str(calibrated), "--output", str(store), "--dtype", "float32"]
    assert main([*extraction, "--precision", "int8"]) == 0
    store = RegionFeatureStore.open(store)
    assert store.precision == "int8"
    seen = small.look(photos[3])
    assert np.array_equal(store["3"]["region_features"], seen.region_features.numpy())
    assert main(extraction) == 0  # goes on as it was begun
    assert main([*extraction, "--precision", "float32"]) == 2
    assert another_precision("int8", "int8") is None
    assert "computed in int8, here they would be in float32" in another_precision("int8", "float32")


def test_calibration_goes_where_the_weights_go(calibrated, photos, tmp_path):
    assert Path("region_model", CALIBRATION) in check_repo(calibrated)
    MengziOscarPipeline.from_pretrained(calibrated, dtype="int8").save_pretrained(tmp_path / "saved")
    assert MengziOscarPipeline.from_pretrained(tmp_path / "saved", dtype="int8").region_model.in_8_bits
    take_along(CheckpointFolder(calibrated, subfolder="region_model"), tmp_path / "along")  # into a training's best/
    assert (tmp_path / "along" / CALIBRATION).is_file()
    detector = str(calibrated / "region_model")
    assert main(["convert", str(calibrated), str(tmp_path / "again"), "--region-model", detector]) == 0
    assert MengziOscarPipeline.from_pretrained(tmp_path / "again", dtype="int8").region_model.in_8_bits


def test_rows_of_another_calibration_are_not_continued(calibrated, photos, tmp_path, capsys):
    folder, rows = shutil.copytree(calibrated, tmp_path / "vinvl"), str(tmp_path / "rows.jsonl")
    command = ["caption", photos[0], "--model", str(folder), "--dtype", "int8", "--output", rows]
    assert main(command) == 0
    assert main(["quantize", str(folder), photos[1]]) == 0
    capsys.readouterr()
    assert main(command) == 2
    assert "rows.jsonl" in capsys.readouterr().err


def test_other_weights_are_refused(calibrated, photos, tmp_path, capsys):
    folder = shutil.copytree(calibrated, tmp_path / "vinvl")
    path = folder / "region_model" / "model.safetensors"
    state = load_file(path)
    state["backbone.body.layer1.0.conv1.weight"][0] += 0.01
    save_file(state, path, {"format": "pt"})
    line = rf"{re.escape(str(folder))}.*: calibration.json was made for other weights; .*mengzi-oscar quantize"
    with pytest.raises(CheckpointError, match=line):
        MengziOscarPipeline.from_pretrained(folder, dtype="int8")
    with pytest.raises(CheckpointError, match=line):
        check_repo(folder)
    assert main(["caption", photos[0], "--model", str(folder), "--dtype", "int8"]) == 2
    assert re.fullmatch(line + ".*\n", capsys.readouterr().err)
    MengziOscarPipeline.from_pretrained(folder, dtype="float32")  # which does not need it


@pytest.mark.parametrize(
    "change",
    [
        {"largest": {"layer1.0.conv1": float("inf")}},
        {"largest": {"layer1.0.conv1": 1}},
        {"weights": None},
        {"photos": 0},
        {"crc32": "00000001"},
        None,
    ],
    ids=str,
)
def test_damaged_calibrations_are_refused(calibrated, tmp_path, change):
    folder = shutil.copytree(calibrated / "region_model", tmp_path / "vinvl")
    path = folder / CALIBRATION
    said = json.loads(path.read_text("utf-8"))
    path.write_text("{" if change is None else json.dumps({"crc32": said.pop("crc32")} | said | change), "utf-8")
    if change and "crc32" not in change:
        path.write_text(json.dumps(said | change), "utf-8")
    with pytest.raises(CheckpointError, match=CALIBRATION):
        compute_in("int8", load_region_model(str(folder))[0])


def test_killed_while_writing_the_file_before_stays(calibrated, photos, tmp_path, monkeypatch):
    folder = shutil.copytree(calibrated, tmp_path / "vinvl")
    path = folder / "region_model" / CALIBRATION
    before = path.read_bytes()

    def killed(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        main(["quantize", str(folder), photos[0]])
    assert path.read_bytes() == before
    assert sorted(name.name for name in path.parent.iterdir()) == sorted(
        [CALIBRATION, "config.json", "model.safetensors", "preprocessor_config.json"]
    )


def test_without_calibration_in_float32_and_one_line_says_so(checkpoint, photos, tmp_path, capsys):
    found = MengziOscarPipeline.from_pretrained(checkpoint, dtype="float32").look(photos[0]).region_features
    with pytest.warns(UserWarning, match="not calibrated for 8 bits: mengzi-oscar quantize .*found in float32"):
        pipeline = MengziOscarPipeline.from_pretrained(checkpoint, dtype="int8")
    assert torch.equal(pipeline.look(photos[0]).region_features, found)
    assert main(["caption", photos[0], "--model", str(checkpoint), "--dtype", "int8"]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{checkpoint}: is not calibrated for 8 bits")
    command = ["extract", photos[0], "--model", str(checkpoint), "--output", str(tmp_path / "store")]
    assert main([*command, "--precision", "int8"]) == 2
    assert "not calibrated for 8 bits" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_without_openvino(calibrated, photos, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)  # what `import` finds where there is none
    assert main(["caption", photos[0], "--model", str(calibrated), "--dtype", "int8"]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install openvino; until then regions are found in float32")
    assert main(["quantize", str(calibrated), photos[0]]) == 2
    assert capsys.readouterr().err == "8 bits for VinVL need OpenVINO: pip install openvino\n"
    assert main(["environment"]) == 0
    assert re.search(r"^openvino +\d", capsys.readouterr().out, flags=re.MULTILINE)
    assert "openvino" not in get_imports(openvino_networks.__file__)  # or no code of the Hub would load without it


def test_nobody_is_told_of_the_import():
    """openvino_telemetry would tell Google Analytics of every import, and leave a number of ours in the home folder."""
    assert openvino_networks.import_openvino() is sys.modules["openvino"]
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]


def test_what_has_no_8_bits(tiny_checkpoint, photos, tmp_path, capsys):
    assert main(["quantize", str(tiny_checkpoint), photos[0]]) == 2
    assert "8 bits are for VinVL's detector" in capsys.readouterr().err
    command = ["extract", photos[0], "--model", str(tiny_checkpoint), "--output", str(tmp_path / "store")]
    assert main([*command, "--precision", "int8"]) == 2
    assert "8 bits are for VinVL's detector" in capsys.readouterr().err
