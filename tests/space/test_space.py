"""The demo's functions, its API as programs call it, and what it does with everything that people should not send."""

import base64
import io
import itertools
import json
import re
import shutil
import socket
import struct
import threading
import traceback
import weakref
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from test_pipeline import with_heads  # noqa: F401  (a fixture)

from modeling_mengzi_oscar import MengziOscarPipeline

gradio = pytest.importorskip("gradio", reason='the demo needs gradio: pip install -e ".[space]"')
gradio_client = pytest.importorskip("gradio_client")
import deploy  # noqa: E402
import engine as engine_module  # noqa: E402
import httpx  # noqa: E402  (gradio brings them)
import page as page_module  # noqa: E402
import skimage  # noqa: E402
import uploads  # noqa: E402
import views  # noqa: E402
import words  # noqa: E402
from app import build, start  # noqa: E402
from engine import Engine, ModelThread, Together  # noqa: E402
from functions import Pages, told  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402
from huggingface_hub import constants  # noqa: E402

META = {"_type": "gradio.FileData"}
ENDPOINTS = {"/caption", "/match", "/rank", "/ask", "/batch"}
NASTY = "<img src=x onerror=alert(1)><script>alert(1)</script>${alert(1)}{{7*7}}"


@pytest.fixture(scope="module")
def engine(with_heads):  # noqa: F811
    return Engine(str(with_heads))


@pytest.fixture(scope="module")
def url(engine):
    """The demo, started once; nothing that it does may look for another machine."""
    looked_for, look_up = [], socket.getaddrinfo
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True  # app.py sets it before anything is imported

    def watched(host, *arguments, **options):
        if host not in ("127.0.0.1", "localhost", "::1", "0.0.0.0", None):
            looked_for.append((host, "".join(traceback.format_stack()[-14:-1])))
            raise OSError("the tests have no network")
        return look_up(host, *arguments, **options)

    socket.getaddrinfo = watched
    demo = build(engine)
    address = start(demo, quiet=True)
    yield address.rstrip("/")
    demo.close()
    socket.getaddrinfo, constants.HF_HUB_OFFLINE = look_up, offline
    assert not looked_for


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


def noise(width=48, height=36, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def encoded(photo, kind="PNG", **options) -> bytes:
    content = io.BytesIO()
    photo.save(content, format=kind, **options)
    return content.getvalue()


def data_address(photo=None) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(photo or noise())).decode()


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


@pytest.fixture
def photo(tmp_path):
    (tmp_path / "photo.png").write_bytes(encoded(noise()))
    return handle_file(tmp_path / "photo.png")


def raw(url, endpoint, data) -> str:
    """What the server answers to a request as it stands: gradio_client would upload the files that it names."""
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{url}/gradio_api/call{endpoint}", content=json.dumps(data), headers=headers)
    if answer.status_code != 200:
        return answer.text
    return httpx.get(f"{url}/gradio_api/call{endpoint}/{answer.json()['event_id']}", timeout=60).text


def refused(client, endpoint, *inputs) -> str:
    """The message that a caller gets; it must tell nothing of files and code."""
    with pytest.raises((gradio_client.exceptions.AppError, ValueError)) as caught:
        client.predict(*inputs, api_name=endpoint)
    message = str(caught.value)
    assert not re.search(r'Traceback|File "|site-packages|\.py\b|verbose error', message), message
    return message


# what it answers


def test_the_example_of_space_md(url, tmp_path, monkeypatch):
    """But for the style, which a tiny checkpoint has not."""
    monkeypatch.chdir(tmp_path)
    noise().save("photo.jpg")
    Path("more.zip").write_bytes(zipped({"a.png": encoded(noise())}))
    page = (REPOSITORY / "docs" / "space.md").read_text("utf-8")
    [example] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    lines = example.replace("http://127.0.0.1:7860", url).splitlines()
    exec("\n".join(line for line in lines if "where it has that style" not in line), {})


def test_endpoints_are_named_and_described(client, url):
    found = client.view_api(return_format="dict")["named_endpoints"]
    assert set(found) == ENDPOINTS
    assert all(client.view_api(print_info=False, return_format="str").count(name) for name in ENDPOINTS)


