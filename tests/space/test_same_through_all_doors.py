"""One photo, one checkpoint, every way in: the same words, and the same numbers to three digits.

The checkpoint says its own number of beams and length of captions, which nobody who calls it repeats.
"""

import base64
import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import transformers
from PIL import Image, ImageFilter
from test_pipeline import with_heads  # noqa: F401  (a fixture)

from modeling_mengzi_oscar import MengziOscarForImageCaptioning, MengziOscarPipeline
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.confidence import checksum_of_weights
from modeling_mengzi_oscar.loading import load_checked
from modeling_mengzi_oscar.photos import open_photo

pytest.importorskip("gradio", reason='the demo needs gradio: pip install -e ".[space]"')
pytest.importorskip("mcp", reason='MCP needs gradio[mcp]: pip install -e ".[space]"')
import httpx
from engine import Engine
from functions import Functions
from gradio_client import handle_file
from test_mcp import ask_tools, read
from test_space import client, noise, raw, url  # noqa: F401  (fixtures)

SENTENCES, QUESTION = ["一只狗在草地上跑", "两个人坐着"], "有只狗？"
CLOSE = {"abs": 1e-3}  # the demo rounds to four digits; a photo may share its forward with others, in 16 bits too
PHOTOS = ("phone.jpg", "sticker.png", "large.jpg")


