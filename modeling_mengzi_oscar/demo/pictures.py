"""Pictures, as one PNG: captions with objects or the regions of highest attention, and regions with labels."""

import os
import tempfile
from pathlib import Path

import numpy as np
from noto_cjk import otc_path
from PIL import Image, ImageDraw, ImageFont

from ..confidence import MARK
from ..files import open_whole

SIMPLIFIED_CHINESE = 2  # face of the font collection
PHOTO_WIDTH, GAP, CAPTION_SIZE, NOTE_SIZE = 400, 16, 24, 14
PAPER, INK, GREY, BOX, DOUBT = "#ffffff", "#1a1a1a", "#6b6b6b", "#ff9d2e", "#b4530a"
MOST_LINES = 6  # of one caption or sentence
REGIONS_OUTLINED, LIKELY = 3, 0.4
WIDE_PHOTO, LIST_WIDTH, LABEL_SIZE, REGIONS_LISTED, ATTRIBUTES_LISTED = 640, 400, 16, 12, 3
COLOURS = ("#ff9d2e", "#4cc3ff", "#7be07b", "#ff7eb6", "#ffe14d", "#c9a6ff")


def draw_captions(photos, results, names, credits=None, notice=None) -> Image.Image:
    """One row per photo: the photo, the same with weighty regions bright and objects named, caption and score below,
    and a mark where the caption is probably wrong.

    Args:
        photos: RGB images. results: what `MengziOscarPipeline.caption` returned for them.
        names: shown beside the score. credits: per photo, or None. notice: one line at the foot.
    """
    cards = [
        draw_card(photo, result, name, credit)
        for photo, result, name, credit in zip(photos, results, names, credits or [None] * len(photos), strict=True)
    ]
    return arrange(cards, notice)


