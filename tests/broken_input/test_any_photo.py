"""Whatever is given for a photo: its pixels, whatever else it carries, or one line with its name and the true reason.

Every door opens photos with `open_photo`: it is tried with all forms, each door with some that once got through.
"""

import io
import json
import os
import re
import struct
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from modeling_mengzi_oscar import MengziOscarPipeline
from modeling_mengzi_oscar.cli import main
from modeling_mengzi_oscar.image_processing_vinvl import VinVLImageProcessor
from modeling_mengzi_oscar.modeling_grid_regions import GridRegionImageProcessor
from modeling_mengzi_oscar.photos import PhotoError, open_photo
from modeling_mengzi_oscar.pipeline_mengzi_oscar import MengziOscarPhotoPipeline

BLOCKS = np.random.default_rng(0).integers(0, 255, (3, 5, 3), dtype=np.uint8)
PIXELS = BLOCKS.repeat(16, 0).repeat(16, 1)  # 48 x 80, in blocks that every format keeps
PLAIN = Image.fromarray(PIXELS)


def encoded(kind, image=PLAIN, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **{"quality": 100, **options} if kind in ("JPEG", "WEBP", "AVIF") else options)
    return content.getvalue()


def shows(photo, expected=PIXELS, tolerance=12):
    found = np.asarray(photo)
    assert photo.mode == "RGB"
    assert found.shape == expected.shape
    middles = (slice(8, None, 16), slice(8, None, 16))  # of the blocks
    assert np.abs(found[middles].astype(int) - expected[middles]).max() <= tolerance


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8))


def exif(*entries, order="<") -> bytes:
    """An EXIF record of (tag, type, count, four bytes)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    rows = [struct.pack(f"{order}HHI", tag, kind, count) + value for tag, kind, count, value in entries]
    return b"Exif\0\0" + head + b"".join(rows) + bytes(4)


def orientation(value, order="<"):
    return 0x0112, 3, 1, struct.pack(f"{order}HH", value, 0)


TEXT_UNIT = (0x0128, 2, 2, b"2\0\0\0")  # ResolutionUnit, as text
TURNED = exif(orientation(6), TEXT_UNIT)
CUT = encoded("JPEG", NOISE, exif=TURNED)[:9000]  # within its pixels
BROKEN_EXIF = {
    "unit as text": TURNED,
    "motorola": exif(orientation(6, ">"), TEXT_UNIT, order=">"),
    "values outside": exif((0x010F, 2, 500, struct.pack("<I", 60_000)), orientation(6)),
    "more entries than there are": exif(orientation(6)).replace(struct.pack("<IH", 8, 1), struct.pack("<IH", 8, 900)),
    "type that nobody knows": exif((0x010E, 99, 7, b"abcd"), orientation(6)),
    "camera's own notes outside": exif(orientation(6), (0x8769, 4, 1, struct.pack("<I", 2**31))),
    "as a long": exif((0x0112, 4, 1, struct.pack("<I", 6))),
}
NO_ORIENTATION = {
    "too large": exif(orientation(65_535)),
    "zero": exif(orientation(0)),
    "text": exif((0x0112, 2, 2, b"x\0\0\0")),
    "no directory": b"Exif\0\0II*\0" + struct.pack("<I", 2**31),
    "garbage": b"Exif\0\0" + bytes(range(200)),
    "cut": b"Exif\0\0MM",
}


def with_segments(*segments) -> bytes:
    """A JPEG with (marker, content) after its beginning."""
    plain = encoded("JPEG")
    return plain[:2] + b"".join(struct.pack(">BBH", 255, m, len(c) + 2) + c for m, c in segments) + plain[2:]


def with_chunks(*chunks, after=False, checked=True) -> bytes:
    """A PNG with (name, content) before or after its pixels."""
    plain = encoded("PNG")
    at = len(plain) - 12 if after else 33
    sums = [zlib.crc32(name + content) ^ (not checked) for name, content in chunks]
    rows = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", s) for (n, c), s in zip(chunks, sums, strict=True)]
    return plain[:at] + b"".join(rows) + plain[at:]


def with_riff(name, content) -> bytes:
    """A WebP with one more chunk at its end, which its head does not speak of."""
    plain = encoded("WEBP", lossless=True)
    return plain[:4] + struct.pack("<I", len(plain) + len(content)) + plain[8:] + name + content


def tiff(*entries) -> bytes:
    """A TIFF of Pillow's with more entries in its directory."""
    plain = encoded("TIFF")
    [at] = struct.unpack("<I", plain[4:8])
    [count] = struct.unpack("<H", plain[at : at + 2])
    rows = [plain[at + 2 + 12 * i :][:12] for i in range(count)]
    rows += [struct.pack("<HHI", tag, kind, number) + value for tag, kind, number, value in entries]
    rows.sort(key=lambda row: struct.unpack("<H", row[:2]))
    directory = struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4)
    return plain[:4] + struct.pack("<I", len(plain)) + plain[8:] + directory


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
BIG_TEXT = b"k\0\0" + zlib.compress(b"x" * 2_000_000)
BIG_PROFILE = b"p\0\0" + zlib.compress(bytes(1_500_000))
METADATA = {
    "profile of a camera": encoded("JPEG", icc_profile=PROFILE),
    "profile cut short": with_segments((0xE2, b"ICC_PROFILE\0")),
    "second photo that is not there": with_segments((0xE2, b"MPF\0II*\0" + bytes(40))),
    "short JFIF": with_segments((0xE0, b"JFIF\0")),
    "short Adobe": with_segments((0xEE, b"Adobe")),
    "Photoshop": with_segments((0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\2ab")),
    "comment": with_segments((0xFE, b"\xff" * 60_000)),
    "packed text": with_chunks((b"zTXt", BIG_TEXT)),
    "packed text after the pixels": with_chunks((b"zTXt", BIG_TEXT), after=True),
    "packed text in another packing": with_chunks((b"zTXt", b"k\0\7abc")),
    "international text": with_chunks((b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000))),
    "100 MB of text": with_chunks((b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000)))),
    "profile": with_chunks((b"iCCP", BIG_PROFILE)),
    "profile in another packing": with_chunks((b"iCCP", b"p\0\1abc")),
    "short density": with_chunks((b"pHYs", b"ab")),
    "short colours": with_chunks((b"cHRM", b"abc"), (b"gAMA", b""), (b"sRGB", b"")),
    "wrong checksum": with_chunks((b"tEXt", b"k\0abc"), checked=False),
    "broken animation": with_chunks((b"acTL", b"ab"), (b"fcTL", b"abc")),
    "chunk without an end": with_riff(b"EXIF", struct.pack("<I", 5_000) + b"abc"),
    "unknown chunk": with_riff(b"abcd", struct.pack("<I", 4) + b"1234"),
    "TIFF unit as text": tiff((0x0128, 2, 2, b"2\0\0\0"), (700, 1, 5000, struct.pack("<I", 2**31))),
    "TIFF record outside": tiff((34665, 4, 1, struct.pack("<I", 2**31 - 1)), (34675, 7, 10**6, struct.pack("<I", 9))),
}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_stop_nothing(kind):
    shows(open_photo(METADATA[kind]))


