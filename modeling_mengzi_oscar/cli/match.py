"""`mengzi-oscar match`: how probable it is that texts belong to a photo."""

from .one_photo import is_file, print_rows
from .options import add_model
from .output import fail


def add_arguments(parser):
    parser.add_argument("photo", metavar="PHOTO")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    add_model(parser)
    parser.add_argument("--json", action="store_true")


def run(options) -> int:
    if files := [text for text in options.texts if is_file(text)]:
        return fail(
            f"{files[0]}: is a file, not a sentence; mengzi-oscar match takes one photo, then sentences"
            + (f" ({len(files)} such)" if len(files) > 1 else "")
        )
    return print_rows(options, "text", lambda pipeline: pipeline.match(options.photo, options.texts))