def test_caption_is_the_pipelines(client, photo, with_heads):  # noqa: F811
    result = client.predict(photo, 3, 12, 0, True, api_name="/caption")
    expected = MengziOscarPipeline.from_pretrained(with_heads).caption(noise(), num_beams=3, max_length=12)
    assert [one["caption"] for one in result["captions"]] == [one["caption"] for one in expected["captions"]]
    assert [one["score"] for one in result["captions"]] == pytest.approx(
        [one["score"] for one in expected["captions"]], abs=1e-3
    )
    assert result["size"] == [48, 36]
    assert len(result["regions"]) == 9
    for mine, theirs in zip(result["captions"], expected["captions"], strict=True):
        tokens = [token.removeprefix("##") for token in theirs["tokens"]]
        assert "".join(word["word"] for word in mine["words"]) == "".join(tokens)
        total = sum(np.array(word["region_weights"]) * count_tokens(word["word"], tokens) for word in mine["words"])
        if all(len(token) == 1 for token in tokens):  # then a word's weights are the mean of whole tokens
            assert total == pytest.approx(np.sum(theirs["region_weights"], axis=0), abs=5e-3)


def count_tokens(word, tokens):
    return len(word) if all(len(token) == 1 for token in tokens) else 1


def test_temperature_draws_different_sentences(client, photo):
    drawn = client.predict(photo, 6, 12, 1.5, api_name="/caption")["captions"]
    scores = [one["score"] for one in drawn]
    assert scores == sorted(scores, reverse=True)
    assert len({one["caption"] for one in drawn}) == len(drawn) <= 6


def test_match_rank_and_ask_are_the_pipelines(client, photo, with_heads):  # noqa: F811
    pipeline = MengziOscarPipeline.from_pretrained(with_heads)
    sentences = ["一只狗在草地上跑", "猫", "两个人骑马"]
    matches = client.predict(photo, sentences, api_name="/match")["matches"]
    expected = sorted(pipeline.match(noise(), sentences), key=lambda match: -match["probability"])
    assert [match["text"] for match in matches] == [match["text"] for match in expected]
    assert [match["probability"] for match in matches] == pytest.approx(
        [match["probability"] for match in expected], abs=1e-3
    )
    answers = client.predict(photo, "有只狗？", api_name="/ask")["answers"]
    assert [answer["answer"] for answer in answers] == [one["answer"] for one in pipeline.ask(noise(), "有只狗？")]
    ranked = client.predict("一只狗", [photo], True, api_name="/rank")["matches"]
    assert {match["photo"] for match in ranked} > {"photo.png", "cat", "photographer"}
    [mine] = [match["probability"] for match in ranked if match["photo"] == "photo.png"]
    assert mine == pytest.approx(pipeline.match(noise(), ["一只狗"])[0]["probability"], abs=1e-3)


def test_batch_goes_on_after_a_broken_photo(client, tmp_path):
    (tmp_path / "一.png").write_bytes(encoded(noise()))
    (tmp_path / "broken.jpg").write_bytes(encoded(noise(300, 200), "JPEG")[:9000])
    inside = {f"folder/{i}.png": encoded(noise(seed=i)) for i in range(9)} | {"notes.txt": b"no photo"}
    (tmp_path / "more.zip").write_bytes(zipped(inside | {"__MACOSX/._0.png": b"", "same/0.png": encoded(noise())}))
    files = [handle_file(tmp_path / name) for name in ("一.png", "broken.jpg", "more.zip")]
    rows = client.predict(files, api_name="/batch")["rows"]
    assert [row["file"] for row in rows][1:4] == ["broken.jpg", "folder/0.png", "folder/1.png"]
    assert len(rows) == 13
    assert [row["file"] for row in rows if "not a photo" in row.get("error", "")] == ["notes.txt"]
    assert "damaged" in rows[1]["error"]
    assert all(row["caption"] for row in rows if "error" not in row)
    assert rows[0]["caption"] == rows[2]["caption"] == rows[-1]["caption"]  # one photo, three names


def test_calls_share_a_forward_and_each_gets_its_own(engine):
    """Ten people at once: fewer forwards than people, the same captions as alone."""
    forwards, run = [], engine.caption_together.run
    photos = [noise(seed=seed) for seed in range(10)]
    alone = [engine.caption(photo, 3, 12)["caption"] for photo in photos]

    def counted(items, settings):
        forwards.append(len(items))
        return run(items, settings)

    engine.caption_together.run = counted
    try:
        with busy(engine.thread) as done, ThreadPoolExecutor(10) as pool:
            calls = [pool.submit(engine.caption, photo, 3, 12) for photo in photos]
            while len(engine.caption_together.waiting) < 10:
                pass
            done.set()
            together = [call.result()["caption"] for call in calls]
    finally:
        engine.caption_together.run = run
    assert together == alone
    assert forwards == [8, 2]


