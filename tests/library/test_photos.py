import io

import numpy as np
import pytest
from PIL import Image

from modeling_mengzi_oscar.photos import PhotoError, open_photo

COLOURS = np.zeros((20, 30, 3), dtype=np.uint8)
COLOURS[:, :15], COLOURS[:, 15:] = (200, 30, 30), (30, 30, 200)  # left red, right blue


def save(path, image, **options):
    image.save(path, **options)
    return path


def is_red_then_blue(image):
    left, right = image.getpixel((2, 10)), image.getpixel((image.width - 3, 10))
    return left[0] > 150 > left[2] and right[2] > 150 > right[0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif"])
def test_formats(tmp_path, suffix):
    photo = open_photo(save(tmp_path / f"photo.{suffix}", Image.fromarray(COLOURS)))
    assert (photo.mode, photo.size) == ("RGB", (30, 20))
    assert is_red_then_blue(photo)


def test_colour_modes(tmp_path):
    cmyk = save(tmp_path / "cmyk.jpg", Image.fromarray(COLOURS).convert("CMYK"))
    assert is_red_then_blue(open_photo(cmyk))
    palette = save(tmp_path / "palette.png", Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE))
    assert is_red_then_blue(open_photo(palette))
    grey = Image.fromarray(np.full((4, 4), 90, dtype=np.uint8))
    assert open_photo(save(tmp_path / "grey.jpg", grey)).getpixel((1, 1)) == (90, 90, 90)
    deep = Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16))
    assert open_photo(save(tmp_path / "deep.png", deep)).getpixel((1, 1)) == (127, 127, 127)
    clear = save(tmp_path / "clear.png", Image.new("RGBA", (4, 4), (0, 0, 0, 0)))
    assert open_photo(clear).getpixel((1, 1)) == (255, 255, 255)
    assert open_photo(COLOURS).size == (30, 20)


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    rotated = Image.fromarray(COLOURS).transpose(Image.Transpose.ROTATE_90)
    photo = open_photo(save(tmp_path / "turned.jpg", rotated, exif=exif))
    assert photo.size == (30, 20)
    assert is_red_then_blue(photo)


def test_sizes(tmp_path):
    assert open_photo(save(tmp_path / "one.png", Image.new("RGB", (1, 1)))).size == (1, 1)
    assert open_photo(save(tmp_path / "forty.png", Image.new("RGB", (8000, 5000)))).size == (8000, 5000)


def truncated_jpeg():
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)).save(content, "JPEG")
    return content.getvalue()[: len(content.getvalue()) // 2]


def bomb():
    content = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(content, "PNG")
    return content.getvalue()


BROKEN = {
    "text": (b"hello, this is no photo", "not a photo we can read"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a photo we can read"),
    "empty": (b"", r"empty \(0 bytes\)"),
    "truncated": (truncated_jpeg(), "damaged"),
    "bomb": (bomb(), "scale it down"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_named_in_one_line(tmp_path, kind):
    content, reason = BROKEN[kind]
    path = tmp_path / f"{kind}.jpg"
    path.write_bytes(content)
    for source, name in ((path, "the photo"), (content, str(path))):  # a file, and its bytes
        with pytest.raises(PhotoError, match=reason) as error:
            open_photo(source, name=name)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_paths(tmp_path):
    with pytest.raises(PhotoError, match="no such file"):
        open_photo(tmp_path / "missing.jpg")
    with pytest.raises(PhotoError, match="is a folder"):
        open_photo(tmp_path)
