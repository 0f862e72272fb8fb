"""Opens what a user calls a photo: upright and RGB, or a one-line error that says what is wrong with it.

Only pixels count. What else a file carries (EXIF, colour profiles, texts, dates) is cut out before Pillow sees it, so
that none of it can stop a photo that others show or cost memory; the orientation alone is read, here.
"""

import io
import os
import re
import stat
import struct
import zlib
from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath

import numpy as np
from PIL import Image

MAX_PIXELS = 64_000_000
MAX_BYTES, BYTES_PER_PIXEL = 2**28, 8  # of a file that is read; RGBA of 16 bits has 8
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # no vector formats, nothing that calls other programs
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".heic", ".heif", ".hif", ".avif"),
)
PATH = (str, os.PathLike)
UNNAMED = "the photo"
URL_SAFE = str.maketrans("-_", "+/")  # base64 of either alphabet
HEAD = 64  # bytes that tell what a file is
CHANNELS = (1, 3, 4)
ROUNDING = 1e-3  # of floats that were computed
TURNS = {  # EXIF orientation -> what puts the photo upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112
MAX_TEXT = 2**20  # bytes of a packed text that may hold an orientation


class PhotoError(ValueError):
    """One line: which photo, what is wrong with it, what to do.

    Args:
        reason: the same in a word, for programs: "not_a_photo", "damaged", "too_many_pixels", "needs_library" or "".
        size: width and height of a photo of too many pixels, where they are known.
    """

    def __init__(self, message, reason="", size=None):
        super().__init__(one_line(message))
        self.reason, self.size = reason, size


def one_line(text: str) -> str:
    """Line ends and other signs that do not print, as file names may have them, spelled out; the middle of long texts
    left out."""
    text = re.sub(r"[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda sign: repr(sign[0])[1:-1], str(text))
    return text if len(text) <= 2000 else f"{text[:900]} … {text[-900:]}"


def is_photo_name(name) -> bool:
    """Whether a file of this name, or path below a folder, counts as a photo: one of `SUFFIXES`, and not hidden.

    Hidden is what begins with a dot or lies in such a folder: macOS writes `._name.jpg` and `__MACOSX/` beside photos.
    """
    return str(name).lower().endswith(SUFFIXES) and not is_hidden(name)


def is_hidden(name) -> bool:
    parts = str(name).replace("\\", "/").split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)


def is_apple_double(name) -> bool:
    """Whether macOS wrote this file beside a photo (`._name.jpg`): a shell's `*` names it, and it never is one."""
    return PurePath(str(name)).name.startswith("._")


def is_photo_by_content(path) -> bool:
    """Whether a file that does not count by its name is a photo all the same. Nothing that may block is opened."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0 or is_apple_double(path):
            return False
        with open(path, "rb") as file:
            return photo_kind(file.read(HEAD)) is not None
    except OSError:
        return False


def photo_kind(content: bytes) -> str | None:
    """JPEG, PNG, ..., HEIF by the first bytes of a file; None: not a photo."""
    if content[4:8] == b"ftyp":
        brands = {content[8:12], *re.findall(b"(?s)....", content[16 : min(int.from_bytes(content[:4]), 256)])}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        return "HEIF" if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"} else None
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    if content.startswith(b"BM") and content[6:10] == bytes(4):  # two letters may begin a text
        return "BMP"
    beginnings = {
        "JPEG": b"\xff\xd8\xff",
        "PNG": b"\x89PNG\r\n\x1a\n",
        "GIF": (b"GIF87a", b"GIF89a"),
        "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    }
    return next((kind for kind, beginning in beginnings.items() if content.startswith(beginning)), None)


def open_photo(source, max_pixels: int = MAX_PIXELS, name: str = UNNAMED) -> Image.Image:
    """Whatever holds a photo -> RGB, turned as its EXIF data says.

    Transparency is put on white, 16-bit grey is scaled to 8 bits, of an animation the first frame is taken. The
    `filename` of the result is the photo's name, where it has one, for messages about it.

    Args:
        source: a path; the bytes of a file, or an object with `read` that gives them; a PIL image; an array or tensor
            as `array_to_image` takes it; a row {"bytes", "path"} of `datasets`.
        max_pixels: larger photos are refused, before they are decoded.
        name: stands in messages where the source has no path.

    Raises:
        PhotoError: missing, empty, damaged, not an image of `FORMATS` or HEIF, without a pixel, of more than
            `max_pixels` pixels, or nothing of the above.
    """
    if isinstance(source, Mapping) and (source.get("bytes") is not None or source.get("path")):
        name = source.get("path") or name
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    known_as = source if isinstance(source, PATH) else getattr(source, "filename", "") or getattr(source, "name", "")
    name = os.fsdecode(known_as) if known_as and isinstance(known_as, (*PATH, bytes)) else name
    try:
        if isinstance(source, Image.Image):
            photo = from_image(source, name, max_pixels)
        elif hasattr(source, "__array__") and not isinstance(source, (str, bytes)):  # numpy has such of its own
            photo = to_rgb(array_to_image(source, name, max_pixels))
        else:
            photo = decode(read(source, name, max_pixels), name, max_pixels)
    except MemoryError:
        raise PhotoError(f"{name}: there is not enough memory to open it; scale it down first") from None
    if name != UNNAMED:
        photo.filename = name
    return photo


def read(source, name, max_pixels) -> bytes:
    """The content of a path or open file. Nothing that may block is opened."""
    max_bytes = max(MAX_BYTES, BYTES_PER_PIXEL * max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        content = bytes(source)
    elif isinstance(source, PATH):
        content = read_path(source, name, max_bytes)
    elif hasattr(source, "read"):
        try:
            if hasattr(source, "seek"):
                with suppress(io.UnsupportedOperation):
                    source.seek(0)
            content = source.read(max_bytes + 1)
        except Exception as error:  # closed, a folder, whatever a file of somebody else's raises
            raise PhotoError(f"{name}: cannot be read ({error}); open the file again, in binary") from None
        if not isinstance(content, bytes):
            raise PhotoError(f"{name}: a file opened as text; open it in binary, open(path, 'rb')")
    else:
        raise PhotoError(
            f"{name}: a {type(source).__name__} is not a photo; give a path, bytes, a PIL image or an array, "
            "several as a list of them"
        )
    if not content:
        raise PhotoError(f"{name}: the file is empty (0 bytes); download or copy it again", "not_a_photo")
    if len(content) > max_bytes:
        raise too_many_bytes(name, max_bytes)
    return content


def sent_photo(photo):
    """A photo as a client of a server sends it, for `open_photo`. Never a path, so nobody reads the server's files.

    Args:
        photo: base64 of a file, also as a data URL; what the server made of a body that is the photo: bytes, PIL image.

    Raises:
        PhotoError: anything else.
    """
    if isinstance(photo, (bytes, Image.Image)):
        return photo
    if not isinstance(photo, str):
        raise PhotoError(f"{UNNAMED}: {type(photo).__name__} in its place; send the base64 text of the file")
    if is_address(photo) and not photo.startswith("data:"):
        raise PhotoError(f"{UNNAMED}: addresses are not fetched; send the base64 text of the file")
    text = re.sub(r"\s", "", photo.rpartition(",")[2]).rstrip("=")
    try:
        return b64decode(text.translate(URL_SAFE) + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise PhotoError(f"{UNNAMED}: is not in base64; send the base64 text of the file") from None


def is_address(path) -> bool:
    """Whether it is a URL, which must not become a `Path`: that would leave out one of its slashes."""
    return bool(re.match(r"(https?|ftp|s3|gs|file|hf)://?|data:", str(path), flags=re.IGNORECASE))


def read_path(path, name, max_bytes) -> bytes:
    if is_address(path):
        raise PhotoError(f"{name}: addresses are not fetched; download the photo first, then give its path")
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise PhotoError(f"{name}: is a folder; name the photos in it, e.g. {os.path.join(name, '*.jpg')}")
        if not stat.S_ISREG(status.st_mode):
            raise PhotoError(f"{name}: a device, pipe or socket, not a file; save the photo as a file first")
        if status.st_size == 0:  # not opened: some files of /proc wait for the kernel
            return b""
        if status.st_size > max_bytes:
            raise too_many_bytes(name, max_bytes)
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)
    except PhotoError:
        raise
    except FileNotFoundError:
        raise PhotoError(f"{name}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # no permission, a name too long or with a NUL, a disk that fails
        raise PhotoError(f"{name}: {getattr(error, 'strerror', None) or error}; check the path") from None


def decode(content: bytes, name, max_pixels) -> Image.Image:
    """Bytes of a file -> RGB, upright."""
    kind = photo_kind(content)
    if content.startswith(b"\0\x05\x16\x07"):
        raise PhotoError(f"{name}: a macOS metadata file, not the photo; name the file without ._")
    if kind is None:
        raise PhotoError(f"{name}: not a photo we can read; save it as JPEG, PNG or WebP", "not_a_photo")
    if kind == "HEIF":
        return decode_heif(content, name, max_pixels)
    if kind == "AVIF" and not avif_is_there():
        raise PhotoError(f"{name}: AVIF needs a Pillow that reads it: pip install -U pillow", "needs_library")
    content, orientation = ONLY_PIXELS[kind](content) if kind in ONLY_PIXELS else (content, None)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            check_size(image.size, name, max_pixels)
            image.load()
            return upright(image, orientation_of_image(image) if orientation is None else orientation)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_many_pixels(name, max_pixels) from None
    except (PhotoError, MemoryError):
        raise
    except Exception as error:  # each decoder raises its own kinds for damaged data
        raise damaged(name, error, kind) from None


def decode_heif(content, name, max_pixels) -> Image.Image:
    """iPhones write HEIF. libheif turns the photo as the file says, and bounds its own memory."""
    try:
        from pillow_heif import open_heif
    except ImportError:
        raise PhotoError(f"{name}: HEIC needs pillow-heif: pip install pillow-heif", "needs_library") from None
    try:
        image = open_heif(without_metadata_items(content)[0])
        check_size(image.size, name, max_pixels)
        return to_rgb(image.to_pillow())
    except (PhotoError, MemoryError):
        raise
    except Exception as error:
        raise damaged(name, error, "HEIF") from None


def avif_is_there() -> bool:
    from PIL import features

    return features.check("avif")


def damaged(name, error, kind):
    if isinstance(error, Image.UnidentifiedImageError):  # which names nothing but the object
        error = f"its {kind} data cannot be understood"
    return PhotoError(f"{name}: damaged ({error or type(error).__name__}); download or copy it again", "damaged")


def too_many_bytes(name, max_bytes):
    return PhotoError(f"{name}: more than {max_bytes:,} bytes; scale it down first", "too_many_pixels")


def too_many_pixels(name, max_pixels, size=None):
    found = f"{size[0]} x {size[1]} pixels are more than {max_pixels:,}" if size else "far too many pixels"
    return PhotoError(f"{name}: {found}; scale it down to {max_pixels:,} or fewer first", "too_many_pixels", size=size)


def check_size(size, name, max_pixels=None):
    """Raises PhotoError where there is no pixel, or more than `max_pixels`."""
    width, height = size
    if width < 1 or height < 1:
        raise PhotoError(f"{name}: {width} x {height} pixels: an empty side, nothing to see")
    if max_pixels is not None and width * height > max_pixels:
        raise too_many_pixels(name, max_pixels, (width, height))


def from_image(image: Image.Image, name, max_pixels) -> Image.Image:
    """RGB, upright, of a PIL image that somebody else opened; its pixels may not have been read yet."""
    check_size(image.size, name, max_pixels)
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:
        file = getattr(image, "fp", None)
        if file is None or getattr(file, "closed", False):
            raise PhotoError(
                f"{name}: its file was closed before its pixels were read; give the path, or call load() earlier"
            ) from None
        return decode(read(file, name, max_pixels), name, max_pixels)  # it may be something else than its pixels
    try:
        return upright(image, orientation_of_image(image))
    except ValueError as error:
        raise PhotoError(f"{name}: a PIL image of mode {image.mode} that has no RGB ({error})") from None


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """RGB, turned."""
    image = to_rgb(image)
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def orientation_of_image(image) -> int:
    """Of a PIL image that somebody else opened."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # what is wrong with its metadata is no concern of its pixels
        value = None
    if value is None and isinstance(
        record := image.info.get("exif"), bytes
    ):  # Pillow gives up where the rest is broken
        value = orientation_in(record)
    return value if value in TURNS else 1


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # convert("RGB") would cut everything above 255
        values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0)
        top = 65535 if image.mode.startswith("I") else max(float(values.max()), 1.0)
        image = Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def array_to_image(values, name: str = UNNAMED, max_pixels: int | None = None) -> Image.Image:
    """An array or tensor -> PIL image.

    Args:
        values: (H, W), (H, W, C) or (C, H, W) with C = 1, 3 (RGB) or 4 (RGBA); where both would do, C stands last.
            Whole numbers are 0..255 (uint16 with larger values: 0..65535), floats 0..1, or 0..255 where the largest is
            at least 16; booleans are black and white.
        name: for messages.
        max_pixels: None: no limit.

    Raises:
        PhotoError: another shape or type, an empty side, or values whose range is not one of these.
    """
    values = to_numpy(values, name)
    shape = values.shape
    if values.ndim == 3 and shape[-1] not in CHANNELS and shape[0] in CHANNELS:
        values = np.moveaxis(values, 0, -1)  # channels first, as torchvision reads photos
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in CHANNELS):
        several = "; give several photos as a list" if values.ndim == 4 else ""
        raise PhotoError(
            f"{name}: an array of shape {shape}; give (height, width, 3) or (3, height, width) RGB, or (height, width) "
            f"grey{several}"
        )
    check_size((values.shape[1], values.shape[0]), name, max_pixels)
    values = to_uint8(values, name)
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2:] == (1,) else values))