def test_a_photo_that_waits_is_no_whole_photo(engine, monkeypatch):
    """Sixteen people with a photo of 12 megapixels each would hold 600 MB."""
    import functions

    opened, waited = [], []

    def open_upload(seed):
        photo = noise(seed=seed)
        opened.append(weakref.ref(photo))
        return photo

    def submit(function, *arguments):
        waited.append([photo() for photo in opened])
        return run(function, *arguments)

    run = engine.thread.submit
    monkeypatch.setattr(functions, "open_upload", open_upload)
    monkeypatch.setattr(engine.thread, "submit", submit)
    pages = Pages(engine)
    alone = engine.pipeline.caption(noise(seed=21), num_beams=2, max_length=8)
    assert pages.caption(21, 2, 8)["caption"] == alone["caption"]
    assert alone["caption"] in pages.show_caption(21, 2, 8, 0)
    for call in (pages.match, pages.show_match, pages.ask, pages.show_answers):
        call(21, ["猫"] if call == pages.match else "猫")
    pages.suggest(21)
    assert len(opened) == len(waited) == 7
    assert {photo for photos in waited for photo in photos} == {None}


def test_a_failing_call_does_not_fail_others_settings():
    def run(items, settings):
        if settings["bad"]:
            raise RuntimeError("no")
        return [2 * item for item in items]

    thread = ModelThread()
    together = Together(run, thread)
    with busy(thread) as done, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(together, i, bad=i == 2) for i in range(4)]
        while len(together.waiting) < 4:
            pass
        done.set()
        assert [call.result() for i, call in enumerate(calls) if i != 2] == [0, 2, 6]
        with pytest.raises(RuntimeError):
            calls[2].result()


def test_one_thread_runs_the_model_for_everybody(engine):
    """Every thread that ever calls it keeps scratch memory: it must not be those of the callers."""
    threads, regions = [], engine.pipeline.region_model
    hook = regions.register_forward_pre_hook(lambda *_: threads.append(threading.current_thread().name))
    calls = (  # each with a photo of its own: what was looked at is remembered
        lambda: engine.caption(noise(seed=11), 2, 8),
        lambda: engine.match(noise(seed=12), ["猫"]),
        lambda: engine.rank("猫", [("a.png", noise(seed=13))]),
        lambda: engine.ask(noise(seed=14), "猫？"),
        lambda: engine.suggestions(noise(seed=15)),
        lambda: list(engine.batch([("a.png", lambda: noise(seed=16))])),
    )
    try:
        with ThreadPoolExecutor(len(calls)) as pool:
            for call in [pool.submit(call) for call in calls]:
                call.result()
    finally:
        hook.remove()
    assert len(threads) >= 4
    assert set(threads) == {"model_0"}


def test_the_model_thread_knows_whose_request_it_is():
    """ZeroGPU reads the caller's request from a context variable."""
    caller = ContextVar("caller")
    caller.set("somebody")
    assert ModelThread().run(caller.get) == "somebody"


@contextmanager
def busy(thread):
    """The model's thread is held up until the event is set."""
    done = threading.Event()
    thread.submit(done.wait)
    try:
        yield done
    finally:
        done.set()


def test_a_missing_head_is_told(tiny_checkpoint):
    bare = Engine(str(tiny_checkpoint))
    assert bare.describe()["tasks"] == ["caption"]
    for call in (lambda: bare.ask(noise(), "猫？"), lambda: bare.match(noise(), ["猫"]), lambda: bare.rank("猫", [])):
        with pytest.raises(words.UserError, match="not trained to do this"):
            call()
    page = json.dumps(build(bare).get_config_file(), default=str, ensure_ascii=False)
    assert page.count("没有训练过这个任务") == 3  # both halves of the match tab, and ask


# what people should not send


