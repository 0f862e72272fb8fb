"""The demo: captions, matches and answers for photos in a browser, as an API and as MCP tools. `python space/app.py`

MODEL_ID names the checkpoint, a folder or "org/name@commit" of the Hub; without it the bundled mini is shown.
"""

import functools
import importlib.util
import logging
import os
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr  # noqa: E402  (reads the lines above)
import views  # noqa: E402
from engine import MAX_BATCH, MAX_BEAMS, MAX_LENGTH, MAX_TEMPERATURE, MAX_TEXT, QUESTIONS, Engine  # noqa: E402
from page import THEME, PageScript, css_paths  # noqa: E402
from uploads import MAX_BYTES, MAX_PHOTOS, open_upload, photos_in, read_photo, refuse_links, uploaded  # noqa: E402
from words import UserError, i18n  # noqa: E402

from modeling_mengzi_oscar.cli import BUNDLED  # noqa: E402
from modeling_mengzi_oscar.samples import MORE_SAMPLES, SAMPLES, sample_photos  # noqa: E402

MAX_GALLERY = 24
SENTENCES = "一个男人拿着照相机\n一个人骑着摩托车\n一只狗在草地上奔跑"


def samples() -> dict[str, tuple[Path, str]]:
    try:
        return sample_photos(MORE_SAMPLES | SAMPLES)
    except ModuleNotFoundError:
        return {}


class Functions:
    """What other programs call: each is an endpoint and an MCP tool, and tells people's mistakes as `UserError`."""

    def __init__(self, engine):
        self.engine = engine

    def caption(self, photo, num_beams=5, max_length=20, temperature=0):
        """Writes Chinese sentences for a photo.

        Args:
            photo: JPEG, PNG, WebP, BMP, GIF or TIFF.
            num_beams: how many sentences are considered and returned, 1 to 10.
            max_length: characters of a sentence with start and end, 5 to 30.
            temperature: 0 for the likeliest sentences, up to 2 for looser ones.

        Returns:
            {"caption", "captions": [{"caption", "score", "words": [{"word", "region_weights"}]}], "tags", "regions":
            [{"box", ...}], "size": [width, height], "seconds"}.
        """
        return self.engine.caption(open_upload(photo), num_beams, max_length, temperature)

    def match(self, photo, sentences):
        """How probable it is that each Chinese sentence is about the photo.

        Args:
            photo: JPEG, PNG, WebP, BMP, GIF or TIFF.
            sentences: a list of up to 20 sentences.

        Returns:
            {"matches": [{"text", "probability"}], likeliest first, "seconds"}.
        """
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise UserError("no_sentence")
        return self.engine.match(open_upload(photo), sentences)

    def rank(self, sentence, photos, with_samples=False):
        """How probable it is that each photo is what a Chinese sentence says.

        Args:
            sentence: what to look for.
            photos: up to 24 photos.
            with_samples: also the sample photos of the demo.

        Returns:
            {"matches": [{"photo" (its name), "index", "probability"}], likeliest first, "seconds"}.
        """
        return self.engine.rank(sentence or "", self.gallery(photos, with_samples))

    def ask(self, photo, question):
        """The five likeliest answers to a Chinese question about a photo.

        Args:
            photo: JPEG, PNG, WebP, BMP, GIF or TIFF.
            question: for example 图里有几个人？

        Returns:
            {"answers": [{"answer", "probability"}], likeliest first, "seconds"}.
        """
        return self.engine.ask(open_upload(photo), question or "")

    def batch(self, files):
        """Writes a Chinese sentence for each of many photos.

        Args:
            files: photos, zips with photos, or both; up to 100 photos.

        Returns:
            {"rows": [{"file", "caption", "score"} or {"file", "error"}]}.
        """
        found = photos_in(uploaded(files))
        return {"rows": [views.plain_row(row) for rows in self.engine.batch(found) for row in rows]}

    def gallery(self, files, with_samples):
        files = uploaded(files)
        if with_samples or not files:
            files = files + [(name, str(path)) for name, (path, _) in samples().items()]
        if len(files) > MAX_GALLERY:
            raise UserError("too_many_photos", limit=MAX_GALLERY)
        return [(name, read_photo(path)) for name, path in files]