@pytest.fixture(scope="module")
def folder(with_heads, tmp_path_factory):  # noqa: F811
    """A checkpoint with both heads and two styles; three beams and 12 tokens, detailed 15, are its own. It knows how
    sure it can be of each style."""
    folder = tmp_path_factory.mktemp("doors") / "checkpoint"
    shutil.copytree(with_heads, folder)
    config = folder / "processor_config.json"
    styles = {"styles": {"short": "[CLS]", "detailed": "马"}, "style_lengths": {"detailed": 15}}
    weights = checksum_of_weights(load_checked(MengziOscarForImageCaptioning, folder))
    known = {"log_score": 2.0, "tokens": -0.1, "num_beams": 3, "captions": 500, "weights": weights}
    styles["confidence"] = {"[CLS]": known | {"intercept": 1.0}, "马": known | {"intercept": 3.0}}
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | styles), "utf-8")
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    return Engine(str(folder))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Turned by its EXIF data; half transparent; larger than what any screen shows, with edges that shrinking moves."""
    folder, turned = tmp_path_factory.mktemp("photos"), Image.Exif()
    turned[274] = 6
    scene = noise(8, 6, seed=3).resize((400, 300), Image.Resampling.BICUBIC)
    scene.save(folder / "phone.jpg", exif=turned, quality=95)
    clear = scene.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(folder / "sticker.png")
    large = noise(700, 467, seed=4).resize((2800, 1868), Image.Resampling.NEAREST).filter(ImageFilter.EDGE_ENHANCE_MORE)
    large.save(folder / "large.jpg", quality=90)
    return {name: folder / name for name in PHOTOS}


def printed(*command) -> list:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([str(word) for word in command]) == 0
    return [json.loads(line) for line in out.getvalue().splitlines()]


def answered(url, endpoint, *inputs):  # noqa: F811
    return json.loads(raw(url, endpoint, {"data": inputs}).rpartition("data: ")[2])[0]


def uploaded(url, photos):  # noqa: F811
    """(name, path on the server) of each: what programs and agents do with a photo of megabytes."""
    for name, path in photos.items():
        yield name, httpx.post(f"{url}/gradio_api/upload", files={"files": (name, path.read_bytes())}).json()[0]


def in_the_address(path) -> str:
    return f"data:image/{path.suffix[1:]};base64," + base64.b64encode(path.read_bytes()).decode()


def python(folder, photos):
    pipeline = MengziOscarPipeline.from_pretrained(folder)
    for name, path in photos.items():
        short, detailed = pipeline.caption(path), pipeline.caption(path, style="detailed")
        yield name, short, detailed, pipeline.match(path, SENTENCES), pipeline.ask(path, QUESTION)


@pytest.fixture(scope="module")
def expected(folder, photos):
    """What the simplest door, Python, says of each photo alone."""
    return {name: of_one for name, *of_one in python(folder, photos)}


def same(expected, name, short, detailed, matches=None, answers=None):
    """Captions with their scores; probabilities by sentence and by answer, whatever their order."""
    for one, wanted in zip((short, detailed), expected[name], strict=False):
        score = one["score"] if "score" in one else one["captions"][0]["score"]
        assert one["caption"] == wanted["caption"], name
        assert score == pytest.approx(wanted["score"], **CLOSE), name
        assert one["confidence"] == pytest.approx(wanted["confidence"], abs=5e-3), name
        assert one["probably_wrong"] is (one["confidence"] < 0.5), name
    for found, wanted, what in ((matches, expected[name][2], "text"), (answers, expected[name][3], "answer")):
        if found:
            told = {row[what]: row["probability"] for row in found}
            assert told == pytest.approx({row[what]: row["probability"] for row in wanted}, **CLOSE), name


def test_the_photos_and_the_styles_differ(expected):
    """Else the others would prove nothing."""
    assert len({json.dumps([short["caption"], detailed["caption"]]) for short, detailed, *_ in expected.values()}) > 1
    for short, detailed, *_ in expected.values():
        assert short["caption"] != detailed["caption"]
        assert len(short["captions"]) == 3
    scores = np.array([[short["score"], match[0]["probability"]] for short, _, match, _ in expected.values()])
    assert (np.ptp(scores, axis=0) > 3 * CLOSE["abs"]).all()


def test_command_line(folder, photos, expected):
    model = ("--model", folder, "--json")
    short = printed("caption", *photos.values(), *model)
    detailed = printed("caption", *photos.values(), *model, "--style", "detailed")
    for name, path, *captions in zip(photos, photos.values(), short, detailed, strict=True):
        [matches], [answers] = printed("match", path, *SENTENCES, *model), printed("ask", path, QUESTION, *model)
        same(expected, name, *captions, matches, answers)


def test_several_photos_in_python(folder, photos, expected):
    pipeline, paths = MengziOscarPipeline.from_pretrained(folder), list(photos.values())
    several = pipeline.caption(paths), pipeline.caption(paths, style="detailed")
    for name, *of_one in zip(
        photos, *several, pipeline.match(paths, SENTENCES), pipeline.ask(paths, QUESTION), strict=True
    ):
        same(expected, name, *of_one)


def test_pipeline_of_transformers(folder, photos, expected):
    tasks = json.loads((folder / "config.json").read_text("utf-8"))["custom_pipelines"]
    options = {"model": str(folder), "trust_remote_code": True}
    doors = {task: transformers.pipeline(task, **options) for task in tasks}
    caption = doors["mengzi-oscar-captioning"]
    for name, path in photos.items():
        matches = doors["mengzi-oscar-matching"](path, texts=SENTENCES) if "mengzi-oscar-matching" in doors else None
        answers = (
            doors["mengzi-oscar-answering"](path, question=QUESTION) if "mengzi-oscar-answering" in doors else None
        )
        same(expected, name, caption(path), caption(str(path), style="detailed"), matches, answers)


def test_functions_of_the_demo(engine, photos, expected):
    functions = Functions(engine)
    for name, photo in ((name, in_the_address(path)) for name, path in photos.items()):
        captions = functions.caption(photo), functions.caption(photo, style="detailed")
        same(
            expected,
            name,
            *captions,
            functions.match(photo, SENTENCES)["matches"],
            functions.ask(photo, QUESTION)["answers"],
        )
        long = functions.caption(photo, details=True)
        assert long["size"] == list(open_photo(photos[name]).size), name  # not of a photo that was shrunk on the way
        boxes = [[one["box"] for one in result["regions"]] for result in (long, expected[name][0])]
        np.testing.assert_allclose(*boxes, atol=0.06)  # a tenth of a pixel is what it says
    rows = functions.batch(list(map(in_the_address, photos.values())))["rows"]
    for name, row in zip(photos, rows, strict=True):
        same(expected, name, row, expected[name][1])


def test_http(url, photos, expected):  # noqa: F811
    for name, photo in ((name, {"path": path}) for name, path in uploaded(url, photos)):
        captions = answered(url, "/caption", photo), answered(url, "/caption", photo, None, None, 0, False, "detailed")
        matches, answers = answered(url, "/match", photo, SENTENCES), answered(url, "/ask", photo, QUESTION)
        same(expected, name, *captions, matches["matches"], answers["answers"])


def test_gradio_client(client, photos, expected):  # noqa: F811
    for name, photo in ((name, handle_file(path)) for name, path in photos.items()):
        captions = (
            client.predict(photo, api_name="/caption"),
            client.predict(photo, style="detailed", api_name="/caption"),
        )
        matches = client.predict(photo, SENTENCES, api_name="/match")["matches"]
        same(expected, name, *captions, matches, client.predict(photo, QUESTION, api_name="/ask")["answers"])


def test_mcp(url, photos, expected):  # noqa: F811
    calls = []
    for _, path in uploaded(url, photos):
        photo = {"photo": f"{url}/gradio_api/file={path}"}
        calls += [("caption", photo), ("caption", photo | {"style": "detailed"})]
        calls += [("match", photo | {"sentences": SENTENCES}), ("ask", photo | {"question": QUESTION})]
    _, answers = ask_tools(url, *calls)
    answers = list(map(read, answers))
    for number, name in enumerate(photos):
        *captions, matches, asked = answers[4 * number : 4 * number + 4]
        same(expected, name, *captions, matches["matches"], asked["answers"])
