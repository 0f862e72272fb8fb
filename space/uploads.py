"""What people send, and what of it is let in: bytes, pixels, formats, zips. Nothing is ever unpacked to disk."""

import base64
import io
import os
import re
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from gradio.utils import get_upload_folder
from PIL import Image
from words import UserError

from modeling_mengzi_oscar.photos import FORMATS, SUFFIXES, PhotoError, open_photo

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
MAX_SIDE = 1600  # pixels kept: more than any region model looks at
MIN_SIDE = 8
MAX_PHOTOS = 100
MAX_UNPACKED, MAX_RATIO = 400 * 2**20, 100  # of a zip
MAX_DIRECTORY = 2**20  # bytes that the list of files in a zip may take

decoding = threading.BoundedSemaphore(2)  # a photo of 50 megapixels takes 150 MB while it is open


def read_photo(source: str | Path | bytes) -> Image.Image:
    """Path or bytes -> RGB, upright, no side above `MAX_SIDE`.

    Raises:
        UserError: too many bytes or pixels, not a photo, damaged.
    """
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    if size > MAX_BYTES:
        raise UserError("too_many_bytes", megabytes=round(size / 2**20), limit=MAX_BYTES // 2**20)
    with decoding:
        check_pixels(source)
        try:
            photo = open_photo(source, max_pixels=MAX_PIXELS)
        except PhotoError:
            raise UserError("damaged") from None
        photo.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return photo


def check_pixels(source: str | Path | bytes) -> None:
    """Reads the header only."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise UserError("too_many_pixels", width="…", height="…", limit=MAX_PIXELS // 10**6) from None
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for what it does not know
        raise UserError("not_a_photo") from None
    if width * height > MAX_PIXELS:
        raise UserError("too_many_pixels", width=width, height=height, limit=MAX_PIXELS // 10**6)
    if min(width, height) < MIN_SIDE:
        raise UserError("too_small", width=width, height=height)


def photos_in(files: list[tuple[str, str]]) -> list[tuple[str, object]]:
    """(name, path) of uploads, zips among them -> (name, function that reads the photo).

    Raises:
        UserError: a zip that is not let in, too many photos, none at all.
    """
    found = []
    for name, path in files:
        if name.lower().endswith(".zip"):
            found += [(inside, reader(path, inside)) for inside in names_in_zip(path)]
        else:
            found.append((name, lambda path=path: read_photo(path)))
        if len(found) > MAX_PHOTOS:
            raise UserError("too_many_photos", limit=MAX_PHOTOS)
    if not found:
        raise UserError("no_photos")
    return found


def reader(path, inside):
    def read():
        try:
            with zipfile.ZipFile(path) as archive, archive.open(inside) as file:
                content = file.read(MAX_BYTES + 1)
        except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, ValueError):
            raise UserError("damaged") from None
        except Exception as error:  # zlib.error, lzma.LZMAError: each decompressor has its own
            if type(error).__module__ in ("zlib", "lzma", "_lzma", "bz2"):
                raise UserError("damaged") from None
            raise
        return read_photo(content)

    return read


def names_in_zip(path) -> Iterator[str]:
    """Names of the photos in a zip, after it was found harmless.

    Raises:
        UserError: not a zip, encrypted, too large when unpacked, or with names that lead elsewhere.
    """
    if Path(path).stat().st_size > MAX_BYTES:
        raise UserError("too_many_bytes", megabytes=round(Path(path).stat().st_size / 2**20), limit=MAX_BYTES // 2**20)
    check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error):
        raise UserError("bad_zip") from None
    for entry in entries:
        parts = PurePosixPath(entry.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in entry.filename:
            raise UserError("zip_names")
        if entry.flag_bits & 1:
            raise UserError("zip_encrypted")
    unpacked = sum(entry.file_size for entry in entries)
    ratio = max((entry.file_size / max(entry.compress_size, 1) for entry in entries), default=0)
    if unpacked > MAX_UNPACKED or ratio > MAX_RATIO:
        raise UserError("zip_too_big", limit=MAX_UNPACKED // 2**20, ratio=MAX_RATIO)
    hidden = ("__MACOSX/", ".")  # what macOS adds
    names = [entry.filename for entry in entries if not entry.filename.startswith(hidden)]
    return [name for name in names if name.lower().endswith(SUFFIXES)]


def check_directory(path) -> None:
    """zipfile reads the whole list of files before anyone can count them: its size stands at the end of the file."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, io.SEEK_END) - 65_557))  # the record and its longest comment
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        raise UserError("bad_zip")
    [size] = struct.unpack("<I", tail[at + 12 : at + 16])
    if size > MAX_DIRECTORY:
        raise UserError("too_many_photos", limit=MAX_PHOTOS)


def open_upload(upload: dict | str | None) -> Image.Image:
    """A photo that came with a call, see `received`.

    Raises:
        UserError: none was given, and as `read_photo`.
    """
    _, source = received(upload)
    return read_photo(source)


def uploaded(files) -> list[tuple[str, str | bytes]]:
    """(name, path or content) of files that came with a call. A name is only ever shown."""
    files = files if isinstance(files, list) else [files] if files else []
    return [received(file, f"photo {index}") for index, file in enumerate(files, 1)]


def received(upload: dict | str | None, name="photo") -> tuple[str, str | bytes]:
    """(name, path or content) of an upload as it came: gradio's dict, the path that /gradio_api/upload answered, the
    address of that path, as MCP clients know it, or an address with the photo in it, "data:image/png;base64,...".

    Raises:
        UserError: it is none of these.
    """
    upload = {"path": upload} if isinstance(upload, str) else upload
    source = (upload.get("path") or upload.get("url")) if isinstance(upload, dict) else None
    if not isinstance(source, str) or not source:
        raise UserError("no_photo")
    if source.startswith("data:"):
        try:
            return name, base64.b64decode(source.partition(",")[2], validate=True)
        except ValueError:  # binascii.Error is one; letters outside ASCII
            raise UserError("damaged") from None
    path = checked_path(without_address(source))
    given = upload.get("orig_name")
    name = given if isinstance(given, str) and given else Path(path).name
    return name.encode("utf-8", "replace").decode("utf-8"), path


def without_address(source: str) -> str:
    """The path in an address of something that was uploaded here. No other address is opened.

    Raises:
        UserError: it leads elsewhere.
    """
    if not re.match("https?:", source, re.IGNORECASE):
        return source
    if not (own := re.fullmatch(r"https?://[^?#]*?/gradio_api/file=([^?#]*)", source, re.IGNORECASE)):
        raise UserError("no_links")
    return unquote(own[1])


def checked_path(path: str) -> str:
    """Only what was uploaded is opened. Gradio checks this too, but not where a caller leaves out a photo's `meta`."""
    inside = os.path.isfile(path) and os.path.realpath(path).startswith(os.path.realpath(get_upload_folder()) + os.sep)
    if not inside:
        raise UserError("not_uploaded")
    return path


def refuse_links(component) -> None:
    """Gradio fetches what an API caller names by address, whole and of any size; a server that is offline must not."""
    keep = component.async_move_resource_to_block_cache

    async def files_only(source):
        path = without_address(source) if isinstance(source, str) else source
        return await keep(path if path is source else checked_path(path))

    component.async_move_resource_to_block_cache = files_only
