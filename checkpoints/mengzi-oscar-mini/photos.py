"""Opens what a user calls a photo: upright, RGB, and or a one-line error that says what is wrong with it."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no vector formats, nothing that calls other programs
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class PhotoError(ValueError):
    """One line: which photo, what is wrong with it, what to do."""


def open_photo(source, max_pixels: int = MAX_PIXELS, name: str = "the photo") -> Image.Image:
    """A path, bytes of a file, PIL image or array (H, W), (H, W, 3 or 4) uint8 -> RGB, turned as its EXIF data says.

    Transparency is put on white, 16-bit grey is scaled to 8 bits, of an animation the first frame is taken.
    `name` stands in messages where the source has no path.

    Raises:
        PhotoError: missing, empty, truncated, not an image of `FORMATS`, or of more than `max_pixels` pixels.
    """
    if isinstance(source, np.ndarray):
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        check_size(source, name, max_pixels)
        return to_rgb(ImageOps.exif_transpose(source))
    if isinstance(source, bytes):
        file, size = io.BytesIO(source), len(source)
    else:
        name = file = Path(source)
        if not file.exists():
            raise PhotoError(f"{name}: no such file; check the path")
        if file.is_dir():
            raise PhotoError(f"{name}: is a folder; name the photos in it, e.g. {name}/*.jpg")
        size = file.stat().st_size
    if size == 0:
        raise PhotoError(f"{name}: the file is empty (0 bytes); download or copy it again")
    try:
        with Image.open(file, formats=FORMATS) as image:
            check_size(image, name, max_pixels)
            return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise PhotoError(f"{name}: not a photo we can read; save it as JPEG, PNG or WebP") from None
    except Image.DecompressionBombError:
        raise PhotoError(f"{name}: far too many pixels; scale it down to {max_pixels:,} or fewer") from None
    except PhotoError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged data
        raise PhotoError(f"{name}: damaged ({error}); download or copy it again") from None


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
