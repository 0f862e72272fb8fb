"""The demo: captions, matches and answers for photos in a browser, as an API and as MCP tools. `python space/app.py`

MODEL_ID names the checkpoint, a folder or "org/name@commit" of the Hub; without it the bundled mini is shown.
"""

import ctypes
import importlib.util
import os
import platform
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", str(int(os.path.isdir(os.environ.get("MODEL_ID") or "."))))  # all is here
if "OMP_WAIT_POLICY" not in os.environ:  # cli/threads.py says why; before torch is loaded, so it is here
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import gradio as gr
from engine import MAX_BATCH, MAX_BEAMS, MAX_TEMPERATURE, MAX_TEXT, QUESTIONS, Engine
from functions import Demo, Pages, guarded, quiet, samples, told
from limits import MAX_QUEUE, Limits, ShortLines, limit_connections
from page import THEME, PageHead
from uploads import MAX_BYTES, MAX_PHOTOS, refuse_links
from views import views as view
from words import cannot, i18n

from modeling_mengzi_oscar.checkpoint_folder import CheckpointError
from modeling_mengzi_oscar.cli.checkpoint import BUNDLED
from modeling_mengzi_oscar.photos import SUFFIXES

SENTENCES = "一个男人拿着照相机\n一个人骑着摩托车\n一只狗在草地上奔跑"


def build(engine: Engine) -> gr.Blocks:
    pages = Pages(engine)
    settings = {"preprocess": False, "api_visibility": "private"}  # uploads.py opens what was sent
    captions = {"concurrency_id": "captions", "concurrency_limit": 2 * MAX_BATCH}
    pairs = {"concurrency_id": "pairs", "concurrency_limit": 2}
    batches = {"concurrency_id": "batches", "concurrency_limit": 2}

    with Demo(title="孟子看图 · Mengzi Oscar", delete_cache=(600, 3600), analytics_enabled=False) as demo:
        html(view.header())
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
            with gr.Column(scale=7, min_width=300), gr.Tabs(selected=engine.tasks[0], elem_id="tabs"):
                with gr.Tab(i18n("caption"), id="caption") as caption_tab:
                    missing(engine, "caption")
                    caption = html(view.empty("caption_empty", {}), elem_id="caption", min_height=240)
                    with gr.Accordion(i18n("settings"), open=False):
                        beams = slider("num_beams", 1, MAX_BEAMS, engine.num_beams, 1)
                        length = slider("max_length", 5, engine.max_length, engine.lengths[None], 1)
                        temperature = slider("temperature", 0, MAX_TEMPERATURE, 0, 0.1)
                        detailed = gr.Checkbox(
                            label=i18n("detailed"),
                            info=i18n("detailed_info"),
                            visible="detailed" in engine.styles,
                            elem_id="detailed",
                        )
                    write = gr.Button(i18n("caption_button"), variant="primary", elem_id="write")
                with gr.Tab(i18n("match"), id="match") as match_tab, gr.Tabs():
                    with gr.Tab(i18n("match_sentences")) as sentences_tab:
                        missing(engine, "match")
                        sentences = gr.Textbox(SENTENCES, label=i18n("sentences"), lines=4, elem_id="sentences")
                        match = gr.Button(i18n("match_button"), variant="primary", elem_id="match-button")
                        matches = html(view.empty("match_empty", {}), elem_id="matches", min_height=180)
                    with gr.Tab(i18n("match_photos")) as photos_tab:
                        missing(engine, "match")
                        sentence = gr.Textbox(
                            SENTENCES.splitlines()[1], label=i18n("sentence"), max_length=MAX_TEXT, elem_id="sentence"
                        )
                        photos = gr.File(
                            file_count="multiple",
                            file_types=["image", *SUFFIXES],
                            label=i18n("photos"),
                            height=140,
                            elem_id="photos",
                        )
                        with_samples = gr.Checkbox(
                            True, label=i18n("with_samples"), visible=bool(samples()), elem_id="with-samples"
                        )
                        rank = gr.Button(i18n("rank_button"), variant="primary", elem_id="rank-button")
                        ranking = html(view.empty("rank_empty", {}), elem_id="ranking", min_height=180)
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
                    answers = html(view.empty("ask_empty", {}), elem_id="answers", min_height=180)
                with gr.Tab(i18n("batch"), id="batch") as batch_tab:
                    missing(engine, "caption")
                    files = gr.File(
                        file_count="multiple",
                        file_types=["image", *SUFFIXES, ".zip"],
                        label=i18n("batch_files"),
                        height=180,
                        elem_id="files",
                    )
                    with gr.Row():
                        start = gr.Button(i18n("batch_button"), variant="primary", elem_id="batch-button")
                        stop = gr.Button(i18n("cancel"), elem_id="stop")
                    table = html(view.empty("batch_empty", {"photos": MAX_PHOTOS}), elem_id="table", min_height=180)
                with gr.Tab(i18n("about"), id="about") as about_tab:
                    credits = "；".join(f"{name}: {credit}" for name, (_, credit) in samples().items())
                    html(view.about(engine.describe(), credits))

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

        inputs = [photo, beams, length, temperature, detailed]
        settled = [beams.release, length.release, temperature.release]
        photos.change(None, photos, with_samples, js="(own) => !own?.length", api_visibility="private")
        gr.on([photo.change, write.click, *settled], told(pages.show_caption), inputs, caption, **settings, **captions)
        lengths = engine.lengths
        longer = f"(detailed) => detailed ? {lengths.get('detailed', lengths[None])} : {lengths[None]}"
        detailed.input(None, detailed, length, js=longer, api_visibility="private").then(
            told(pages.show_caption), inputs, caption, **settings, **captions
        )
        match.click(told(pages.show_match), [photo, sentences], matches, **settings, **pairs)
        gr.on(
            [rank.click, sentence.submit],
            told(pages.show_rank),
            [sentence, photos, with_samples],
            ranking,
            **settings,
            **pairs,
        )
        gr.on([ask.click, question.submit], told(pages.show_answers), [photo, question], answers, **settings, **pairs)
        photo.change(quiet(pages.suggest), photo, suggestions, show_progress="hidden", **settings, **pairs)
        suggestions.select(pages.chosen, None, question, api_visibility="private").then(
            told(pages.show_answers), [photo, question], answers, **settings, **pairs
        )
        running = start.click(pages.show_batch, files, table, **settings, **batches)
        stop.click(None, cancels=[running], api_visibility="private")

        for function, limits in (
            (pages.caption, captions),
            (pages.match, pairs),
            (pages.rank, pairs),
            (pages.ask, pairs),
            (pages.batch, batches),
        ):
            gr.api(guarded(function), api_name=function.__name__, **limits)
    for component in demo.blocks.values():
        if isinstance(component, gr.components.Component):
            refuse_links(component)
    return demo.queue(max_size=MAX_QUEUE, api_open=False)