def bomb():
    """A PNG that says 30,000 x 30,000 pixels."""
    content = bytearray(encoded(noise()))
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(header, *chunks) -> bytes:
    """A PNG of given chunks, for what Pillow does not write."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in ((b"IHDR", header), *chunks, (b"IEND", b"")))


def says(kind, at, code, side):
    """A photo whose header says that it has `side` x `side` pixels."""
    content = bytearray(encoded(noise(), kind))
    struct.pack_into(code, content, at, side, side)
    return bytes(content)


BAD_PHOTOS = {
    "empty.jpg": (b"", "not a photo"),
    "svg.jpg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "not a photo"),
    "page.png": (b"<html><script>alert(1)</script></html>", "not a photo"),
    "code.jpg": (b"import os; os.system('id')", "not a photo"),
    "truncated.jpg": (encoded(noise(400, 300), "JPEG")[:3000], "damaged"),
    "truncated.png": (encoded(noise(400, 300))[:3000], "damaged"),
    "bomb.png": (bomb(), "pixels"),
    "line.png": (encoded(noise(500, 1)), "too small"),
    "many.png": (encoded(Image.new("L", (8000, 7000))), "megapixels"),
    "truncated.gif": (encoded(noise(), "GIF")[:1000], "damaged"),
    "truncated.webp": (encoded(noise(400, 300), "WEBP")[:3000], "damaged|not a photo"),
    "truncated.tif": (encoded(noise(), "TIFF")[:1000], "damaged|not a photo"),
    "truncated.bmp": (encoded(noise(), "BMP")[:1000], "damaged"),
    "bomb.gif": (says("GIF", 6, "<HH", 65_000), "pixels"),
    "bomb.bmp": (says("BMP", 18, "<ii", 30_000), "pixels"),
    "film.jpg": (b"\0\0\0\x18ftypmp42" + bytes(100), "not a photo"),
    "program.png": (b"MZ" + bytes(200), "not a photo"),
    "eps.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a photo"),
}


@pytest.mark.parametrize("name", BAD_PHOTOS)
def test_bad_photos(client, tmp_path, name):
    content, message = BAD_PHOTOS[name]
    (tmp_path / name).write_bytes(content)
    photo = handle_file(tmp_path / name)
    assert re.search(message, refused(client, "/caption", photo, 3, 12, 0))
    assert re.search(message, client.predict([photo], api_name="/batch")["rows"][0]["error"])


def test_a_text_bomb_beside_pixels_is_not_unpacked(client, tmp_path):
    header, text = struct.pack(">IIBBBBB", 40, 30, 8, 2, 0, 0, 0), b"a\0\0" + zlib.compress(bytes(2**27))
    (tmp_path / "text_bomb.png").write_bytes(png(header, (b"zTXt", text), (b"IDAT", zlib.compress(bytes(121 * 30)))))
    assert client.predict(handle_file(tmp_path / "text_bomb.png"), 3, 12, 0, True, api_name="/caption")["size"] == [
        40,
        30,
    ]


TURNED = Image.Exif()
TURNED[274] = 6  # orientation: a quarter to the right
ODD_PHOTOS = {
    "animated.gif": encoded(noise(), "GIF", save_all=True, append_images=[noise(seed=1)]),
    "deep.png": encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)),
    "deep_colours.png": png(
        struct.pack(">IIBBBBB", 48, 36, 16, 2, 0, 0, 0),
        (b"IDAT", zlib.compress(b"".join(b"\0" + np.arange(144, dtype=">u2").tobytes() for _ in range(36)))),
    ),
    "deep.tif": encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "TIFF"),
    "real_numbers.tif": encoded(noise().convert("F"), "TIFF"),
    "animated.webp": encoded(noise(), "WEBP", save_all=True, append_images=[noise(seed=1)]),
    "animated.png": encoded(noise(), save_all=True, append_images=[noise(seed=1)]),
    "one_bit.png": encoded(noise().convert("1")),
    "palette.png": encoded(noise().convert("P"), transparency=3),
    "page_behind.jpg": encoded(noise(), "JPEG") + b"<script>alert(1)</script>",
    "clear.webp": encoded(noise().convert("RGBA"), "WEBP"),
    "cmyk.jpg": encoded(noise().convert("CMYK"), "JPEG"),
    "turned.jpg": encoded(
        noise(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    ),
    "photo.svg": encoded(noise()),  # a photo whatever its name says
}


@pytest.mark.parametrize("name", ODD_PHOTOS)
def test_odd_photos_are_read(client, tmp_path, name):
    (tmp_path / name).write_bytes(ODD_PHOTOS[name])
    result = client.predict(handle_file(tmp_path / name), 2, 8, 0, True, api_name="/caption")
    assert result["caption"]
    assert result["size"] == (
        [36, 48] if name == "turned.jpg" else [40, 30] if name in ("deep.png", "deep.tif") else [48, 36]
    )


def encrypted():
    content = bytearray(zipped({"a.png": encoded(noise())}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def overlong():
    return zipped({f"{i}{'x' * 200}.txt": b"" for i in range(5000)})


def link():
    """A symbolic link to a file of the server."""
    content, entry = io.BytesIO(), zipfile.ZipInfo("passwd.png")
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    return content.getvalue()


BAD_ZIPS = {
    "up.zip": (lambda: zipped({"../../evil.png": encoded(noise())}), "unsafe file names"),
    "root.zip": (lambda: zipped({"/etc/evil.png": encoded(noise())}), "unsafe file names"),
    "windows.zip": (lambda: zipped({"..\\evil.png": encoded(noise())}), "unsafe file names"),
    "drive.zip": (lambda: zipped({"C:evil.png": encoded(noise())}), "unsafe file names"),
    "bomb.zip": (lambda: zipped({"a.png": bytes(30 * 2**20)}), "too large when opened"),
    "locked.zip": (encrypted, "password"),
    "text.zip": (lambda: b"not a zip at all", "cannot be opened"),
    "cut.zip": (lambda: zipped({"a.png": encoded(noise())})[:-30], "cannot be opened"),
    "crowd.zip": (lambda: zipped({f"{i}.png": b"" for i in range(201)}), "Up to 200 photos"),
    "names.zip": (overlong, "Up to 200 photos"),
    "zip_in_zip.zip": (lambda: zipped({"inner.zip": zipped({"a.png": encoded(noise())})}), "some photos first"),
    "link.zip": (link, "not a photo"),
    "nothing.zip": (lambda: zipped({"notes.txt": b"hello"}), "some photos first"),
}


@pytest.mark.parametrize("name", BAD_ZIPS)
def test_bad_zips(client, tmp_path, name):
    make, message = BAD_ZIPS[name]
    (tmp_path / name).write_bytes(make())
    before = set(tmp_path.parent.rglob("evil*"))
    if name == "link.zip":  # a file of a few letters, as far as we read it
        assert message in client.predict([handle_file(tmp_path / name)], api_name="/batch")["rows"][0]["error"]
    else:
        assert message in refused(client, "/batch", [handle_file(tmp_path / name)])
    assert set(tmp_path.parent.rglob("evil*")) == before


def test_a_zip_that_lies_about_its_sizes(tmp_path):
    """Says 10 bytes, holds megabytes: no more than what it says is ever read."""
    content = bytearray(zipped({"a.png": bytes(2**20)}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(signature) + offset
        content[at : at + 4] = (10).to_bytes(4, "little")
    (tmp_path / "lies.zip").write_bytes(content)
    [(name, read)] = uploads.photos_in([("lies.zip", str(tmp_path / "lies.zip"))])
    with pytest.raises(words.UserError, match="damaged|not a photo"):
        read()


BAD_TEXTS = [
    ("/ask", ["{photo}", "人" * 10_000], "10000 characters; the limit is 200"),
    ("/ask", ["{photo}", "  "], "Write a question"),
    ("/ask", [None, "几个人？"], "Give a photo"),
    ("/match", ["{photo}", ["猫"] * 21], "21 sentences; the limit is 20"),
    ("/match", ["{photo}", ["人" * 201]], "201 characters"),
    ("/match", ["{photo}", ["人" * 10_000]], "10000 characters; the limit is 200"),
    ("/match", ["{photo}", ["猫"] * 10_000], "10000 sentences; the limit is 20"),
    ("/rank", ["人" * 10_000, [], True], "10000 characters; the limit is 200"),
    ("/match", ["{photo}", []], "Write a sentence"),
    ("/match", ["{photo}", {"a": [1]}], "Write a sentence"),
    ("/rank", ["", [], True], "Write a sentence"),
    ("/caption", [None, 5, 20, 0], "Give a photo"),
    ("/caption", ["{photo}", 1000, 20, 0], "num_beams must be a number from 1 to 10"),
    ("/caption", ["{photo}", 5, 20, -1], "temperature must be"),
    ("/caption", ["{photo}", "many", 20, 0], "num_beams must be"),
    ("/caption", ["{photo}", 5, [20], 0], "max_length must be"),
    ("/batch", [[]], "some photos"),
]


@pytest.mark.parametrize(("endpoint", "inputs", "message"), BAD_TEXTS)
def test_bad_texts_and_numbers(client, photo, endpoint, inputs, message):
    assert message in refused(client, endpoint, *[photo if given == "{photo}" else given for given in inputs])


def test_every_setting_at_its_ends(client, photo):
    """Also together, and as a browser sends them: a slider's 2.0 is the integer 2."""
    sliders = [component["props"] for component in client.config["components"] if component["type"] == "slider"]
    ends = [(slider["minimum"], slider["maximum"]) for slider in sliders]
    assert ends == [(1, 10), (5, 50), (0, 2)]  # 80 positions, 30 of them for tags
    for beams, length, temperature in itertools.product(*ends[:2], (0, 5e-324, 2)):
        result = client.predict(photo, beams, length, temperature, api_name="/caption")
        assert len(result["captions"]) == beams if temperature == 0 else 1 <= len(result["captions"]) <= beams


