"""8-bit products: what is in 8 bits, how near the numbers stay, and what is said where there are none."""

import copy
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, tiny_captioner
from PIL import Image

from modeling_mengzi_oscar import MengziOscarPipeline
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.demo.samples import sample_photos
from modeling_mengzi_oscar.photos import open_photo
from modeling_mengzi_oscar.quantization import quantize

MINI = str(REPOSITORY / "checkpoints" / "mengzi-oscar-mini")


def linear_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def test_encoder_and_vocabulary_head_hold_8_bit_weights():
    """Every weight is within half a step of its own, and a step is a 127.5th of the row's largest weight."""
    original = tiny_captioner()
    model, before = quantize(copy.deepcopy(original)), linear_layers(original)
    assert set(linear_layers(model)) == {"bert.img_embedding", "bert.pooler.dense"}
    replaced = {name: model.get_submodule(name) for name in before if name.startswith(("bert.encoder.", "cls."))}
    assert len(replaced) == 2 * 6 + 2
    for name, layer in replaced.items():
        weight, exact = layer.weight(), before[name].weight
        assert weight.dtype == torch.qint8
        half_a_step = exact.abs().amax(dim=1, keepdim=True) / 255
        assert ((weight.dequantize() - exact).abs() <= 1.01 * half_a_step).all()
    embeddings = (m.bert.embeddings.word_embeddings.weight for m in (original, model))
    assert torch.equal(*embeddings)  # the decoder's weight with tied models: in float32 here


def test_a_product_is_the_float_one_but_for_rounding():
    """What meets the weights is rounded to a 127th of its range at the coarsest: half of that for every term."""
    layer = quantize(tiny_captioner()).bert.encoder.layer[0].intermediate.dense
    states = torch.randn(50, 32)
    weight = layer.weight().dequantize()
    difference = (layer(states) - (states @ weight.T + layer.bias())).abs()
    bound = (states.max() - states.min()) / 127 / 2 * weight.abs().sum(dim=1)
    assert (difference <= 1.01 * bound).all()
    assert difference.max() > 1e-3  # it does round


def test_nothing_is_said_but_nothing_else_is_hushed():
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            quantize(tiny_captioner())
            warnings.warn("torch.ao.quantization is deprecated", DeprecationWarning, stacklevel=1)  # a user's own call
    finally:
        torch.set_warn_always(False)
    assert [str(warning.message) for warning in said] == ["torch.ao.quantization is deprecated"]


def test_the_mini_writes_answers_and_matches_nearly_the_same():
    photos = [open_photo(path) for path, _ in sample_photos().values()]
    exact = MengziOscarPipeline.from_pretrained(MINI)
    rounded = MengziOscarPipeline.from_pretrained(MINI, dtype="int8")
    pairs = list(zip(exact.caption(photos), rounded.caption(photos), strict=True))
    assert sum(a["caption"] == b["caption"] for a, b in pairs) >= 4  # of 6; of 1,000 about 940
    assert [b["score"] for _, b in pairs] == pytest.approx([a["score"] for a, _ in pairs], abs=0.05)
    question, texts = "图里有几个人？", ["一个女人", "一只猫", "两个人在骑马"]
    asked = [p.ask(photos[2], question, top=1000) for p in (exact, rounded)]
    answers = [{row["answer"]: row["probability"] for row in rows} for rows in asked]
    assert answers[1] == pytest.approx(answers[0], abs=0.05)
    matches = [[row["probability"] for row in p.match(photos[2], texts)] for p in (exact, rounded)]
    assert matches[1] == pytest.approx(matches[0], abs=0.05)
    for task in ("ask", "match"):  # the heads are in 8 bits too
        model, _ = rounded._head(task)
        assert model.bert.encoder.layer[0].intermediate.dense.weight().dtype == torch.qint8


def test_the_command(tiny_checkpoint, tmp_path, capsys):
    photo = str(tmp_path / "照片.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(photo)
    result = MengziOscarPipeline.from_pretrained(tiny_checkpoint, dtype="int8").caption(photo)
    assert main(["caption", photo, "--model", str(tiny_checkpoint), "--dtype", "int8"]) == 0
    assert capsys.readouterr().out == f"{photo}\t{result['caption']}\t{result['score']:.3f}\n"
    assert main(["ask", photo, "有几个人？", "--model", MINI, "--dtype", "int8"]) == 0
    assert main(["match", photo, "一只猫", "--model", MINI, "--dtype", "int8"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_only_from_float32_on_a_cpu():
    with pytest.raises(ValueError, match="this model is in float32 on meta"):
        quantize(tiny_captioner().to("meta"))
    with pytest.raises(ValueError, match="int8 starts from float32 on a CPU, this model is in bfloat16 on cpu"):
        quantize(tiny_captioner().bfloat16())


def test_a_torch_without_it_is_named(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    photo = str(tmp_path / "photo.png")
    Image.new("RGB", (30, 40)).save(photo)
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)  # what `import` finds where there is no such module
    assert main(["caption", photo, "--model", str(tiny_checkpoint), "--dtype", "int8"]) == 2
    output = capsys.readouterr()
    assert re.fullmatch(r"torch \S+ cannot multiply in 8 bits here \(.+\): leave out int8\n", output.err)
    assert output.out == ""