WITH_EXIF = {
    "JPEG": lambda record: encoded("JPEG", exif=record),
    "PNG": lambda record: with_chunks((b"eXIf", record[6:])),
    "WebP": lambda record: encoded("WEBP", lossless=True, exif=record),
}


@pytest.mark.parametrize("kind", WITH_EXIF)
def test_orientation_is_followed_where_it_can_be_read(kind):
    """Pillow's own way through the record ends in struct.error, or misses it, for most of these."""
    for record in BROKEN_EXIF.values():
        shows(open_photo(WITH_EXIF[kind](record)), np.rot90(PIXELS, -1))
        shows(open_photo(Image.open(io.BytesIO(WITH_EXIF[kind](record)))), np.rot90(PIXELS, -1))
    for record in NO_ORIENTATION.values():
        shows(open_photo(WITH_EXIF[kind](record)))


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_in_every_format(value):
    turned = Image.Exif()
    turned[0x0112] = value
    ways = [PIXELS, PIXELS[:, ::-1], PIXELS[::-1, ::-1], PIXELS[::-1]]
    ways += [way.transpose(1, 0, 2) for way in (PIXELS, PIXELS[::-1], PIXELS[::-1, ::-1], PIXELS[:, ::-1])]
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        content = encoded(kind, exif=turned)
        shows(open_photo(content), ways[value - 1])
        shows(open_photo(Image.open(io.BytesIO(content))), ways[value - 1])


def test_orientation_in_texts():
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    raw = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  40\n" + exif(orientation(6)).hex().encode())
    for content in (
        with_segments((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)),
        with_chunks((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)),
        with_chunks((b"zTXt", raw)),
    ):
        shows(open_photo(content), np.rot90(PIXELS, -1))