def arrange(cards, notice=None) -> Image.Image:
    """Cards of one width on a page, in two columns if there are more than two."""
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
    lines = wrap(result["caption"], CAPTION_SIZE, 2 * PHOTO_WIDTH)
    text_height = len(lines) * (CAPTION_SIZE + GAP // 2) + NOTE_SIZE + GAP
    card = Image.new("RGB", (2 * PHOTO_WIDTH, small.height + text_height), PAPER)
    card.paste(small, (0, 0))
    card.paste(highlight_regions(small, result, scale), (PHOTO_WIDTH, 0))
    draw = ImageDraw.Draw(card)
    top = small.height + GAP // 2
    for line in lines:
        draw.text((0, top), line, INK, font(CAPTION_SIZE))
        top += CAPTION_SIZE + GAP // 2
    note, left = f"{name}  ·  {result['score']:.2f}" + (f"  ·  {credit}" if credit else ""), 0
    if result.get("probably_wrong"):  # before the name, which may be long
        draw.text((0, top), MARK, DOUBT, font(NOTE_SIZE))
        left = round(font(NOTE_SIZE).getlength(MARK)) + GAP
    draw.text((left, top), fit(note, NOTE_SIZE, card.width - left), GREY, font(NOTE_SIZE))
    return card


def draw_found(found) -> Image.Image:
    """The photos that were found for sentences: under each sentence its photos, best first, with a note each.

    Args:
        found: per sentence (sentence, [(RGB image, note), ...]).
    """
    pages = [
        arrange([draw_noted(photo, f"{n}  ·  {note}") for n, (photo, note) in enumerate(photos, 1)])
        for _, photos in found
        if photos
    ]
    width, line_height = max(page.width for page in pages), CAPTION_SIZE + GAP // 2
    headings = [wrap(sentence, CAPTION_SIZE, width - 2 * GAP) for sentence, photos in found if photos]
    height = sum(page.height for page in pages) + sum(len(lines) * line_height + GAP for lines in headings)
    whole, top = Image.new("RGB", (width, height), PAPER), 0
    for lines, page in zip(headings, pages, strict=True):
        top += GAP // 2
        for line in lines:
            ImageDraw.Draw(whole).text((GAP, top), line, INK, font(CAPTION_SIZE))
            top += line_height
        whole.paste(page, (0, top + GAP // 2))
        top += GAP // 2 + page.height
    return whole


def draw_noted(photo, note) -> Image.Image:
    small = photo.resize((PHOTO_WIDTH, max(1, min(PHOTO_WIDTH * 2, round(PHOTO_WIDTH * photo.height / photo.width)))))
    card = Image.new("RGB", (PHOTO_WIDTH, small.height + NOTE_SIZE + GAP), PAPER)
    card.paste(small, (0, 0))
    text = fit(note, NOTE_SIZE, card.width)
    ImageDraw.Draw(card).text((0, small.height + GAP // 2), text, GREY, font(NOTE_SIZE))
    return card


def highlight_regions(small, result, scale) -> Image.Image:
    """The photo dimmed where no weighty region is; objects outlined and named, without any the weightiest regions."""
    weights = np.array(result["captions"][0]["region_weights"])  # (tokens, R)
    boxes = np.array([region["box"] for region in result["regions"]])  # (R, 4) pixels of the photo
    if weights.size == 0:
        return small
    weights = weights.mean(axis=0)
    corners = (boxes * np.array([*scale, *scale])).reshape(-1, 2, 2)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)  # a sliver's can be crossed
    heat = np.zeros((small.height, small.width))
    for weight, (x1, y1, x2, y2) in zip(weights / weights.max(), boxes.round().astype(int), strict=True):
        heat[y1:y2, x1:x2] = np.maximum(heat[y1:y2, x1:x2], weight)
    bright = (np.asarray(small) * (0.25 + 0.75 * heat[..., None])).astype(np.uint8)
    image = Image.fromarray(bright)
    if objects := best_objects(result["regions"]):
        photo_size = small.width / scale[0], small.height / scale[1]
        draw_labelled_boxes(image, objects, photo_size, [region["label"] for region in objects])
        return image
    draw = ImageDraw.Draw(image)
    for index in weights.argsort()[::-1][:REGIONS_OUTLINED]:
        draw.rectangle(boxes[index].tolist(), outline=BOX, width=2)
    return image


def best_objects(regions) -> list[dict]:
    """The objects that are worth a look, most probable first: a detector names many more that are not there."""
    likely = [region for region in regions if "label" in region and region["score"] >= LIKELY]
    return sorted(likely, key=lambda region: -region["score"])[:REGIONS_LISTED]


def draw_regions(found) -> Image.Image:
    """One card per photo: the photo with numbered boxes, and beside it what each number is, in both languages.

    Args:
        found: per photo (RGB image, name, regions, the same in English or None, tags of the whole photo). Regions
            are dicts with `box` in pixels of the photo and, of an object, `label`, `score` and perhaps `attributes`.
    """
    return arrange([draw_region_card(*photo) for photo in found])


def draw_region_card(photo, name, regions, english, tags) -> Image.Image:
    scale = WIDE_PHOTO / photo.width
    small = photo.resize((WIDE_PHOTO, max(1, min(WIDE_PHOTO * 2, round(photo.height * scale)))))
    lines = [(name, NOTE_SIZE, GREY)]
    objects = [region for region in regions if "label" in region]
    if objects:
        names = [f"{number} {region['label']}" for number, region in enumerate(objects, 1)][:REGIONS_LISTED]
        draw_labelled_boxes(small, objects[:REGIONS_LISTED], photo.size, names)
        for number, region in enumerate(zip(objects, english[: len(objects)], strict=True)):
            lines += region_lines(number, *region) if number < REGIONS_LISTED else []
        if len(objects) > REGIONS_LISTED:
            lines.append((f"… {len(objects)} objects in all", NOTE_SIZE, GREY))
    cells = [region for region in regions if "label" not in region]
    if cells and not objects:
        draw = ImageDraw.Draw(small)
        for region in cells:
            draw.rectangle(scaled(region["box"], photo.size, small.size), outline=BOX)
    lines += [(f"{len(cells)} cells", NOTE_SIZE, GREY)] if cells else []
    lines += [(tag, LABEL_SIZE, INK) for tag in tags]
    height = max(small.height, sum(size + GAP // 2 for _, size, _ in lines))
    card = Image.new("RGB", (WIDE_PHOTO + GAP + LIST_WIDTH, height), PAPER)
    card.paste(small, (0, 0))
    draw, top = ImageDraw.Draw(card), 0
    for text, size, colour in lines:
        draw.text((WIDE_PHOTO + GAP, top), fit(text, size, LIST_WIDTH), colour, font(size))
        top += size + GAP // 2
    return card


def region_lines(number, region, english):
    """The lines of one region beside the photo: label and score, then its best attributes."""
    yield f"{number + 1}  {region['label']}  {english['label']}  {region['score']:.2f}", LABEL_SIZE, INK
    pairs = list(zip(region.get("attributes", ()), english.get("attributes", ()), strict=True))[:ATTRIBUTES_LISTED]
    if pairs:
        words = "，".join(f"{zh['label']} {en['label']} {zh['score']:.2f}" for zh, en in pairs)
        yield f"    {words}", NOTE_SIZE, GREY


def draw_labelled_boxes(small, regions, size, names):
    """Boxes and, on their top left corners, their names; a name moves down where another one stands."""
    draw, taken = ImageDraw.Draw(small), []
    boxes = [scaled(region["box"], size, small.size) for region in regions]
    for number, box in enumerate(boxes):
        draw.rectangle(box, outline=COLOURS[number % len(COLOURS)], width=2)
    for number, (text, box) in enumerate(zip(names, boxes, strict=True)):
        width, height = font(LABEL_SIZE).getlength(text) + 6, LABEL_SIZE + 7
        x, y = min(box[0], small.width - width), min(box[1], small.height - height)
        while any(abs(y - b) < height and x < c and a < x + width for a, b, c in taken) and y < small.height - height:
            y += 1
        taken.append((x, y, x + width))
        draw.rectangle((x, y, x + width, y + height - 1), fill=COLOURS[number % len(COLOURS)])
        draw.text((x + 3, y - 1), text, INK, font(LABEL_SIZE))


def scaled(box, size, new_size) -> tuple[float, float, float, float]:
    """In pixels of the resized photo. A sliver's corners can be crossed: the detector counts whole pixels."""
    x1, y1, x2, y2 = np.array(box) * np.tile(np.array(new_size) / size, 2)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def fit(text, size, width) -> str:
    """The text on one line, cut with an ellipsis where it is longer than `width` pixels."""
    text = on_one_line(text)
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def wrap(text, size, width) -> list[str]:
    """The text on as many lines of `width` pixels as it takes; what is longer than `MOST_LINES` is cut."""
    text, lines = on_one_line(text), []
    while font(size).getlength(text) > width and len(lines) < MOST_LINES - 1:
        end = next(end for end in range(len(text), 0, -1) if end == 1 or font(size).getlength(text[:end]) <= width)
        if text[end - 1 : end + 1].isascii() and " " in text[:end]:
            end = text.rindex(" ", 0, end) + 1  # words stay whole
        elif text[end] in "，。、；：！？”）" and end > 1:
            end -= 1  # no line begins with a stop
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*lines, fit(text, size, width)]


def on_one_line(text) -> str:
    return " ".join(text.split()).encode(errors="backslashreplace").decode()  # names can be no Unicode


def font(size) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(otc_path("sans"), size, index=SIMPLIFIED_CHINESE)


def check_picture(path, photos=()) -> None:
    """Tries whether `save_picture` will be able to write, before the work.

    Args:
        photos: paths that the picture must not replace.

    Raises:
        ValueError: no .png, a folder, a photo, or a place where nothing can be written.
    """
    path = Path(path)
    try:
        if path.suffix.lower() != ".png":
            raise ValueError(f"--picture {path}: pictures are PNG files; name it {path.stem}.png")
        if path.is_dir():
            raise ValueError(f"--picture {path}: is a folder; name a file in it, e.g. {path / 'picture.png'}")
        if not path.parent.is_dir():
            raise ValueError(f"--picture {path}: no such folder; create it first")
        if path.exists() and any(os.path.exists(photo) and path.samefile(photo) for photo in photos):
            raise ValueError(f"--picture {path}: is one of the photos; name another file")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"--picture {path}: cannot be written ({error.strerror})") from None


def save_picture(picture: Image.Image, path) -> None:
    """PNG, written beside and renamed."""
    with open_whole(path) as file:
        picture.save(file, format="PNG")
