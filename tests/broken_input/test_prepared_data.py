"""A prepared data set follows its photos: what came is there, what went is said, what was mended is back."""

import pytest
from PIL import Image

from datasets_scripts.image_captions import ImageCaptions


def test_photos_that_come_and_go(tmp_path, capsys):
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    for name in "abcd":
        Image.new("RGB", (8, 8)).save(folder / "images" / f"{name}.jpg")
    rows = "".join(f"{name}.jpg,一只猫\n" for name in "abcd")
    (folder / "captions.csv").write_text(f"file_name,caption\n{rows}", encoding="utf-8")

    def count(**settings):
        builder = ImageCaptions(data_dir=str(folder), cache_dir=str(tmp_path / "cache"), **settings)
        builder.download_and_prepare()
        return sum(map(len, builder.as_dataset().values()))

    assert count() == 4
    for name in "bc":
        (folder / "images" / f"{name}.jpg").rename(tmp_path / f"{name}.jpg")
    with pytest.raises(ValueError, match="row 3: there is no photo 'b.jpg'"):
        count()
    assert count(skip_bad=True) == 2
    told = capsys.readouterr().out
    assert "Skipped: 2 bad rows" in told
    assert "row 3: there is no photo 'b.jpg'" in told
    assert "row 4: there is no photo 'c.jpg'" in told
    for name in "bc":
        (tmp_path / f"{name}.jpg").rename(folder / "images" / f"{name}.jpg")
    assert count(skip_bad=True) == count() == 4