ODD_VALUES = [None, True, 2.5, 10**400, "\ud800", [None], [[]], {"path": 5}, {"a": "b"}]
GOOD_INPUTS = {
    "/caption": ["{photo}", 2, 8, 0, False],
    "/match": ["{photo}", ["猫"]],
    "/rank": ["猫", ["{photo}"], False],
    "/ask": ["{photo}", "猫？"],
    "/batch": [["{photo}"]],
}


@pytest.mark.parametrize("endpoint", GOOD_INPUTS)
def test_odd_values_for_every_input(url, endpoint, caplog):
    """Each is taken for what it is or told in one line; none is a failure of ours."""
    good = json.loads(json.dumps(GOOD_INPUTS[endpoint]).replace("{photo}", data_address()))
    calls = [good[:at] + [odd] + good[at + 1 :] for at in range(len(good)) for odd in ODD_VALUES]
    calls += [good[:at] for at in range(len(good))] + [good + [1, 2, 3]]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda inputs: raw(url, endpoint, {"data": inputs}), calls))
    assert any("event: error" in answer for answer in answers)
    for inputs, answer in zip(calls, answers, strict=True):
        assert "event: complete" in answer or re.search(r'"error": "[A-Za-z].* / ', answer), (inputs, answer)
        assert "Something went wrong" not in answer, (inputs, answer)
    assert "Traceback" not in caplog.text


