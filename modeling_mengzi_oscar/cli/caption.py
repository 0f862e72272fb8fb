"""`mengzi-oscar caption`: a line per photo."""

import sys
from itertools import chain
from pathlib import Path

from .checkpoint import BUNDLED, load_pipeline
from .options import add_model, whole
from .output import fail, print_row, printable, progress

MAX_BEAMS, MAX_TOKENS = 100, 512  # more is a mistake; what a checkpoint can do it says itself
MAX_PICTURED = 100
MINI_NOTICE = {
    "zh": "mini 模型只学过 6,000 张照片（人、狗、运动、户外）；其他题材多半说错，有时认得主要的东西。",
    "en": "The mini model learnt from 6,000 photos (people, dogs, sports, outdoors); it is mostly wrong elsewhere.",
}


def add_arguments(parser):
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="JPEG, PNG, WebP, BMP, GIF, TIFF, HEIC or AVIF")
    parser.add_argument("--samples", action="store_true", help="the photos that scikit-image and scikit-learn carry")
    add_model(parser)
    parser.add_argument("--num-beams", type=whole(1, MAX_BEAMS), help="sentences considered (default the checkpoint's)")
    parser.add_argument(
        "--max-length", type=whole(2, MAX_TOKENS), help="tokens, with start and end (default the checkpoint's)"
    )
    parser.add_argument("--style", choices=["short", "detailed"], help="where the checkpoint writes in both (the mini)")
    parser.add_argument("--json", action="store_true", help="everything the pipeline returns, a JSON object a line")
    parser.add_argument("--picture", metavar="PNG", help="photo, caption and the regions that weighed most")


def run(options) -> int:
    from ..photos import PhotoError, is_apple_double, open_photo

    beside = [path for path in options.photos if is_apple_double(path)]
    if beside:
        print(
            f"passed over {len(beside):,} that macOS keeps beside photos, e.g. {printable(beside[0])}", file=sys.stderr
        )
    photos = [(path, path, None) for path in options.photos if path not in beside]  # name, source, credit
    if options.samples:
        from ..demo.samples import sample_photos

        try:
            photos += [(name, path, credit) for name, (path, credit) in sample_photos().items()]
        except ModuleNotFoundError as error:
            return fail(str(error))
    if not photos:
        return fail("mengzi-oscar caption: name a photo, or --samples")
    if options.picture is not None:
        from ..demo.pictures import check_picture

        try:
            check_picture(options.picture, [source for _, source, _ in photos])
        except ValueError as error:
            return fail(str(error))
    failed, opened = 0, []

    def open_all():  # one at a time: thousands need no memory
        nonlocal failed
        for name, source, credit in photos:
            try:
                yield name, open_photo(source), credit
            except PhotoError as error:
                failed = fail(str(error))

    readable = open_all()
    first = next(readable, None)
    if first is None:
        return failed
    settings = {"num_beams": options.num_beams, "max_length": options.max_length, "style": options.style}
    try:
        pipeline = load_pipeline(options)
        pipeline.caption([], **settings)  # says what cannot work before any photo is captioned
    except ValueError as error:
        return fail(str(error))
    for name, photo, credit in progress(chain([first], readable), len(photos)):
        [result] = pipeline.caption([photo], **settings)
        if "error" in result:
            failed = fail(result["error"])
            continue
        print_row(options.json, {"photo": name} | result, name, result["caption"], f"{result['score']:.3f}")
        if options.picture and len(opened) < MAX_PICTURED:
            opened.append((photo, result, Path(name).name, credit))
    notice = MINI_NOTICE if pipeline.captioner.config.name_or_path == str(BUNDLED) else None
    if notice:
        print("\n".join(notice.values()), file=sys.stderr)
    if opened:
        from ..demo.pictures import draw_captions, save_picture

        page = draw_captions(*zip(*opened, strict=True), notice["zh"] if notice else None)
        save_picture(page, options.picture)
        of = f", the first {MAX_PICTURED} photos" if len(photos) > MAX_PICTURED else ""
        print(f"picture: {printable(options.picture)}{of}", file=sys.stderr)
    return failed
