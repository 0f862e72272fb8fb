"""`mengzi-oscar quantize`: what a VinVL detector needs to know of its weights to compute in 8 bits."""

import argparse
from itertools import islice
from pathlib import Path

from .options import named, whole
from .output import fail, meanwhile, printable, quiet
from .photos import PHOTO_HELP, find_photos

DESCRIPTION = """\
Calibrates a VinVL detector for 8 bits: runs photos through it in float32, records
the largest input of each convolution and writes them next to the weights
(calibration.json). Needs OpenVINO: pip install openvino."""
EXAMPLES = """examples:
  mengzi-oscar quantize vinvl/ photos/
  mengzi-oscar quantize converted/ 'photos/*.jpg' --photos-used 100
  mengzi-oscar caption photo.jpg --model converted/ --dtype int8
  mengzi-oscar extract photos/ --model vinvl/ --output stores/photos --precision int8
"""


def add_arguments(parser):
    parser.description = DESCRIPTION
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("checkpoint", type=named, metavar="CHECKPOINT", help="folder of a VinVL, or of a checkpoint that has one")
    add(
        "photos", nargs="+", type=named, metavar="PHOTO", help=f"similar to those you will caption; each a {PHOTO_HELP}"
    )
    add("--photos-used", type=whole(1, 100_000), default=50, help="number of photos, the first ones (default 50)")


def run(options) -> int:
    quiet()
    try:
        with meanwhile("loading …"):
            model, prepare, path = load(options.checkpoint)
        return look(options, model, prepare, path)
    except ValueError as error:
        return fail(error)


def load(name):
    """Region model, what makes its inputs of a photo, and the file to write."""
    from ..checkpoint_folder import CALIBRATION, CheckpointError
    from ..loading import load_region_model, region_model_folder
    from ..openvino_networks import import_openvino

    folder = region_model_folder(name)
    if not Path(folder.checkpoint).is_dir():
        raise CheckpointError(f"{folder.name}: is on the Hub; name a local folder with a copy of it")
    if folder.json("config.json")["model_type"] != "vinvl":
        raise CheckpointError(f"{folder.name}: 8 bits are for VinVL's detector; other region models stay in float32")
    import_openvino()
    model, processor = load_region_model(name)
    return model, processor, folder.path / CALIBRATION


def look(options, model, processor, path) -> int:
    from ..features.photo_stream import opened
    from ..files import with_checksum, write_whole
    from ..openvino_networks import calibrate
    from ..progress import Progress

    source, status, calibration = find_photos(options.photos), 0, None

    def batches():
        nonlocal status
        for _, image in opened(source.fetch_photos()):
            try:
                if isinstance(image, ValueError):
                    raise image
                inputs = processor([image], return_tensors="pt")
            except ValueError as error:  # too thin for the detector, or no photo
                status = fail(error)
            else:
                yield inputs

    with Progress(lambda: min(options.photos_used, source.total or options.photos_used)).begin() as progress:
        for calibration in islice(calibrate(model, batches()), options.photos_used):  # noqa: B007
            progress.update(1)
    if calibration is None:
        return fail("none of the photos can be read; nothing was written")
    write_whole(path, with_checksum(calibration))
    photos = f"{calibration['photos']:,} photo{'s' * (calibration['photos'] != 1)}"
    print(f"{printable(str(path))}: {photos}; --dtype int8 uses it")
    return status
