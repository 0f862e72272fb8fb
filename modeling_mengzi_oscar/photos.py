"""Opens what a user calls a photo: upright, RGB, and or a one-line error that says what is wrong with it."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no vector formats, nothing that calls other programs
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class PhotoError(ValueError):
    """One line: which photo, what is wrong with it, what to do."""


def open_photo(source, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A path, a PIL image or an array (H, W), (H, W, 3 or 4) uint8 -> an RGB image, turned as its EXIF data says.

    Transparency is put on white, 16-bit grey is scaled to 8 bits, of an animation the first frame is taken.

    Raises:
        PhotoError: missing, empty, truncated, not an image of `FORMATS`, or of more than `max_pixels` pixels.
    """
    if isinstance(source, np.ndarray):
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        check_size(source, "the image", max_pixels)
        return to_rgb(ImageOps.exif_transpose(source))
    path = Path(source)
    if not path.exists():
        raise PhotoError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise PhotoError(f"{path}: is a folder; name the photos in it, e.g. {path}/*.jpg")
    if path.stat().st_size == 0:
        raise PhotoError(f"{path}: the file is empty (0 bytes); download or copy it again")
    try:
        with Image.open(path, formats=FORMATS) as image:
            check_size(image, path, max_pixels)
            return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise PhotoError(f"{path}: not a photo we can read; save it as JPEG, PNG or WebP") from None
    except Image.DecompressionBombError:
        raise PhotoError(f"{path}: far too many pixels; scale it down to {max_pixels:,} or fewer") from None
    except PhotoError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged data
        raise PhotoError(f"{path}: damaged ({error}); download or copy it again") from None


def check_size(image, name, max_pixels):
    if image.width * image.height > max_pixels:
        raise PhotoError(
            f"{name}: {image.width} x {image.height} pixels are more than {max_pixels:,}; scale it down first"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # convert("RGB") would cut everything above 255
        values = np.asarray(image, dtype=np.float32)
        top = 65535 if image.mode.startswith("I") else max(float(values.max()), 1.0)
        image = Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def find_photos(folder) -> dict[str, Path]:
    """Every photo under a folder: {path relative to it, without suffix: path}, sorted.

    Raises:
        PhotoError: no photo there, or two whose ids are the same but for the suffix.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PhotoError(f"{folder}: no such folder; check the path")
    photos = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            image_id = path.relative_to(folder).with_suffix("").as_posix()
            if image_id in photos:
                raise PhotoError(f"{path} and {photos[image_id]} would both be {image_id!r}; rename one of them")
            photos[image_id] = path
    if not photos:
        raise PhotoError(f"{folder}: holds no photos ({', '.join(SUFFIXES)})")
    return photos