def html(value, **options):
    return gr.HTML(value, apply_default_css=False, js_on_load=None, **options)


def slider(name, low, high, value, step):
    return gr.Slider(low, high, value, step=step, label=i18n(name), info=i18n(name + "_info"))


def missing(engine, task):
    """Says so where the checkpoint was not trained for the task."""
    if task not in engine.tasks:
        html(view.error(cannot(task)))


def return_freed_memory() -> None:
    """glibc keeps what each thread frees in an arena of its own: photos of 12 megapixels would pile up to 4 GB."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-8, 2)  # M_ARENA_MAX
        libc.mallopt(-3, 2**20)  # M_MMAP_THRESHOLD: whatever is larger goes back to the system when it is freed


def main():
    return_freed_memory()
    sys.stdout, sys.stderr = ShortLines(sys.stdout), ShortLines(sys.stderr)
    try:
        engine = Engine(os.environ.get("MODEL_ID") or str(BUNDLED))
    except CheckpointError as error:
        print(f"MODEL_ID: {error}", file=sys.stderr)
        sys.exit(2)
    demo = build(engine)
    start(demo)
    demo.block_thread()


def start(demo, **options) -> str:
    """Returns its address, while it runs."""
    _, address, _ = demo.launch(**launch_options(), prevent_thread_lock=True, **options)
    limit_connections(demo.server)
    return address


def launch_options() -> dict:
    return {
        "theme": THEME,
        "i18n": i18n,
        "app_kwargs": {"middleware": [PageHead, Limits]},
        "max_file_size": MAX_BYTES,
        "max_threads": 48,  # of their own: with gradio's 40 they would be those in which MCP calls wait for them
        "state_session_capacity": 16,  # callers that gradio remembers, with all they sent: we keep no state in them
        "show_error": False,  # our own messages are shown; others may tell of files and code
        "ssr_mode": False,
        "footer_links": ["api"],
        "mcp_server": importlib.util.find_spec("mcp") is not None,
    }


if __name__ == "__main__":
    main()
