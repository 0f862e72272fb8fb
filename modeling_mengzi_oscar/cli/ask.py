"""`mengzi-oscar ask`: the likeliest answers to a question about a photo."""

from .one_photo import is_file, print_rows
from .options import add_model, whole
from .output import fail

MAX_ANSWERS = 100_000  # more is a mistake


def add_arguments(parser):
    parser.add_argument("photo", metavar="PHOTO")
    parser.add_argument("question", metavar="QUESTION")
    add_model(parser)
    parser.add_argument("--top", type=whole(1, MAX_ANSWERS), default=5, help="answers printed (default 5)")
    parser.add_argument("--json", action="store_true")


def run(options) -> int:
    if is_file(options.question):
        return fail(f"{options.question}: is a file, not a question; mengzi-oscar ask takes one photo, then a question")
    return print_rows(options, "answer", lambda pipeline: pipeline.ask(options.photo, options.question, options.top))