def test_odd_questions_are_answered(client, photo):
    for question in (NASTY[:200], "\u202e\u0000\ufeff😀", "' OR 1=1 --", "[MASK][CLS][SEP]"):
        assert len(client.predict(photo, question, api_name="/ask")["answers"]) == 5


def test_nothing_is_shown_unescaped(engine, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "photo.png").write_bytes(encoded(noise()))
    pages = Pages(engine)

    def upload(name):
        return {"path": str(tmp_path / "photo.png"), "orig_name": name}

    shown = [
        told(pages.show_match)(upload("a.png"), NASTY),
        told(pages.show_answers)(upload("a.png"), NASTY),
        told(pages.show_rank)("猫", [upload(NASTY + ".png")], False),
        *told(pages.show_batch)([upload(NASTY + ".png")]),
    ]
    for page in shown:
        assert "<script" not in page
        assert "<img src=x" not in page
    assert "&lt;script&gt;" in shown[0]
    assert "&lt;script&gt;" in shown[-1]


def test_what_a_detector_says_of_a_region_is_on_the_page(engine):
    """Label, score and attributes, as `VinVLModel.describe` gives them; the grid has none of these."""
    region = {
        "box": [1.0, 2.0, 30.0, 20.0],
        "label": '"><b>',
        "score": 0.913,
        "attributes": [{"label": "白", "score": 0.5}],
    }
    result = engine.caption(noise(), 2, 8) | {"regions": [engine_module.shortened(region)]}
    page = views.views.caption(result, "data:,")
    assert 'data-label="&#34;&gt;&lt;b&gt;" data-score="0.913" data-attributes="白 0.50"' in page
    assert 'x="1.0" y="2.0" width="29.0" height="18.0"' in page


@pytest.mark.parametrize(
    ("word", "label", "named"),
    [
        *[
            ("小狗", "狗", True),
            ("车", "汽车", True),
            ("桌子", "餐桌", True),
            ("长椅", "椅子", True),
            ("女孩", "人", True),
        ],
        *[("在", "狗", False), ("手", "手机", False), ("草地", "人", False)],
    ],
)
def test_a_word_names_an_object(word, label, named):
    assert engine_module.names(word, label) == named


