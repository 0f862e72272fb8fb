"""`mengzi-oscar match`: how probable it is that texts belong to a photo, or to each of many."""

from .checkpoint import load_pipeline
from .options import add_model
from .output import fail
from .photos import PHOTO_HELP, add_output, find_photos, made_with, photos_and_texts, run_photos


def add_arguments(parser):
    parser.usage = "mengzi-oscar match [options] PHOTO [PHOTO ...] TEXT [TEXT ...]"
    parser.add_argument("photo", metavar="PHOTO", help=PHOTO_HELP)
    parser.add_argument("words", nargs="+", metavar="TEXT", help="more photos, then sentences")
    add_model(parser)
    add_output(parser)


def run(options) -> int:
    try:
        names, texts = photos_and_texts([options.photo, *options.words], "sentence")
    except ValueError as error:
        return fail(error)
    photos = find_photos(names)
    if not photos.sources:
        return fail("mengzi-oscar match: name a photo")
    return run_photos(options, photos, Matches(options, texts), photos.several)


class Matches:
    def __init__(self, options, texts):
        self.options, self.texts = options, texts
        self.columns = texts

    def made_with(self):
        return made_with(self.options, "match", texts=self.texts)

    def load(self):
        self.pipeline = load_pipeline(self.options)
        self.pipeline.match([], self.texts)  # a checkpoint that cannot match says so now

    def of(self, images, names):
        return self.pipeline.match(images, self.texts)

    def record(self, matches):
        return {"matches": matches}

    def alone(self, record):
        return record["matches"]

    def lines(self, matches):
        return [(row["text"], f"{row['probability']:.3f}") for row in matches]

    def cells(self, matches):
        return [row["probability"] for row in matches]