def test_what_phones_write_today():
    heif = pytest.importorskip("pillow_heif")
    content, turned = io.BytesIO(), io.BytesIO()
    heif.from_pillow(PLAIN).save(content, quality=100)
    heif.from_pillow(PLAIN).save(turned, quality=100, exif=TURNED)
    shows(open_photo(content.getvalue()), tolerance=25)
    shows(open_photo(turned), np.rot90(PIXELS, -1), tolerance=25)  # by its box; the record has a unit as text
    with pytest.raises(PhotoError, match="2,000"):
        open_photo(content.getvalue(), max_pixels=2000)
    with pytest.raises(PhotoError, match="damaged"):
        open_photo(content.getvalue()[:-300])


def test_what_phones_write_today_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("modeling_mengzi_oscar.photos.avif_is_there", lambda: False)
    for brand, install in ((b"heic", "pip install pillow-heif"), (b"mif1", "pillow-heif"), (b"avif", "-U pillow")):
        (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(12))
        with pytest.raises(PhotoError, match=install) as error:
            open_photo(tmp_path / "IMG_1.HEIC")
        assert str(tmp_path / "IMG_1.HEIC") in str(error.value)


def lazily(content):
    return Image.open(io.BytesIO(content))


def loaded(image):
    image.load()
    return image


GREY = PIXELS[:, :, :1]
IN_MEMORY = {
    "bytes": lambda: encoded("PNG"),
    "bytearray": lambda: bytearray(encoded("PNG")),
    "memoryview": lambda: memoryview(encoded("PNG")),
    "file in memory": lambda: io.BytesIO(encoded("PNG")),
    "file at its end": lambda: (file := io.BytesIO(encoded("PNG")), file.read())[0],
    "row with bytes": lambda: {"bytes": encoded("PNG"), "path": "x.png"},
    "row without a path": lambda: {"bytes": encoded("PNG"), "path": None},
    "PIL": lambda: PLAIN,
    "PIL, not read yet": lambda: lazily(encoded("PNG")),
    "PIL, whose texts fail late": lambda: lazily(METADATA["packed text after the pixels"]),
    "PIL with transparency": lambda: PLAIN.convert("RGBA"),
    "array": lambda: PIXELS,
    "array of floats to 1": lambda: PIXELS / 255,
    "array of floats to 255": lambda: PIXELS.astype(np.float32),
    "array of floats, rounded": lambda: PIXELS / 255 * np.float64(1.0000001) - 1e-9,
    "array of half floats": lambda: (PIXELS / 255).astype(np.float16),
    "array of whole numbers": lambda: PIXELS.astype(np.int64),
    "array of 16 bits": lambda: PIXELS.astype(np.uint16) * 257,
    "array with alpha": lambda: np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)]),
    "array, channels first": lambda: PIXELS.transpose(2, 0, 1),
    "array, seen backwards": lambda: PIXELS[::-1][::-1],
    "tensor": lambda: torch.tensor(PIXELS),
    "tensor, channels first": lambda: torch.tensor(PIXELS).permute(2, 0, 1),
    "tensor of floats that is learnt": lambda: torch.nn.Parameter(torch.tensor(PIXELS / 255).permute(2, 0, 1)),
    "tensor of bfloat16": lambda: (torch.tensor(PIXELS) / 255).bfloat16(),
}


@pytest.mark.parametrize("kind", IN_MEMORY)
def test_what_is_in_memory(kind):
    shows(open_photo(IN_MEMORY[kind]()), tolerance=1)


@pytest.mark.parametrize("grey", [GREY, GREY[..., 0], torch.tensor(GREY).permute(2, 0, 1), GREY / 255])
def test_grey(grey):
    shows(open_photo(grey), GREY.repeat(3, -1), tolerance=1)


def test_black_and_white():
    shows(open_photo(GREY > 128), ((GREY > 128) * 255).repeat(3, -1))


def test_files_on_the_disk(tmp_path):
    path = tmp_path / "照片.jpg"
    path.write_bytes(encoded("PNG"))  # by content, whatever the name says
    with open(path, "rb") as file:
        for source in (path, str(path), np.str_(path), file, {"bytes": None, "path": str(path)}):
            photo = open_photo(source)
            shows(photo)
            assert photo.filename == str(path)  # for messages about it


def closed():
    image = lazily(encoded("PNG"))
    image.close()
    return image