class Pages(Functions):
    """The same for the browser: results and mistakes as HTML."""

    def show_caption(self, photo, num_beams, max_length, temperature):
        if photo is None:
            return views.views.empty("caption_empty", {})
        opened = open_upload(photo)
        result = self.engine.caption(opened, num_beams, max_length, temperature)
        return views.views.caption(result, views.picture(opened))

    def show_match(self, photo, sentences):
        return views.views.sentences(self.match(photo, (sentences or "").splitlines()))

    def show_rank(self, sentence, photos, with_samples):
        gallery = self.gallery(photos, with_samples)
        result = self.engine.rank(sentence or "", gallery)
        return views.views.photos(result, [views.picture(photo, 320) for _, photo in gallery])

    def show_answers(self, photo, question):
        return views.views.answers(self.ask(photo, question), question.strip())

    def show_batch(self, files):
        """A generator: the table as it grows. Whoever stops it keeps what is there."""
        try:
            found, rows = photos_in(uploaded(files)), []
            yield views.batch(rows, len(found))
            for more in self.engine.batch(found):
                for row in more:
                    row["picture"] = views.picture(row.pop("photo"), 64) if "photo" in row else None
                rows += more
                yield views.batch(rows, len(found))
        except UserError as error:
            yield views.views.error(error)

    def suggest(self, photo):
        questions = QUESTIONS if photo is None else self.engine.suggestions(open_upload(photo))
        return gr.Dataset(samples=[[question] for question in questions])


def told(function):
    """Mistakes and failures as a card on the page."""

    @functools.wraps(function)
    def wrapper(*inputs):
        try:
            return function(*inputs)
        except UserError as error:
            return views.views.error(error)
        except Exception:
            logging.exception("%s failed", function.__name__)
            return views.views.error(UserError("unexpected"))

    return wrapper


def guarded(function):
    """Failures of ours without their details, which would tell of files and code."""

    @functools.wraps(function)
    def wrapper(*inputs):
        try:
            return function(*inputs)
        except UserError:
            raise
        except Exception:
            logging.exception("%s failed", function.__name__)
            raise UserError("unexpected") from None

    return wrapper