def to_numpy(values, name) -> np.ndarray:
    try:
        if hasattr(values, "detach"):  # a tensor of torch, wherever it is; numpy has no bfloat16
            values = values.detach().cpu()
            values = values.float() if values.is_floating_point() else values
        return np.asarray(values)
    except Exception as error:
        raise PhotoError(f"{name}: a {type(values).__name__} that is no array ({error})") from None


def to_uint8(values: np.ndarray, name) -> np.ndarray:
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == "b":
        return values.astype(np.uint8) * 255
    if kind not in "iuf":
        raise PhotoError(f"{name}: an array of type {values.dtype}; give uint8 from 0 to 255")
    low, high = values.min(), values.max()
    if low >= 0 and kind in "iu" and high <= 255:
        return values.astype(np.uint8)
    if values.dtype == np.uint16:
        return (values // 257).astype(np.uint8)
    if kind == "f" and low >= -ROUNDING and (high <= 1 + ROUNDING or 16 <= high <= 255 + ROUNDING):
        return (values.astype(np.float32) * (1 if high >= 16 else 255) + 0.5).clip(0, 255).astype(np.uint8)
    raise PhotoError(
        f"{name}: an array of {values.dtype} from {low:g} to {high:g}, neither 0 to 1 nor 0 to 255; undo what was done "
        "to it (normalisation), or give uint8 from 0 to 255"
    )


# What follows cuts out of a file all that is not pixels. Each function takes and returns a file's bytes, and with them
# the orientation that was found (1: none; None: Pillow knows it without the metadata). Where a file is not built as its
# format says the rest stays as it is, and Pillow says what is wrong with it.


def only_pixels_of_jpeg(content: bytes) -> tuple[bytes, int]:
    kept, texts, at = [content[:2]], [], 2
    while at + 4 <= len(content):
        if content[at] != 0xFF or content[at + 1] in (0x00, 0xFF):  # filled up, or not as it should be
            at += 1
            continue
        marker, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4])
        if marker == 0xDA or 0xD0 <= marker <= 0xD9 or end > len(content):  # the scan begins
            break
        segment = content[at + 4 : end]
        says_colours = (marker == 0xE0 and segment.startswith(b"JFIF\0") and len(segment) >= 14) or (
            marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12
        )
        if says_colours or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(content[at:end])
        elif marker == 0xE1:
            texts.append(segment)
        at = end
    exif = b"".join(text.removeprefix(b"Exif\0\0") for text in texts if text.startswith(b"Exif\0\0"))
    return b"".join((*kept, content[at:])), orientation_in(exif, b"".join(texts))


