"""What simple measurements say of a photo of one thing: grey or in colour, a plain background, sky, grass, its colour.

Every answer has a third value, None: it is not clear, and nothing is to be said of it. The thresholds were chosen by
eye on contact sheets of training photos.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 96  # pixels that are looked at
HUES = (  # up to this hue, degrees; red above
    ("红色", 14),
    ("橙色", 39),
    ("黄色", 68),
    ("绿色", 165),
    ("蓝色", 256),
    ("紫色", 300),
    ("粉色", 345),
)
PLAIN, CLOSE = 0.75, 0.13  # share of the edge that has one colour; what is the same colour, of 1
COLOURED, ONE_HUE = 0.25, 0.75  # share of a thing that has colours; share of these that has one
WITHOUT_HUE = 0.65  # share of a thing that is black, white or grey


@dataclass
class Facts:
    grey: bool  # a photo without colours
    background: str | None  # 白色, 黑色: all around it
    colour: str | None  # of most of the thing
    sky: str | None  # above: blue sky at the top; around: nothing but sky
    grass: bool  # at the bottom
    fills: bool  # the thing goes from edge to edge


def look_at(path, box=None) -> Facts:
    """`box`: where the thing is, x1, y1, x2, y2 in 0..1, if somebody knows."""
    with Image.open(path) as photo:
        pixels = np.asarray(photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32) / 255
    hue, saturation, value = hue_saturation_value(pixels)
    ring = np.ones((SIDE, SIDE), bool)
    ring[6:-6, 6:-6] = False
    grey = bool((saturation * value > 0.03).mean() < 0.01)
    edge = np.median(pixels[ring], axis=0)
    like_edge = np.abs(pixels - edge).max(axis=2) < CLOSE
    plain = like_edge[ring].mean() > PLAIN
    background = "白色" if plain and edge.min() > 0.9 else "黑色" if plain and edge.max() < 0.08 else None
    if plain:
        thing = ~like_edge
    elif box is not None:
        thing = inside(box, shrink=0.25)
    else:
        thing = np.zeros((SIDE, SIDE), bool)
    names = names_of_colours(hue, saturation, value)
    blue = (hue > 185) & (hue < 250) & (saturation > 0.2) & (value > 0.35)
    smooth = np.abs(np.diff(value, axis=0, append=value[-1:])) < 0.06
    top, bottom = np.s_[: SIDE // 4], np.s_[-SIDE // 5 :]
    sky = None
    if (blue & smooth)[top].mean() > 0.85:
        sky = "around" if (blue & smooth)[ring].mean() > 0.85 else "above"
    green = (hue > 62) & (hue < 160) & (saturation > 0.18) & (value > 0.12)
    colour = None if grey else main_colour(names[thing], names[ring])
    return Facts(
        grey=grey,
        background=background,
        colour=None if sky and colour == "蓝色" else colour,
        sky=sky,
        grass=bool(green[bottom].mean() > 0.8),
        fills=box is not None and (box[2] - box[0]) * (box[3] - box[1]) > 0.75,
    )


def hue_saturation_value(pixels):
    """RGB in 0..1 -> hue in degrees, saturation and value in 0..1."""
    value, least = pixels.max(axis=2), pixels.min(axis=2)
    span = np.maximum(value - least, 1e-6)
    red, green, blue = np.moveaxis(pixels, 2, 0)
    hue = np.where(
        value == red,
        (green - blue) / span % 6,
        np.where(value == green, (blue - red) / span + 2, (red - green) / span + 4),
    )
    return hue * 60, (value - least) / np.maximum(value, 1e-6), value


def inside(box, shrink):
    """The pixels in the middle of a box; `shrink`: share of its sides that is left out."""
    x1, y1, x2, y2 = box
    margins = (x2 - x1) * shrink / 2, (y2 - y1) * shrink / 2
    centres = (np.arange(SIDE) + 0.5) / SIDE
    columns = (centres > x1 + margins[0]) & (centres < x2 - margins[0])
    rows = (centres > y1 + margins[1]) & (centres < y2 - margins[1])
    return rows[:, None] & columns[None]


def names_of_colours(hue, saturation, value):
    """A name for every pixel; "" where it could be called this or that."""
    warm = (hue < 39) | (hue >= 345)
    return np.select(
        [
            value < 0.2,
            (saturation < 0.12) & (value > 0.75),
            saturation < 0.14,
            (saturation < 0.28) | warm & (saturation < 0.5) & (value > 0.75),  # skin, wood, rose
            (hue >= 10) & (hue < 39) & (value < 0.62),
            *(hue < end for _, end in HUES),
        ],
        ["黑色", "白色", "灰色", "", "棕色", *(name for name, _ in HUES)],
        "红色",
    )


def main_colour(names, around) -> str | None:
    """The colour by which one would call a thing of these pixels; None if there are few, or several, or it is the
    colour of what is around it."""
    if len(names) < 0.04 * SIDE**2:
        return None
    found, counts = np.unique(names, return_counts=True)
    shares = dict(zip(found.tolist(), (counts / len(names)).tolist(), strict=True))
    hues = {name: share for name, share in shares.items() if name and name not in ("黑色", "白色", "灰色")}
    best = max(hues, key=hues.get, default=None)
    if sum(hues.values()) > COLOURED:
        if hues[best] < ONE_HUE * sum(hues.values()):
            return None
    else:
        best = max(shares, key=shares.get)
        if shares[best] < WITHOUT_HUE or not best:
            return None
    light = (around == "白色").mean() > 0.5
    if (around == best).mean() > 0.3 or light and best == "灰色":  # a white thing in its own shadow
        return None
    return best
