"""The demo in a real Chromium, as people use it: the app runs as `make space` runs it, in a process of its own.

python -m pytest tests/space/test_space_browser.py
SPACE_PICTURES=1 python -m pytest tests/space/test_space_browser.py -k pictures     # docs/img/ again
"""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY
from noto_cjk import otc_path
from PIL import Image
from test_pipeline import with_heads  # noqa: F401  (a fixture)

from modeling_mengzi_oscar.cli.checkpoint import BUNDLED
from modeling_mengzi_oscar.demo.samples import MORE_SAMPLES, sample_photos

pytest.importorskip("gradio", reason='the demo needs gradio: pip install -e ".[space]"')
playwright = pytest.importorskip("playwright.sync_api", reason='needs playwright: pip install -e ".[test]"')
expect = playwright.expect  # waits, where is_visible() only looks once
expect.set_options(timeout=60_000)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
import views  # noqa: E402

if CHROMIUM is None:
    pytest.skip("needs a Chromium: apt-get install chromium", allow_module_level=True)

WATCHED = """
import os, runpy, socket, sys
look_up = socket.getaddrinfo
def watched(host, *arguments, **options):
    if host not in ("127.0.0.1", "localhost", "::1", "0.0.0.0", None):
        print("LOOKED FOR", host, flush=True)
        raise OSError("the tests have no network")
    return look_up(host, *arguments, **options)
socket.getaddrinfo = watched
sys.path.insert(0, "space")
runpy.run_path("space/app.py", run_name="__main__")
"""  # the app, telling of every name that it asks the network for