def only_pixels_of_png(content: bytes) -> tuple[bytes, int]:
    kept, exif, xmp, at = [content[:8]], b"", b"", 8
    while at + 12 <= len(content):
        name, end = content[at + 4 : at + 8], at + 12 + int.from_bytes(content[at : at + 4])
        if end > len(content) or not name.isalpha():
            break
        if name[:1].isupper() or name == b"tRNS":  # a capital: it is needed to show the image
            kept.append(content[at:end])
        elif name == b"eXIf":
            exif = content[at + 8 : end - 4]
        elif name == b"iTXt" and content[at + 8 :].startswith(b"XML:com.adobe.xmp\0"):
            xmp = content[at + 8 : end - 4]
        elif name in (b"zTXt", b"tEXt") and content.startswith(b"Raw profile type exif\0", at + 8) and not exif:
            exif = raw_profile(content[at + 30 : end - 4], packed=name == b"zTXt")
        at = end
    return b"".join((*kept, content[at:])), orientation_in(exif, xmp)


def raw_profile(text, packed) -> bytes:
    """EXIF as ImageMagick writes it into a text: a line "exif", a line with the length, then hexadecimal numbers."""
    try:
        text = zlib.decompressobj().decompress(text[1:], MAX_TEXT) if packed else text
        return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except (zlib.error, ValueError):
        return b""


