"""The look: theme, and the style sheet and script that have to be there before gradio's own."""

import json
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware
from words import GRADIO_WORDS, WORDS

HERE = Path(__file__).parent
FONTS = [  # of the reader's system only: nothing is fetched
    "system-ui",
    "-apple-system",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "sans-serif",
]
THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="stone",
    radius_size="lg",
    font=FONTS,
    font_mono=["ui-monospace", "Consolas", "monospace"],
).set(
    body_background_fill="#faf8f5",
    body_background_fill_dark="#161412",
    background_fill_primary="#ffffff",
    background_fill_primary_dark="#1e1b19",
    background_fill_secondary="#f5f2ee",
    background_fill_secondary_dark="#262220",
    block_background_fill="#ffffff",
    block_background_fill_dark="#1e1b19",
    block_border_color="#e9e4dd",
    block_border_color_dark="#332e2a",
    border_color_primary="#e9e4dd",
    border_color_primary_dark="#332e2a",
    block_label_background_fill="transparent",
    block_label_background_fill_dark="transparent",
    block_label_border_width="0px",
    block_shadow="none",
    body_text_color="#292524",
    body_text_color_dark="#f0ece7",
    body_text_color_subdued="#78716c",
    body_text_color_subdued_dark="#a8a29e",
    button_primary_background_fill="#0f766e",
    button_primary_background_fill_hover="#115e59",
    button_primary_background_fill_dark="#14847b",
    button_primary_background_fill_hover_dark="#0f9b8e",
    button_primary_text_color="#ffffff",
    color_accent="#0f766e",
    color_accent_soft="#e6f2f0",
    color_accent_soft_dark="#12312e",
    slider_color="#0f766e",
    slider_color_dark="#2aa598",
    input_background_fill="#ffffff",
    input_background_fill_dark="#191715",
)


class _PageHead:
    """Puts style.css and page.js at the top of the page.

    Gradio's own `head` comes after the browser was asked for its language, and its `css` after the first paint.
    """

    texts = [pair for pair in (*WORDS.values(), *GRADIO_WORDS) if "{" not in pair[0]]
    head = b"<head><style>%b</style><script>const TEXTS = %b;\n%b</script>" % (
        (HERE / "style.css").read_bytes(),
        json.dumps(texts, ensure_ascii=False).replace("</", "<\\/").encode(),
        (HERE / "page.js").read_bytes(),
    )

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            return await self.app(scope, receive, send)

        async def send_with_head(message):
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0].lower() != b"content-length"]
            elif message["type"] == "http.response.body":
                message["body"] = message["body"].replace(b"<head>", self.head, 1)
            await send(message)

        await self.app(scope, receive, send_with_head)


PageHead = Middleware(_PageHead)