def closed_after_reading():
    image = loaded(lazily(encoded("PNG")))
    image.close()
    return image


def left():
    with lazily(encoded("PNG")) as image:
        return image


def closed_file():
    file = io.BytesIO(encoded("PNG"))
    file.close()
    return file


REFUSED = {
    "nothing": (lambda: None, "a NoneType is not a photo"),
    "number": (lambda: 3, "a int is not a photo"),
    "list": (lambda: ["a.jpg"], "a list is not a photo"),
    "tuple": (lambda: ("a.jpg", "b.jpg"), "a tuple is not a photo"),
    "row of something else": (lambda: {"text": "a"}, "a dict is not a photo"),
    "row of nothing": (lambda: {"bytes": None, "path": None}, "a dict is not a photo"),
    "no side": (lambda: np.zeros((0, 5, 3), np.uint8), "5 x 0 pixels: an empty side"),
    "no other side": (lambda: torch.zeros(3, 5, 0), "0 x 5 pixels: an empty side"),
    "PIL without a side": (lambda: Image.new("RGB", (0, 3)), "0 x 3 pixels: an empty side"),
    "several": (lambda: np.zeros((2, 4, 4, 3)), "several photos as a list"),
    "a row of numbers": (lambda: np.zeros(9), r"shape \(9,\)"),
    "five channels": (lambda: np.zeros((9, 9, 5)), r"shape \(9, 9, 5\)"),
    "normalised": (lambda: (PIXELS / 255 - 0.5) / 0.25, "from -1.9.*normalisation"),
    "nearly 0 to 1": (lambda: PIXELS / 230, "neither 0 to 1 nor 0 to 255"),
    "not finite": (lambda: np.full((4, 4, 3), np.nan), "from nan to nan"),
    "too bright": (lambda: PIXELS.astype(np.int32) * 9, "neither 0 to 1 nor 0 to 255"),
    "complex": (lambda: np.zeros((4, 4), complex), "complex128"),
    "objects": (lambda: np.full((4, 4), None), "object"),
    "too large": (lambda: np.broadcast_to(np.uint8(0), (9000, 9000)), "more than 64,000,000"),
    "text file": (lambda: io.StringIO("abc"), "in binary"),
    "closed file": (closed_file, "closed file"),
    "closed PIL": (closed, "closed before its pixels were read"),
    "closed PIL that was read": (closed_after_reading, "closed"),
    "PIL after its with": (left, "closed before its pixels were read"),
    "PIL cut short": (lambda: lazily(CUT), "damaged"),
    "address": (lambda: "https://example.org/a/b.jpg", "^https://example.org/a/b.jpg: addresses are not fetched"),
    "address of a file": (lambda: "file:///photos/a.jpg", "addresses are not fetched"),
    "long name": (lambda: "x" * 360 + ".jpg", "x{360}.jpg: File name too long"),
    "name with a NUL": (lambda: "a\0b.jpg", "null byte"),
    "name that cannot be written": (lambda: "\ud800.jpg", r"^\\ud800.jpg: "),
    "name of two lines": (lambda: "a\nb.jpg", r"^a\\nb.jpg: no such file"),
    "device": (lambda: "/dev/zero", "^/dev/zero: a device, pipe or socket"),
    "folder": (lambda: os.path.dirname(__file__), "is a folder"),
    "not even a folder": (lambda: __file__ + "/a.jpg", "Not a directory"),
    "what macOS keeps": (lambda: b"\0\x05\x16\x07" + bytes(80), "macOS"),
    "film": (lambda: b"\0\0\0\x18ftypmp42" + bytes(100), "not a photo"),
    "pixels cut short": (lambda: encoded("PNG")[:-60], "damaged"),
    "pixels cut short, with a record": (lambda: CUT, "damaged"),
    "beginning only": (lambda: encoded("JPEG")[:40], "damaged"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_photo_is_told_in_one_line(kind):
    make, reason = REFUSED[kind]
    with pytest.raises(PhotoError, match=reason) as error:
        open_photo(make())
    assert "\n" not in str(error.value)
    source = make()
    if not isinstance(source, (str, Image.Image)):
        with pytest.raises(PhotoError, match="^photo 3: "):
            open_photo(source, name="photo 3")


def test_nothing_blocks(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    reasons = []

    def look():
        for door in (open_photo, lambda path: main(["caption", str(path)])):
            try:
                reasons.append(door(tmp_path / "pipe.jpg"))
            except PhotoError as error:
                reasons.append(str(error))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert len(reasons) == 2
    assert reasons[0].startswith(f"{tmp_path / 'pipe.jpg'}: a device, pipe or socket")
    assert reasons[1] == 2


def test_pixels_bound_memory_all_the_same():
    """What was cut out of a file loosens nothing: a header of 30,000 x 30,000 pixels is refused unread."""
    content = bytearray(METADATA["packed text"])
    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(PhotoError, match="pixels"):
        open_photo(bytes(content))
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3  # Pillow's own bounds are as they were


def test_threads_do_not_disturb_each_other():
    contents = [*METADATA.values(), *(encoded("JPEG", exif=record) for record in BROKEN_EXIF.values())]
    alone = [open_photo(content).tobytes() for content in contents]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda content: open_photo(content).tobytes(), contents * 3))
    assert together == alone * 3


# the doors

PHONE = encoded("JPEG", exif=TURNED)


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return MengziOscarPipeline.from_pretrained(tiny_checkpoint)


@pytest.fixture
def folder(tmp_path):
    """Three photos that others show, one cut short."""
    (tmp_path / "photos").mkdir()
    contents = {"phone.jpg": PHONE, "text.png": METADATA["packed text"], "profile.png": METADATA["profile"]}
    for name, content in (contents | {"cut.jpg": CUT}).items():
        (tmp_path / "photos" / name).write_bytes(content)
    return tmp_path / "photos"


def test_pipelines(pipeline):
    alone = pipeline.caption(PHONE)
    assert pipeline.caption([PIXELS / 255, PHONE])[1]["caption"] == alone["caption"]
    assert pipeline.caption([PIXELS, np.zeros((0, 5, 3), np.uint8)])[1]["error"].startswith("photo 2: 5 x 0 pixels")
    for make, reason in REFUSED.values():
        if not isinstance(source := make(), (list, tuple)):
            with pytest.raises(PhotoError, match=reason):
                pipeline.caption(source)
            assert re.search(reason, str(MengziOscarPhotoPipeline.preprocess(None, make())["photo"]))
    assert MengziOscarPhotoPipeline.preprocess(None, PHONE)["photo"].size == (48, 80)


def test_caption_command(folder, tiny_checkpoint, capsys):
    names = [str(path) for path in sorted(folder.iterdir())]
    assert main(["caption", *names, "--model", str(tiny_checkpoint)]) == 2
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == [name for name in names if "cut" not in name]
    [line] = [line for line in err.splitlines() if "damaged" in line]
    assert line.startswith(str(folder / "cut.jpg"))


def test_extract_command(folder, tiny_checkpoint, tmp_path, capsys):
    command = ["extract", str(folder), "--output", str(tmp_path / "store"), "--model", str(tiny_checkpoint)]
    assert main(command) == 2
    assert "3 photos" in capsys.readouterr().out
    [error] = map(json.loads, (tmp_path / "store" / "errors.jsonl").read_text("utf-8").splitlines())
    assert error["error"].startswith(f"{folder / 'cut.jpg'}: damaged")


def test_space(folder):
    uploads = pytest.importorskip("uploads", reason="needs gradio")
    assert uploads.read_photo(PHONE).size == (48, 80)
    assert uploads.read_photo(METADATA["100 MB of text"]).size == (80, 48)
    for content, key in ((CUT, "damaged"), (b"text", "not_a_photo"), (b"", "not_a_photo")):
        with pytest.raises(uploads.UserError) as error:
            uploads.read_photo(content)
        assert error.value.key == key


def test_image_processors_name_what_they_do_not_take():
    for processor in (GridRegionImageProcessor(), VinVLImageProcessor()):
        for empty in (np.zeros((0, 5, 3), np.uint8), Image.new("RGB", (4, 0))):
            with pytest.raises(ValueError, match="image 1: .* empty side"):
                processor([PLAIN, empty])
        assert len(processor([GREY, torch.tensor(GREY).permute(2, 0, 1)])["pixel_values"]) == 2
    with pytest.raises(PhotoError, match="^image 1: 2000 x 2 pixels are too thin"):
        VinVLImageProcessor(shortest_edge=60, longest_edge=100)([PLAIN, Image.new("RGB", (2000, 2))])
    thin = open_photo(encoded("PNG", Image.new("RGB", (2000, 2))), name="thin.png")
    with pytest.raises(PhotoError, match="^thin.png: 2000 x 2 pixels are too thin"):
        VinVLImageProcessor(shortest_edge=60, longest_edge=100)(thin)