def start_app(model, folder):
    """(process, address) of a running demo; its output goes to app.log in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GRADIO_"))}
    environment |= {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(REPOSITORY), "MODEL_ID": str(model)}
    environment |= {"GRADIO_TEMP_DIR": str(folder / "uploads"), "PYTHONUNBUFFERED": "1"}
    with open(folder / "app.log", "w") as log:
        call = [sys.executable, "-c", WATCHED]
        process = subprocess.Popen(call, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT)
    for _ in range(3000):  # a busy machine starts it slowly
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
            return process, f"http://127.0.0.1:{port}/"
        except OSError:
            assert process.poll() is None, (folder / "app.log").read_text("utf-8")
            time.sleep(0.2)
    raise TimeoutError((folder / "app.log").read_text("utf-8"))


@pytest.fixture(scope="module")
def address(with_heads, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("app")
    process, address = start_app(with_heads, folder)
    yield address
    process.terminate()
    process.wait(20)
    log = (folder / "app.log").read_text("utf-8")
    assert "LOOKED FOR" not in log
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium with the Chinese font that the library draws with."""
    home = tmp_path_factory.mktemp("home")
    (home / "fonts").mkdir()
    (home / "fonts" / "chinese.ttc").symlink_to(otc_path("sans"))
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--use-fake-device-for-media-stream"]
    with playwright.sync_playwright() as play:
        environment = os.environ | {"XDG_DATA_HOME": str(home)}
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags, env=environment)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """A function that opens the demo; at the end nothing may have gone wrong on the page or been fetched elsewhere."""
    contexts, wrong = [], []

    def visit(locale="zh-CN", width=1280, height=860, theme="light", address=address, query=""):
        size = {"width": width, "height": height}
        context = browser.new_context(locale=locale, viewport=size, color_scheme=theme, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
        page.on(
            "request", lambda request: request.url.startswith((address, "data:", "blob:")) or wrong.append(request.url)
        )
        page.goto(address + query)
        page.wait_for_selector("#photo input[type=file]", state="attached")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture(scope="module")
def photo():
    return sample_photos(MORE_SAMPLES)["photographer"][0]


def give(page, photo):
    page.set_input_files("#photo input[type=file]", photo)
    page.wait_for_selector(".card.caption")


def tab(page, name):
    page.locator("#tabs").get_by_role("tab", name=name, exact=True).first.click()


def test_a_photo_gets_a_caption_and_its_words_light_up_regions(visit, photo):
    page = visit()
    expect(page.locator("#caption .empty")).to_be_visible()
    give(page, photo)
    assert page.locator(".beam").count() == 3  # as the checkpoint says
    assert page.locator(".seen rect").count() == 9  # every region
    assert page.locator("rect.top").count() == 0
    word = page.locator(".words:not([hidden]) .word").first
    word.click()
    assert page.locator("rect.top").count() == 3
    weights = json.loads(word.get_attribute("data-weights"))
    heaviest = max(range(9), key=weights.__getitem__)
    assert "top" in page.locator(".seen rect").nth(heaviest).get_attribute("class")
    page.wait_for_function("getComputedStyle(document.querySelector('.seen canvas')).opacity == 1")
    page.locator(".seen rect").nth(heaviest).hover()
    assert page.locator(".tip").inner_text() == f"{100 * weights[heaviest]:.1f} %"
    word.click()  # again: off
    assert page.locator("rect.top").count() == 0
    other = page.locator(".beam").nth(1)
    other.click()
    assert page.locator(".words:not([hidden])").get_attribute("data-caption") == other.locator(".text").inner_text()


def test_hovering_tells_what_a_detector_saw(browser):
    """The page's own files around a result with two overlapping boxes: the smaller one is meant, no cell is."""
    regions = [
        {"box": [10, 10, 90, 90], "label": "狗", "score": 0.9, "attributes": [{"label": "白色", "score": 0.8}]},
        {"box": [0, 0, 100, 100], "label": "草地", "score": 0.7, "attributes": []},
        {"box": [45, 45, 55, 55]},
    ]
    caption = {
        "caption": "狗",
        "score": 0.5,
        "words": [{"word": "狗", "region_weights": [0.7, 0.25, 0.05], "objects": [0]}],
    }
    result = {"caption": "狗", "captions": [caption], "tags": ["狗"], "regions": regions, "size": [100, 100]}
    card = views.views.caption(result | {"seconds": 0.1}, views.picture(Image.new("RGB", (100, 100), "green")))
    style, script = ((REPOSITORY / "space" / name).read_text("utf-8") for name in ("style.css", "page.js"))
    page = browser.new_page()
    page.set_content(f"<style>{style}</style><script>{script}</script><body>{card}</body>")
    figure = page.locator(".seen")
    size = figure.bounding_box()["width"]
    figure.hover(position={"x": size / 2, "y": size / 2})
    assert page.locator(".tip").inner_text() == "狗 0.90\n白色 0.80"
    assert page.locator("rect.named").get_attribute("data-label") == "狗"
    page.locator(".word").click()
    figure.hover(position={"x": size * 0.05, "y": size * 0.05})
    assert page.locator(".tip").inner_text() == "草地 0.70\n25.0 %"
    assert page.locator("rect.top").get_attribute("data-label") == "狗"  # the object that the word names, and no other
    assert page.locator(".object-name").all_inner_texts() == ["狗", "草地"]
    page.close()


def test_copy_and_share(visit, photo):
    page = visit()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    give(page, photo)
    caption = page.locator(".words:not([hidden])").get_attribute("data-caption")
    page.locator("[data-copy]").click()
    page.wait_for_selector(".done:not([hidden])")
    assert page.evaluate("navigator.clipboard.readText()") == caption
    page.evaluate("navigator.share = undefined")
    page.locator("[data-share]").click()
    page.wait_for_function(f"navigator.clipboard.readText().then(text => text.endsWith({json.dumps(page.url)}))")


def test_language_of_the_browser_then_the_switch(visit, photo):
    page = visit("en-US")
    expect(page.locator("h1 .en")).to_be_visible()
    expect(page.get_by_text("Drop, paste or pick a photo")).to_be_visible()
    tab(page, "Batch")
    expect(page.get_by_text("Click to Upload")).to_be_visible()  # gradio's own words
    tab(page, "Caption")
    give(page, photo)
    caption = page.locator(".words:not([hidden])").get_attribute("data-caption")
    page.get_by_role("button", name="中文").click()
    page.wait_for_selector("html[lang=zh-CN]")
    page.get_by_role("tab", name="看图说话").wait_for()
    expect(page.locator("h1 .zh")).to_be_visible()
    expect(page.locator("h1 .en")).to_be_hidden()
    expect(page.locator("#photo img")).to_be_visible()  # photo and result are still there
    assert page.locator(".words:not([hidden])").get_attribute("data-caption") == caption
    for name in ("图文匹配", "看图问答", "批量", "关于"):
        tab(page, name)
    expect(page.get_by_text("点击上传")).to_have_count(1)
    page.get_by_role("button", name="English").click()
    left = page.evaluate("document.body.innerText")
    tab(page, "Ask")
    expect(page.get_by_placeholder("e.g.")).to_be_visible()
    assert not re.search("[\u4e00-\u9fff]{2}", left.replace("中文", ""))
    page.get_by_role("button", name="中文").click()
    page.reload()  # it stays
    page.get_by_role("tab", name="看图说话").wait_for()
    expect(visit("en-US", query="?lang=zh").get_by_role("tab", name="批量")).to_be_visible()
    expect(visit("zh-TW").get_by_role("tab", name="批量")).to_be_visible()
    expect(visit("fr").get_by_role("tab", name="Batch")).to_be_visible()


def test_match_both_ways(visit, photo):
    page = visit()
    give(page, photo)
    tab(page, "图文匹配")
    nasty = "<img src=x onerror=alert(1)>${alert(2)}{{7*7}}"
    page.fill("#sentences textarea", f"一只狗\n两个人骑马\n{nasty}")
    page.click("#match-button")
    page.wait_for_selector("#matches .ranked")
    texts = page.locator("#matches .text").all_inner_texts()
    assert sorted(texts) == sorted(["一只狗", "两个人骑马", nasty])  # as text, to the letter
    page.get_by_role("tab", name="一个句子，多张照片").click()
    expect(page.locator("#photo")).to_be_hidden()
    page.click("#rank-button")
    page.wait_for_selector("#ranking .wall")
    assert page.locator("#ranking .wall img").count() == 8
    assert page.locator("#ranking .percent").count() == 8
    page.set_input_files("#photos input[type=file]", [photo] * 25)  # own photos: the samples step aside
    expect(page.locator("#with-samples input")).not_to_be_checked()
    page.click("#rank-button")
    page.wait_for_function("document.querySelectorAll('#ranking .wall img').length === 25")


def test_ask_by_suggestion_and_by_hand(visit, photo):
    page = visit()
    give(page, photo)
    tab(page, "看图问答")
    page.locator("#suggestions button").first.click()
    page.wait_for_selector("#answers .ranked")
    assert (
        page.locator("#answers .asked").inner_text() == page.locator("#suggestions button").first.inner_text().strip()
    )
    assert page.locator("#answers li").count() == 5
    page.fill("#question textarea, #question input", "有只狗？")
    page.click("#ask-button")
    page.wait_for_function("document.querySelector('#answers .asked')?.innerText === '有只狗？'")


def test_a_suggestion_outlives_its_session(visit, photo, address):
    """Gradio remembers the last callers; a page that stood open meanwhile still asks what its button says."""
    page = visit()
    give(page, photo)
    tab(page, "看图问答")
    page.wait_for_function("document.querySelectorAll('#suggestions button').length === 4")  # one is of this photo
    for _ in range(20):
        call = json.dumps({"data": [None, ""]}).encode()
        request = urllib.request.Request(f"{address}gradio_api/call/ask", call, {"Content-Type": "application/json"})
        event = json.load(urllib.request.urlopen(request))["event_id"]
        urllib.request.urlopen(f"{address}gradio_api/call/ask/{event}").read()
    button = page.locator("#suggestions button").first
    button.click()
    page.wait_for_selector("#answers .ranked")
    assert page.locator("#answers .asked").inner_text() == button.inner_text().strip() == "草地是什么颜色的？"


def test_batch_and_its_files(visit, photo, tmp_path):
    page = visit()
    tab(page, "批量")
    (tmp_path / "坏.jpg").write_bytes(b"no photo")
    page.set_input_files("#files input[type=file]", [photo, tmp_path / "坏.jpg"])
    page.wait_for_selector("#files .file-preview")
    expect(page.get_by_role("link", name="CSV")).to_have_count(0)  # nothing to save yet
    page.click("#batch-button")
    page.wait_for_function("document.querySelectorAll('#table tbody tr').length === 2")
    assert page.locator("#table .bad").inner_text().count("无法识别此文件") == 1
    rows = {}
    for kind in ("CSV", "JSON"):
        with page.expect_download() as download:
            page.get_by_role("link", name=kind).click()
        rows[kind] = Path(download.value.path()).read_text("utf-8-sig")
    [first, second] = json.loads(rows["JSON"])
    assert first["file"] == "camera.png"
    assert second["file"] == "坏.jpg"
    assert f"camera.png,{first['caption']},{first['score']}" in rows["CSV"]


def test_a_batch_is_stopped_and_keeps_its_rows(visit, tmp_path):
    page = visit()
    tab(page, "批量")
    content = io.BytesIO()
    Image.effect_noise((400, 300), 60).convert("RGB").save(content, "JPEG")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(200):  # the most; a busy browser may click late
            archive.writestr(f"{number}.jpg", content.getvalue())
    page.set_input_files("#files input[type=file]", tmp_path / "many.zip")
    page.wait_for_selector("#files .file-preview")
    page.click("#batch-button")
    page.wait_for_selector("#table tbody tr")
    page.click("#stop")
    page.wait_for_timeout(3000)
    rows = page.locator("#table tbody tr").count()
    assert 0 < rows < 200
    page.wait_for_timeout(3000)
    assert page.locator("#table tbody tr").count() == rows  # nobody goes on with it
    with page.expect_download() as download:
        page.get_by_role("link", name="JSON").click()
    assert len(json.loads(Path(download.value.path()).read_text("utf-8"))) == rows


def test_a_file_name_is_text(visit, photo, tmp_path):
    nasty = "<img src=x onerror=alert(1)>${alert(2)}.png"
    shutil.copy(photo, tmp_path / nasty)
    page = visit()
    give(page, tmp_path / nasty)
    tab(page, "批量")
    page.set_input_files("#files input[type=file]", tmp_path / nasty)
    page.wait_for_selector("#files .file-preview")
    page.click("#batch-button")
    page.wait_for_selector("#table tbody tr")
    shown = page.locator("#table td.name").inner_text()
    assert "onerror" in shown  # gradio drops what no file system takes
    assert page.locator("img[src=x]").count() == 0


def test_paste_a_photo(visit):
    page = visit()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(64, 48);
            canvas.getContext("2d").fillRect(0, 0, 64, 48);
            await navigator.clipboard.write([new ClipboardItem({"image/png": await canvas.convertToBlob()})]);
        }"""
    )
    page.locator("#photo [data-testid=source-select] button").nth(2).click()
    page.wait_for_selector(".card.caption")


def test_take_a_photo(visit):
    """With the camera that Chromium pretends to have."""
    page = visit()
    page.context.grant_permissions(["camera"])
    page.locator("#photo [data-testid=source-select] button").nth(1).click()
    page.locator("#photo").get_by_text("授权").or_(
        page.locator("#photo .access-icon, #photo .wrap button")
    ).first.click()
    page.wait_for_selector("#photo video")
    page.wait_for_function("document.querySelector('#photo video').videoWidth > 0")  # before that there is no picture
    page.locator("#photo .button-wrap button").first.click()
    page.wait_for_selector(".card.caption")


def test_mistakes_are_told(visit, photo, tmp_path):
    page = visit()
    page.locator("#write").click()  # nothing given: nothing happens
    tab(page, "看图问答")
    page.fill("#question textarea, #question input", "有只狗？")
    page.click("#ask-button")
    page.wait_for_selector("#answers .error")
    assert page.locator("#answers .error").inner_text() == "请先选择一张照片。"
    tab(page, "看图说话")
    (tmp_path / "page.jpg").write_bytes(b"<html><script>alert(1)</script></html>")
    page.set_input_files("#photo input[type=file]", tmp_path / "page.jpg")
    page.wait_for_selector("#caption .error")
    assert "无法识别此文件" in page.locator("#caption .error").inner_text()
    expect(page.locator("#photo img")).to_be_hidden()  # no broken picture
    page.set_input_files("#photo input[type=file]", photo)  # and it goes on
    page.wait_for_selector(".card.caption")
    page.locator("#photo img").wait_for()


GIVEN = """([how, area, name, content]) => {
    const box = new DataTransfer(), input = document.querySelector(`${area} input[type=file]`);
    box.items.add(new File([Uint8Array.from(content)], name, { type: "" }));
    if (how === "chosen") input.files = box.files;
    const told = { bubbles: true, cancelable: true };
    if (how === "chosen") input.dispatchEvent(new Event("change", told));
    else input.closest("button").dispatchEvent(new DragEvent("drop", { dataTransfer: box, ...told }));
}"""


@pytest.mark.parametrize("how", ["chosen", "dropped"])
def test_files_of_no_kind_that_the_system_knows(visit, how):
    """As HEIC is in most browsers: read by its content, or refused in our words; gradio would drop it in silence."""
    page, content = visit(), io.BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(content, "JPEG")
    page.evaluate(GIVEN, [how, "#photo", "IMG_7.HEIC", list(content.getvalue())])
    page.wait_for_selector(".card.caption")
    page.reload()
    page.wait_for_selector("#photo input[type=file]", state="attached")
    page.evaluate(GIVEN, [how, "#photo", "IMG_8.HEIC", list(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))])
    expect(page.locator("#caption .error")).to_have_text(re.compile("照片文件已损坏|HEIC"))
    tab(page, "批量")
    page.evaluate(GIVEN, [how, "#files", "notes.docx", list(b"no photo")])
    page.wait_for_selector("#files .file-preview")
    page.click("#batch-button")
    expect(page.locator("#table .bad")).to_contain_text("无法识别此文件")


@pytest.mark.parametrize(
    ("locale", "names"),
    [
        ("zh-CN", ("看图说话", "图文匹配", "看图问答", "批量", "关于")),
        ("en-US", ("Caption", "Match", "Ask", "Batch", "About")),
    ],
)
def test_on_a_phone(visit, photo, locale, names):
    page = visit(locale, width=360, height=780)
    give(page, photo)
    page.locator(".words:not([hidden]) .word").first.click()
    for name in names:
        tab(page, name)
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        theme = page.locator("[data-set-theme]").bounding_box()
        assert theme["x"] + theme["width"] <= 360  # the page does not hide what is too wide
    expect(page.locator("#tabs").get_by_role("tab", name=names[-1])).to_be_visible()
    tab(page, names[1])
    expect(
        page.locator("#tabs").get_by_role("tab", name="一个句子，" if locale == "zh-CN" else "Sentence →")
    ).to_be_visible()


def test_the_page_keeps_its_width(visit):
    page = visit()
    edge = page.locator(".masthead").bounding_box()["width"]
    for name in ("图文匹配", "看图问答", "批量", "关于"):
        tab(page, name)
        page.wait_for_timeout(100)
        assert page.locator(".masthead").bounding_box()["width"] == edge, name
    assert page.locator("#tabs").bounding_box()["width"] == edge


BACKGROUND = "getComputedStyle(document.querySelector('gradio-app')).backgroundColor"


def test_light_and_dark(visit):
    page = visit(theme="dark")
    dark = page.evaluate(BACKGROUND)
    page.locator("[data-set-theme]").click()
    light = page.evaluate(BACKGROUND)
    assert sum(map(int, dark[4:-1].split(","))) < 150 < 600 < sum(map(int, light[4:-1].split(",")))
    page.reload()
    page.wait_for_selector("#photo input[type=file]", state="attached")
    page.wait_for_function("!document.body.classList.contains('dark')")  # the choice stays


PICTURES = {  # file -> what is opened and shown
    "space_wide.webp": ({}, "看图说话"),
    "space_dark.webp": ({"theme": "dark"}, "看图说话"),
    "space_english.webp": ({"locale": "en-US"}, "Caption"),
    "space_phone.webp": ({"width": 390, "height": 1180}, "看图说话"),
    "space_match.webp": ({"height": 700}, "图文匹配"),
    "space_ask.webp": ({"height": 700}, "看图问答"),
}


@pytest.mark.skipif("SPACE_PICTURES" not in os.environ, reason="draws docs/img/ again: SPACE_PICTURES=1")
def test_pictures(visit, photo, tmp_path):
    """What the pages of the documentation show, with the bundled checkpoint."""
    process, address = start_app(BUNDLED, tmp_path)
    try:
        for name, (options, shown) in PICTURES.items():
            task = name.removeprefix("space_").removesuffix(".webp")
            if task in ("match", "ask") and not (BUNDLED / task).is_dir():
                continue  # nothing to show without the head
            page = visit(address=address, **options)
            give(page, photo if task in ("match", "ask") else sample_photos(MORE_SAMPLES)["motorcycle"][0])
            page.locator(".words:not([hidden]) .word").last.click()
            if "match" in name:
                tab(page, shown)
                page.click("#match-button")
                page.wait_for_selector("#matches .ranked")
            if "ask" in name:
                tab(page, shown)
                page.locator("#suggestions button").nth(1).click()
                page.wait_for_selector("#answers .ranked")
            page.mouse.move(0, 0)
            page.wait_for_timeout(600)
            picture = Image.open(io.BytesIO(page.screenshot()))
            picture.save(REPOSITORY / "docs" / "img" / name, quality=85, method=6)
    finally:
        process.terminate()
        process.wait(20)
