"""dtype: "auto" follows the processor, the region model and the heads go along, and every door takes it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from common.arguments import open_stores
from PIL import Image
from test_pipeline import with_heads  # noqa: F401  (a fixture)

from modeling_mengzi_oscar import MengziOscarPipeline, RegionFeatureStore
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.cli.environment import environment
from modeling_mengzi_oscar.precision import another_precision, chosen_dtype, fast_dtype

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
TEXTS = ["一只猫", "两个人"]


@pytest.fixture
def photo(tmp_path):
    PHOTO.save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def dtypes(pipeline):
    parts = [pipeline.captioner, pipeline.region_model, *(pipeline._head(task)[0] for task in ("ask", "match"))]
    return [part.dtype for part in parts]


def test_the_processor_decides():
    assert fast_dtype() == fast_dtype("meta") == chosen_dtype(None) == torch.float32
    assert environment()["runs on"].startswith("cpu in float32")
    assert chosen_dtype("int8") == torch.int8
    assert chosen_dtype(torch.float64) == torch.float64


def test_a_processor_with_matrix_units_decides(with_matrix_units):
    assert fast_dtype() == chosen_dtype("auto") == torch.bfloat16
    assert fast_dtype("meta") == chosen_dtype("float32") == torch.float32
    assert environment()["runs on"].startswith("cpu in bfloat16")


@pytest.mark.parametrize("dtype", ["bf16", "int4", "int64", torch.int32, torch.float8_e4m3fn, 16])
def test_what_is_no_dtype(dtype, tiny_checkpoint):
    with pytest.raises(ValueError, match="dtype is .*; there are 'auto', 'float32', 'bfloat16' and 'int8'"):
        MengziOscarPipeline.from_pretrained(tiny_checkpoint, dtype=dtype)


def test_all_parts_follow(with_heads, with_matrix_units):  # noqa: F811
    """Near the same, not equal: it does compute in bfloat16, in every part."""
    fast, exact = (MengziOscarPipeline.from_pretrained(with_heads, **named) for named in ({}, {"dtype": "float32"}))
    assert (dtypes(fast), dtypes(exact)) == ([torch.bfloat16] * 4, [torch.float32] * 4)
    one, other = (pipeline.look(PHOTO).region_features for pipeline in (fast, exact))
    assert one.dtype == other.dtype == torch.float32
    assert torch.cosine_similarity(one, other, dim=-1).min() > 0.99
    assert torch.equal(one[:, -6:], other[:, -6:])  # the geometry is not rounded
    assert not torch.equal(one, other)
    rows = [[row["probability"] for row in pipeline.match(PHOTO, TEXTS)] for pipeline in (fast, exact)]
    assert rows[0] == pytest.approx(rows[1], abs=0.1)
    assert rows[0] != rows[1]
    assert len(fast.ask(PHOTO, "几个人")) == len(exact.ask(PHOTO, "几个人"))
    assert 0 < fast.caption(PHOTO)["score"] <= 1


def test_beside_8_bits_the_regions_stay(with_heads, with_matrix_units):  # noqa: F811
    exact, small = (MengziOscarPipeline.from_pretrained(with_heads, dtype=dtype) for dtype in ("float32", "int8"))
    found = [pipeline.look(PHOTO).region_features for pipeline in (exact, small)]
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_nothing_rounded_is_saved(with_heads, with_matrix_units, tmp_path, dtype):  # noqa: F811
    MengziOscarPipeline.from_pretrained(with_heads, dtype=dtype).save_pretrained(tmp_path / "saved")
    there, here = (
        MengziOscarPipeline.from_pretrained(name, dtype="float32") for name in (with_heads, tmp_path / "saved")
    )
    for part in ("captioner", "region_model"):
        states = [getattr(pipeline, part).state_dict() for pipeline in (there, here)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert there.match(PHOTO, TEXTS) == here.match(PHOTO, TEXTS)


def test_pipeline_of_transformers(tiny_checkpoint, with_matrix_units, tmp_path):
    def load(folder=tiny_checkpoint, **options):
        return transformers.pipeline("mengzi-oscar-captioning", model=str(folder), trust_remote_code=True, **options)

    fast, exact, small = load(), load(dtype="float32"), load(dtype="int8")
    for pipe, dtype in ((fast, torch.bfloat16), (exact, torch.float32), (small, torch.float32)):
        region_model = pipe.photos.region_model
        assert next(region_model.parameters()).dtype == dtype
        assert len(pipe(PHOTO)["captions"]) == 3
    assert fast.model.dtype == torch.bfloat16
    assert small.model.bert.encoder.layer[0].output.dense.weight().dtype == torch.qint8
    fast.save_pretrained(tmp_path)
    saved, original = (
        transformers.AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="float32")
        for folder in (tmp_path, tiny_checkpoint)
    )
    assert all(torch.equal(*pair) for pair in zip(saved.parameters(), original.parameters(), strict=True))


def test_the_command(tiny_checkpoint, photo, with_matrix_units, capsys):
    def printed(*flags):
        assert main(["caption", photo, "--model", str(tiny_checkpoint), *flags]) == 0
        return capsys.readouterr().out

    for flags, dtype in (([], "bfloat16"), (["--dtype", "float32"], "float32"), (["--dtype", "auto"], "bfloat16")):
        result = MengziOscarPipeline.from_pretrained(tiny_checkpoint, dtype=dtype).caption(photo)
        assert printed(*flags) == f"{photo}\t{result['caption']}\t{result['score']:.3f}\n"
    with pytest.raises(SystemExit, match="2"):
        main(["caption", photo, "--int8"])
    with pytest.raises(SystemExit, match="2"):
        main(["caption", photo, "--dtype", "int4"])


def test_a_store_knows_its_precision_and_any_machine_goes_on_with_it(tiny_checkpoint, photo, tmp_path, monkeypatch):
    def extract(store, *flags):
        return main(["extract", photo, "--output", str(tmp_path / store), "--model", str(tiny_checkpoint), *flags])

    assert extract("exact") == 0
    assert RegionFeatureStore.open(tmp_path / "exact").precision == "float32"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert extract("fast") == extract("asked", "--precision", "bfloat16") == 0
    fast, asked, exact = (RegionFeatureStore.open(tmp_path / name) for name in ("fast", "asked", "exact"))
    assert fast.precision == asked.precision == "bfloat16"
    [features, same, others] = (store["photo"]["region_features"] for store in (fast, asked, exact))
    assert np.array_equal(features, same)
    assert not np.array_equal(features, others)
    Image.new("RGB", (30, 30)).save(tmp_path / "more.png")
    both = [str(tmp_path / "list.txt"), "--model", str(tiny_checkpoint)]
    (tmp_path / "list.txt").write_text(f"{photo}\n{tmp_path / 'more.png'}\n")
    for name, precision in (("exact", "float32"), ("fast", "bfloat16")):
        assert main(["extract", *both, "--output", str(tmp_path / name)]) == 0
        store = RegionFeatureStore.open(tmp_path / name)
        assert (len(store), store.precision) == (3, precision)  # a list names its photos by their paths
    assert extract("exact", "--precision", "bfloat16") == 2  # asked for it is an error, as before


def test_features_of_another_precision_are_told(with_matrix_units):
    assert another_precision(None) is None  # of before, or imported
    assert another_precision("bfloat16") is None
    assert another_precision("float32", "float32") is another_precision("float32", "int8") is None
    assert "computed in float32, here they would be in bfloat16" in another_precision("float32")


def test_a_training_script_tells_it_once_a_store(tmp_path, capsys):
    for name, precision in (("fast", "bfloat16"), ("exact", "float32"), ("unknown", None)):
        with RegionFeatureStore.writer(tmp_path / name, precision=precision) as writer:
            writer.add("photo", {"region_features": np.zeros((2, 22), np.float32)})
    options = SimpleNamespace(features=[tmp_path / name for name in ("fast", "exact", "unknown")], dtype="auto")
    assert [store.precision for store in open_stores(options)] == ["bfloat16", "float32", None]
    said = "".join(capsys.readouterr())
    assert said.count("features were computed in") == 1
    assert f"{tmp_path / 'fast'}: its features were computed in bfloat16, here they would be in float32" in said