def test_a_word_lights_the_objects_that_it_names():
    regions = [
        {"box": [0, 0, 9, 9], "label": "狗", "score": 0.9},
        {"box": [0, 0, 5, 5], "label": "人", "score": 0.8},
        {"box": [1, 1, 9, 9], "label": "狗", "score": 0.26},  # hardly
        {"box": [0, 0, 1, 1]},
    ]
    caption = {"tokens": list("小狗奔跑"), "region_weights": [[0.25] * 4] * 4}
    words = engine_module.words_of(caption, regions)
    assert [(word["word"], word["objects"]) for word in words] == [("小狗", [0]), ("奔跑", [])]


def test_formulas_in_file_names_stay_text():
    rows = [{"file": "=HYPERLINK(1).jpg", "caption": "一只狗", "score": 0.5}]
    page = views.batch(rows, 1)
    content = re.search(r"data:text/csv;charset=utf-8;base64,([\w+/=]+)", page)[1]
    table = base64.b64decode(content).decode("utf-8-sig")
    assert table.splitlines()[1] == "'=HYPERLINK(1).jpg,一只狗,0.5,"


def test_files_of_the_server_stay_there(client, url, with_heads):  # noqa: F811
    wanted = ["/etc/passwd", "../../etc/passwd", str(REPOSITORY / "space/app.py"), str(with_heads / "config.json")]
    for path in [*wanted, "..%2f..%2fetc%2fpasswd", "file:///etc/passwd", "C:/Windows/win.ini"]:
        answer = httpx.get(f"{url}/gradio_api/file={path}")
        assert answer.status_code in (400, 403, 404), path
        assert "root:" not in answer.text
        assert "import" not in answer.text
    for route in ("/static/", "/assets/", "/svelte/", "/gradio_api/upload/", "/gradio_api/file/", "/theme.css/", "/"):
        for path in ("..%2f" * 12 + "etc%2fpasswd", "%2e%2e/" * 12 + "etc/passwd", "/etc/passwd", "%2fetc%2fpasswd"):
            assert "root:" not in httpx.get(url + route + path).text, route + path
    picture = Path(skimage.__file__).parent / "data" / "chelsea.png"
    for path in [*wanted, str(picture)]:
        for file in ({"path": path, "meta": META}, {"path": path}, {"path": path, "url": "data:image/png;base64,AAAA"}):
            for endpoint, data in (("/caption", [file, 3, 12, 0]), ("/batch", [[file]]), ("/ask", [file, "猫？"])):
                answer = raw(url, endpoint, {"data": data})
                assert "event: error" in answer
                assert not re.search(r"root:|import|model_type|caption|answer|Traceback|site-packages", answer), answer


def test_addresses_are_not_fetched(url):
    """By whatever way it is named; the fixture fails when anybody is looked for."""
    for address in ("http://example.com/photo.jpg", "https://169.254.169.254/latest", "HTTPS://example.com/a.jpg"):
        for file in ({"path": address, "url": address}, {"url": address}, {"path": "a.jpg", "url": address}):
            for meta in ({}, {"meta": META}):
                assert "event: error" in raw(url, "/caption", {"data": [file | meta, 3, 12, 0]})
    for route in ("file=", "file/", "file=%20", "proxy=", "file%3D"):
        for address in ("https://example.com/photo.jpg", "HTTP://example.com", "https:%2f%2fexample.com"):
            answer = httpx.get(f"{url}/gradio_api/{route}{address}")
            assert answer.status_code in (400, 403, 404), answer.text[:200]
    link = {"path": "http://example.com/photo.jpg", "meta": META}
    assert "does not fetch" in raw(url, "/caption", {"data": [link, 3, 12, 0]})


def test_uploads_have_a_limit_and_no_say_in_their_path(url):
    large = httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", bytes(uploads.MAX_BYTES + 1))})
    assert large.status_code == 413
    named = httpx.post(f"{url}/gradio_api/upload", files={"files": ("../../../evil.png", encoded(noise()))})
    assert ".." not in named.json()[0]


def test_broken_requests(url):
    for body in ({"data": []}, {"data": [1, 2, 3, 4, 5, 6, 7]}, {"data": "x"}, {"data": [{"path": {}}, 1, 2, 3]}, {}):
        assert not re.search(r"Traceback|site-packages|object at|complete", raw(url, "/caption", body))


def test_a_photo_inside_the_request(url):
    """As MCP clients send it: a data: address."""
    address = data_address()
    assert '"size": [48, 36]' in raw(url, "/caption", {"data": [{"path": None, "url": address}, 2, 8, 0, True]})
    broken = {"path": None, "url": "data:image/png;base64,???"}
    assert "damaged" in raw(url, "/caption", {"data": [broken, 2, 8, 0]})