def only_pixels_of_webp(content: bytes) -> tuple[bytes, int]:
    kept, exif, xmp, at = [], b"", b"", 12
    while at + 8 <= len(content):
        name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        if name == b"EXIF":
            exif = content[at + 8 : end]
        elif name == b"XMP ":
            xmp = content[at + 8 : end]
        elif name == b"VP8X" and size >= 10:
            flags = content[at + 8] & ~0x2C  # no profile, EXIF and XMP from here on
            kept.append(content[at : at + 8] + bytes([flags]) + content[at + 9 : end])
        elif name in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            kept.append(content[at:end])
        at = end
    chunks = b"".join(kept)
    return b"RIFF" + (len(chunks) + 4).to_bytes(4, "little") + b"WEBP" + chunks, orientation_in(exif, xmp)


def only_pixels_of_tiff(content: bytes) -> tuple[bytes, None]:
    """The first directory with the tags that say how to read pixels; Pillow turns a TIFF itself, by its tag."""
    order, big = ("little" if content[:2] == b"II" else "big"), 0x2B in content[2:4]
    start, count_size, entry_size = (8, 8, 20) if big else (4, 2, 12)
    at = int.from_bytes(content[start : 2 * start], order)
    count = int.from_bytes(content[at : at + count_size], order)
    first = at + count_size
    if not 0 < count <= 4096 or first + count * entry_size > len(content):
        return content, None
    entries = (content[first + i * entry_size :][:entry_size] for i in range(count))
    kept = [entry for entry in entries if int.from_bytes(entry[:2], order) in TIFF_TAGS]
    directory = len(kept).to_bytes(count_size, order) + b"".join(kept) + bytes(start)  # no further page
    return content[:at] + directory + content[at + len(directory) :], None


