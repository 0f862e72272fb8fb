"""Captions one can look at: photo, caption, and the regions that weighed most, as one PNG."""

import io
import os
from pathlib import Path

import numpy as np
from noto_cjk import otc_path
from PIL import Image, ImageDraw, ImageFont

SIMPLIFIED_CHINESE = 2  # face of the font collection
PHOTO_WIDTH, GAP, CAPTION_SIZE, NOTE_SIZE = 400, 16, 24, 14
PAPER, INK, GREY, BOX = "#ffffff", "#1a1a1a", "#6b6b6b", "#ff9d2e"
REGIONS_OUTLINED = 3


def draw_captions(photos, results, names, credits=None, notice=None) -> Image.Image:
    """One row per photo: the photo, the same with its weighty regions bright, caption and score below.

    Args:
        photos: RGB images. results: what `MengziOscarPipeline.caption` returned for them.
        names: shown beside the score. credits: per photo, or None. notice: one line at the foot.
    """
    cards = [
        draw_card(photo, result, name, credit)
        for photo, result, name, credit in zip(photos, results, names, credits or [None] * len(photos), strict=True)
    ]
    columns = 1 if len(cards) < 3 else 2
    width = columns * (cards[0].width + GAP) + GAP
    rows = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    heights = [max(card.height for card in row) + GAP for row in rows]
    page = Image.new("RGB", (width, sum(heights) + GAP + (NOTE_SIZE + GAP if notice else 0)), PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            page.paste(card, (GAP + column * (card.width + GAP), top))
        top += height
    if notice:
        ImageDraw.Draw(page).text((GAP, top), fit(notice, NOTE_SIZE, width - 2 * GAP), GREY, font(NOTE_SIZE))
    return page


def draw_card(photo, result, name, credit=None) -> Image.Image:
    small = photo.resize((PHOTO_WIDTH, max(1, min(PHOTO_WIDTH * 2, round(PHOTO_WIDTH * photo.height / photo.width)))))
    scale = small.width / photo.width, small.height / photo.height
    text_height = CAPTION_SIZE + NOTE_SIZE + 3 * GAP // 2
    card = Image.new("RGB", (2 * PHOTO_WIDTH, small.height + text_height), PAPER)
    card.paste(small, (0, 0))
    card.paste(highlight_regions(small, result, scale), (PHOTO_WIDTH, 0))
    draw = ImageDraw.Draw(card)
    top = small.height + GAP // 2
    draw.text((0, top), fit(result["caption"], CAPTION_SIZE, card.width), INK, font(CAPTION_SIZE))
    note = f"{name}  ·  {result['score']:.2f}" + (f"  ·  {credit}" if credit else "")
    draw.text((0, top + CAPTION_SIZE + GAP // 2), fit(note, NOTE_SIZE, card.width), GREY, font(NOTE_SIZE))
    return card


def highlight_regions(small, result, scale) -> Image.Image:
    """The photo dimmed where no weighty region is, the weightiest regions outlined."""
    weights = np.array(result["captions"][0]["region_weights"])  # (tokens, R)
    boxes = np.array([region["box"] for region in result["regions"]])  # (R, 4) pixels of the photo
    if weights.size == 0:
        return small
    weights = weights.mean(axis=0)
    boxes = boxes * np.array([*scale, *scale])
    heat = np.zeros((small.height, small.width))
    for weight, (x1, y1, x2, y2) in zip(weights / weights.max(), boxes.round().astype(int), strict=True):
        heat[y1:y2, x1:x2] = np.maximum(heat[y1:y2, x1:x2], weight)
    bright = (np.asarray(small) * (0.25 + 0.75 * heat[..., None])).astype(np.uint8)
    image = Image.fromarray(bright)
    draw = ImageDraw.Draw(image)
    for index in weights.argsort()[::-1][:REGIONS_OUTLINED]:
        draw.rectangle(boxes[index].tolist(), outline=BOX, width=2)
    return image


def fit(text, size, width) -> str:
    """The text, cut with an ellipsis where it is longer than `width` pixels."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def font(size) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(otc_path("sans"), size, index=SIMPLIFIED_CHINESE)


def save_picture(picture: Image.Image, path) -> None:
    """PNG, written beside and renamed."""
    path = Path(path)
    content = io.BytesIO()
    picture.save(content, format="PNG")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.getvalue())
    os.replace(temporary, path)