def build(engine: Engine) -> gr.Blocks:
    pages, view = Pages(engine), views.views
    settings = {"preprocess": False, "api_visibility": "private"}  # uploads.py opens what was sent
    captions = {"concurrency_id": "captions", "concurrency_limit": 2 * MAX_BATCH}
    pairs = {"concurrency_id": "pairs", "concurrency_limit": 2}
    batches = {"concurrency_id": "batches", "concurrency_limit": 2}

    with gr.Blocks(title="孟子看图 · Mengzi Oscar", delete_cache=(600, 3600), analytics_enabled=False) as demo:
        gr.HTML(view.header())
        with gr.Row(elem_id="page"):
            with gr.Column(scale=4, min_width=280, elem_id="photo-column"):
                photo = gr.Image(
                    label=i18n("photo"),
                    placeholder=i18n("drop"),
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "webcam", "clipboard"],
                    buttons=[],
                    height=300,
                    elem_id="photo",
                )
                if samples():
                    gr.Examples([[str(path)] for path, _ in samples().values()], photo, label=i18n("samples"))
            with gr.Column(scale=7, min_width=300), gr.Tabs(elem_id="tabs"):
                with gr.Tab(i18n("caption"), id="caption") as caption_tab:
                    caption = gr.HTML(view.empty("caption_empty", {}), elem_id="caption", min_height=240)
                    with gr.Accordion(i18n("settings"), open=False):
                        beams = slider("num_beams", 1, MAX_BEAMS, 5, 1)
                        length = slider("max_length", 5, MAX_LENGTH, 20, 1)
                        temperature = slider("temperature", 0, MAX_TEMPERATURE, 0, 0.1)
                    write = gr.Button(i18n("caption_button"), variant="primary", elem_id="write")
                with gr.Tab(i18n("match"), id="match") as match_tab, gr.Tabs():
                    with gr.Tab(i18n("match_sentences")) as sentences_tab:
                        missing(engine, "match")
                        sentences = gr.Textbox(SENTENCES, label=i18n("sentences"), lines=4, elem_id="sentences")
                        match = gr.Button(i18n("match_button"), variant="primary", elem_id="match-button")
                        matches = gr.HTML(view.empty("match_empty", {}), elem_id="matches", min_height=180)
                    with gr.Tab(i18n("match_photos")) as photos_tab:
                        missing(engine, "match")
                        sentence = gr.Textbox(
                            SENTENCES.splitlines()[1], label=i18n("sentence"), max_length=MAX_TEXT, elem_id="sentence"
                        )
                        photos = gr.File(
                            file_count="multiple", file_types=["image"], label=i18n("photos"), height=140, elem_id="photos"
                        )
                        with_samples = gr.Checkbox(True, label=i18n("with_samples"), visible=bool(samples()))
                        rank = gr.Button(i18n("rank_button"), variant="primary", elem_id="rank-button")
                        ranking = gr.HTML(view.empty("rank_empty", {}), elem_id="ranking", min_height=180)
                with gr.Tab(i18n("ask"), id="ask") as ask_tab:
                    missing(engine, "ask")
                    question = gr.Textbox(
                        label=i18n("question"),
                        placeholder=i18n("question_example"),
                        max_length=MAX_TEXT,
                        elem_id="question",
                    )
                    suggestions = gr.Dataset(
                        components=[question],
                        samples=[[one] for one in QUESTIONS],
                        label=i18n("suggestions"),
                        elem_id="suggestions",
                    )
                    ask = gr.Button(i18n("ask_button"), variant="primary", elem_id="ask-button")
                    answers = gr.HTML(view.empty("ask_empty", {}), elem_id="answers", min_height=180)
                with gr.Tab(i18n("batch"), id="batch") as batch_tab:
                    files = gr.File(
                        file_count="multiple",
                        file_types=["image", ".zip"],
                        label=i18n("batch_files"),
                        height=180,
                        elem_id="files",
                    )
                    with gr.Row():
                        start = gr.Button(i18n("batch_button"), variant="primary", elem_id="batch-button")
                        stop = gr.Button(i18n("cancel"), elem_id="stop")
                    table = gr.HTML(view.empty("batch_empty", {"photos": MAX_PHOTOS}), elem_id="table", min_height=180)
                with gr.Tab(i18n("about"), id="about") as about_tab:
                    credits = "；".join(f"{name}: {credit}" for name, (_, credit) in samples().items())
                    gr.HTML(view.about(engine.describe(), credits))

        for tab, name in (
            (caption_tab, "photo"),
            (match_tab, "photo"),
            (sentences_tab, "photo"),
            (photos_tab, "many"),
            (ask_tab, "photo"),
            (batch_tab, "many"),
            (about_tab, "many"),
        ):
            tab.select(None, js=f"() => {{ document.body.dataset.input = '{name}' }}", api_visibility="private")

        inputs = [photo, beams, length, temperature]
        gr.on([photo.change, write.click], told(pages.show_caption), inputs, caption, **settings, **captions)
        match.click(told(pages.show_match), [photo, sentences], matches, **settings, **pairs)
        gr.on(
            [rank.click, sentence.submit],
            told(pages.show_rank),
            [sentence, photos, with_samples],
            ranking,
            **settings,
            **pairs,
        )
        gr.on(
            [ask.click, question.submit], told(pages.show_answers), [photo, question], answers, **settings, **pairs
        )
        photo.change(quiet(pages.suggest), photo, suggestions, show_progress="hidden", **settings, **pairs)
        suggestions.click(lambda chosen: chosen[0], suggestions, question, api_visibility="private").then(
            told(pages.show_answers), [photo, question], answers, **settings, **pairs
        )
        running = start.click(pages.show_batch, files, table, **settings, **batches)
        stop.click(None, cancels=[running], api_visibility="private")

        with gr.Row(visible=False):  # the API: the same inputs, JSON out
            listed, result, call = gr.JSON(label="sentences"), gr.JSON(label="result"), gr.Button()
        for function, given, limits in (
            (pages.caption, inputs, captions),
            (pages.match, [photo, listed], pairs),
            (pages.rank, [sentence, photos, with_samples], pairs),
            (pages.ask, [photo, question], pairs),
            (pages.batch, [files], batches),
        ):
            call.click(guarded(function), given, result, preprocess=False, api_name=function.__name__, **limits)
        for component in (photo, photos, files):
            refuse_links(component)
    return demo


def slider(name, low, high, value, step):
    return gr.Slider(low, high, value, step=step, label=i18n(name), info=i18n(name + "_info"))


def missing(engine, task):
    """Says so where the checkpoint has no head for the task."""
    if task not in engine.tasks:
        gr.HTML(views.views.error(UserError("no_head", task=task)))


def quiet(function):
    """A photo that cannot be read is told once, where the caption would stand."""

    @functools.wraps(function)
    def wrapper(*inputs):
        try:
            return function(*inputs)
        except UserError:
            return gr.skip()

    return wrapper


def main():
    demo = build(Engine(os.environ.get("MODEL_ID") or str(BUNDLED)))
    demo.queue(max_size=64).launch(**launch_options())


def launch_options() -> dict:
    return {
        "theme": THEME,
        "css_paths": css_paths,
        "i18n": i18n,
        "app_kwargs": {"middleware": [PageScript]},
        "max_file_size": MAX_BYTES,
        "show_error": True,
        "ssr_mode": False,
        "footer_links": ["api"],
        "mcp_server": importlib.util.find_spec("mcp") is not None,
    }


if __name__ == "__main__":
    main()