# texts and files of the Space


def test_every_text_has_both_languages_and_is_used():
    sources = "".join((REPOSITORY / "space" / name).read_text("utf-8") for name in ("app.py", "views.html"))
    raised = "".join(
        (REPOSITORY / "space" / f"{name}.py").read_text("utf-8") for name in ("uploads", "engine", "functions")
    )
    for key, (chinese, english) in words.WORDS.items():
        assert re.findall(r"{\w*}", chinese) == sorted(re.findall(r"{\w*}", english), key=chinese.find), key
        assert re.search(r"[\u4e00-\u9fff{]", chinese), key
        assert not re.search(r"[\u4e00-\u9fff]", english.replace("图里有几个人？", "")), key
    texts = page_module.PageHead.cls.texts  # what the switch of the language replaces, each by one other
    for side in (0, 1):
        assert len({pair[side] for pair in texts}) == len(texts)
    used = set(re.findall(r'(?:say|i18n|empty)\("(\w+)"[,)]', sources)) | set(re.findall(r'UserError\("(\w+)"', raised))
    assert used <= set(words.WORDS)


def test_the_space_is_complete():
    yaml = pytest.importorskip("yaml")
    page = (REPOSITORY / "space" / "README.md").read_text("utf-8")
    header = yaml.safe_load(page.split("---")[1])
    assert {"title", "sdk", "sdk_version", "python_version", "app_file", "license", "tags"} <= set(header)
    assert header["sdk"] == "gradio"
    assert (REPOSITORY / "space" / header["app_file"]).exists()


def test_deploy_writes_a_space_that_holds_everything(tmp_path):
    yaml = pytest.importorskip("yaml")
    deploy.main(["me/space", "--output", str(tmp_path / "repo")])
    written = {str(path.relative_to(tmp_path / "repo")) for path in (tmp_path / "repo").rglob("*") if path.is_file()}
    assert {"app.py", "page.js", "views.html", "style.css", "requirements.txt", "README.md"} <= written
    assert "modeling_mengzi_oscar/pipeline_mengzi_oscar.py" in written
    assert "checkpoints/mengzi-oscar-mini/region_model/model.safetensors" in written
    deploy.assemble(tmp_path / "pinned", [("me/captioner", "config.json,model.safetensors", "a" * 40)])
    header = yaml.safe_load((tmp_path / "pinned" / "README.md").read_text("utf-8").split("---")[1])
    assert header["models"] == ["me/captioner"]
    assert header["preload_from_hub"] == [f"me/captioner config.json,model.safetensors {'a' * 40}"]
    assert not (tmp_path / "pinned" / "checkpoints").exists()


def test_the_detailed_style_where_there_is_one(tiny_checkpoint, tmp_path):
    """The tiny checkpoint has none; a copy of it has."""

    def offered(engine):
        [box] = [block for block in build(engine).blocks.values() if getattr(block, "elem_id", None) == "detailed"]
        return box.visible

    plain = Engine(str(tiny_checkpoint))
    assert not offered(plain)
    with pytest.raises(words.UserError, match="does not have that style"):
        plain.caption(noise(), style="detailed")
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "styled")
    config = json.loads((folder / "processor_config.json").read_text("utf-8"))
    config["styles"] = {"short": "[CLS]", "detailed": "[MASK]"}
    (folder / "processor_config.json").write_text(json.dumps(config), "utf-8")
    styled = Engine(str(folder))
    assert offered(styled)
    expected = styled.pipeline.caption(noise(), style="detailed", num_beams=3, max_length=12)["caption"]
    assert styled.caption(noise(), 3, 12, style="detailed")["caption"] == expected
    page = Pages(styled).show_caption(data_address(), 3, 12, 0, True)
    assert expected in page


def test_many_photos_are_opened_in_turn(engine):
    """So that 200 of them need little memory; the limit counts own photos, not the samples."""
    opened = []
    gallery = Pages(engine).gallery([data_address()] * uploads.MAX_PHOTOS, True, opened.append)
    name, photo = next(gallery)
    assert (name, photo.size, len(opened)) == ("photo 1", (48, 36), 1)
    with pytest.raises(words.UserError, match="Up to 200 photos"):
        Pages(engine).gallery([data_address()] * (uploads.MAX_PHOTOS + 1), False)


def test_gpu_or_not(engine):
    assert engine.pipeline.captioner.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