TIFF_TAGS = {*range(254, 267), *range(273, 282), 284, *range(290, 294), 301, *range(317, 330), *range(332, 348)}
TIFF_TAGS |= {*range(512, 533), ORIENTATION, 34925, 50674}


def without_metadata_items(content: bytes) -> tuple[bytes, None]:
    """HEIF and AVIF, whose items of EXIF and XMP get a kind that nobody knows. Their orientation is in other boxes, and
    by their standards counts alone."""
    return re.sub(rb"(?s)(infe(?:\x02.{5}|\x03.{7})..)(?:Exif|mime)", rb"\1none", content), None


ONLY_PIXELS = {
    "JPEG": only_pixels_of_jpeg,
    "PNG": only_pixels_of_png,
    "WEBP": only_pixels_of_webp,
    "TIFF": only_pixels_of_tiff,
    "AVIF": without_metadata_items,
}


def orientation_in(exif: bytes | None, xmp: bytes = b"") -> int:
    """1 to 8, of an EXIF record, else of XMP; 1 where neither says it or it cannot be read."""
    exif = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        [start] = struct.unpack_from(f"{order}I", exif, 4)
        [count] = struct.unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, at)
            if tag == ORIENTATION:
                [value] = struct.unpack_from(
                    order + {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}[kind], exif, at + 8
                )
                return value if value in TURNS else 1
    except (struct.error, TypeError, KeyError):  # cut short, or no record at all
        pass
    found = re.search(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])", xmp)
    return int(found[1]) if found else 1
