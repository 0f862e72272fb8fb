"""What people send, and what of it is let in: bytes, pixels, formats, zips. Nothing is ever unpacked to disk."""

import base64
import io
import os
import re
import struct
import threading
import zipfile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from gradio.utils import get_upload_folder
from PIL import Image
from words import UserError

from modeling_mengzi_oscar.photos import (
    HEAD,
    PhotoError,
    is_apple_double,
    is_hidden,
    is_photo_name,
    open_photo,
    photo_kind,
)

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
MIN_SIDE = 8
MAX_PHOTOS = 200
MAX_UNPACKED, MAX_RATIO = 400 * 2**20, 100  # of a zip
MAX_DIRECTORY = 2**20  # bytes that the list of files in a zip may take

decoding = threading.BoundedSemaphore(2)  # a photo of 50 megapixels takes 150 MB while it is open


def read_photo(source: str | Path | bytes | UserError) -> Image.Image:
    """Path or bytes, or what was wrong with the upload -> RGB, upright, of its own size: a photo that was shrunk here
    would have other regions than through the other doors of the library.

    Raises:
        UserError: too many bytes or pixels, too few, not a photo, of a kind that cannot be read here, damaged.
    """
    if isinstance(source, UserError):
        raise source
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    if size > MAX_BYTES:
        raise UserError("too_many_bytes", megabytes=round(size / 2**20), limit=MAX_BYTES // 2**20)
    with decoding:
        try:
            photo = open_photo(source, max_pixels=MAX_PIXELS)
        except PhotoError as error:
            width, height = error.size or ("…", "…")
            key = error.reason or "not_a_photo"
            raise UserError(key, width=width, height=height, limit=MAX_PIXELS // 10**6) from None
        if min(photo.size) < MIN_SIDE:
            raise UserError("too_small", width=photo.width, height=photo.height)
    return photo


def photos_in(files: list[tuple[str, str]]) -> list[tuple[str, object]]:
    """(name, path) of uploads, zips among them -> (name, function that reads the photo).

    What is no photo in a zip is in the list too, and says so when it is read; it does not count for `MAX_PHOTOS`.

    Raises:
        UserError: a zip that is not let in, too many photos, none at all.
    """
    found, photos = [], 0
    for name, path in files:
        if name.lower().endswith(".zip"):
            members = members_of(path)
            others = 0
            for member in members:
                others += member[1] is refused
                if member[1] is not refused or others <= MAX_PHOTOS:
                    found.append(member)
            if others > MAX_PHOTOS:
                found.append((f"… (+ {others - MAX_PHOTOS:,})", refused))
            photos += len(members) - others
        else:
            found.append((name, lambda path=path: read_photo(path)))
            photos += 1
        if photos > MAX_PHOTOS:
            raise UserError("too_many_photos", limit=MAX_PHOTOS)
    if not photos:
        raise UserError("no_photos")
    return found


def refused():
    raise UserError("not_a_photo")


def reader(path, index):
    return lambda: read_photo(read_member(path, index, MAX_BYTES + 1))


def read_member(path, index, size) -> bytes:
    """The first `size` bytes of a file in a zip.

    Raises:
        UserError: damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(archive.infolist()[index]) as file:
            return file.read(size)
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, ValueError):
        raise UserError("damaged") from None
    except Exception as error:  # zlib.error, lzma.LZMAError: each decompressor has its own
        if type(error).__module__ in ("zlib", "lzma", "_lzma", "bz2"):
            raise UserError("damaged") from None
        raise


def members_of(path) -> list[tuple[str, object]]:
    """Of a zip that was found harmless, (name, function that reads the photo); of what is no photo it is `refused`.

    Raises:
        UserError: not a zip, encrypted, too large when unpacked, or with names that lead elsewhere.
    """
    if Path(path).stat().st_size > MAX_BYTES:
        raise UserError("too_many_bytes", megabytes=round(Path(path).stat().st_size / 2**20), limit=MAX_BYTES // 2**20)
    check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {index: entry for index, entry in enumerate(archive.infolist()) if not entry.is_dir()}
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error):
        raise UserError("bad_zip") from None
    names = {index: name_of(entry) for index, entry in entries.items()}
    for index, entry in entries.items():
        parts = PurePosixPath(names[index].replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in names[index]:
            raise UserError("zip_names")
        if entry.flag_bits & 1:
            raise UserError("zip_encrypted")
    unpacked = sum(entry.file_size for entry in entries.values())
    ratio = max((entry.file_size / max(entry.compress_size, 1) for entry in entries.values()), default=0)
    if unpacked > MAX_UNPACKED or ratio > MAX_RATIO:
        raise UserError("zip_too_big", limit=MAX_UNPACKED // 2**20, ratio=MAX_RATIO)
    members, sniffs = [], 0
    for index, name in names.items():
        if is_hidden(name):  # what macOS adds
            continue
        sniffs += not is_photo_name(name)
        is_photo = is_photo_name(name) or (sniffs <= MAX_PHOTOS and is_photo_inside(path, index))
        members.append((name, reader(path, index) if is_photo else refused))
    return members


def name_of(entry: zipfile.ZipInfo) -> str:
    """The name as whoever packed it wrote it. Without the flag that says UTF-8 Python takes cp437, as the first zips
    had it; programs in China write GBK, some everywhere UTF-8 all the same."""
    if entry.flag_bits & 0x800:
        return entry.filename
    for encoding in ("utf-8", "gbk"):
        try:
            return entry.filename.encode("cp437").decode(encoding)
        except UnicodeError:  # also of a name that another field of the zip gave in Unicode
            continue
    return entry.filename


def is_photo_inside(path, index) -> bool:
    try:
        return photo_kind(read_member(path, index, HEAD)) is not None
    except UserError:
        return False


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


def uploaded(files) -> list[tuple[str, str | bytes | UserError]]:
    """(name, path, content or what is wrong with it) of files that came with a call, without what macOS keeps beside
    photos. A name is only ever shown.

    Raises:
        UserError: none of them can be taken; says what is wrong with the first.
    """
    files = files if isinstance(files, list) else [files] if files else []
    named = []
    for index, file in enumerate(files, 1):
        try:
            named.append(received(file, f"photo {index}"))
        except UserError as error:  # it costs this file only
            named.append((f"photo {index}", error))
    if named and all(isinstance(source, UserError) for _, source in named):
        raise named[0][1]
    return [(name, source) for name, source in named if not is_apple_double(name)]


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
