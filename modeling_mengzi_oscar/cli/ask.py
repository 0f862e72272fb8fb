"""`mengzi-oscar ask`: the likeliest answers to a question about a photo, or about each of many."""

from .checkpoint import load_pipeline
from .options import add_model, whole
from .output import fail
from .photos import PHOTO_HELP, add_output, find_photos, made_with, photos_and_texts, run_photos

MAX_ANSWERS = 100_000  # more is a mistake


def add_arguments(parser):
    parser.usage = "mengzi-oscar ask [options] PHOTO [PHOTO ...] QUESTION"
    parser.add_argument("photo", metavar="PHOTO", help=PHOTO_HELP)
    parser.add_argument("words", nargs="+", metavar="QUESTION", help="more photos, then one question")
    add_model(parser)
    parser.add_argument("--top", type=whole(1, MAX_ANSWERS), default=5, help="answers to print (default 5)")
    add_output(parser)


def run(options) -> int:
    try:
        names, questions = photos_and_texts([options.photo, *options.words], "question")
        if len(questions) > 1:
            shown = ", ".join(map(repr, questions))
            raise ValueError(f"one question at a time, not {shown}; quote a question that contains spaces")
    except ValueError as error:
        return fail(error)
    photos = find_photos(names)
    if not photos.sources:
        return fail("mengzi-oscar ask: name a photo")
    return run_photos(options, photos, Answers(options, questions[0]), photos.several)


class Answers:
    def __init__(self, options, question):
        self.options, self.question, self.top = options, question, options.top
        self.columns = ["answer", "probability"]
        for number in range(2, self.top + 1):
            self.columns += [f"answer {number}", f"probability {number}"]

    def made_with(self):
        return made_with(self.options, "ask", question=self.question, top=self.top)

    def load(self):
        self.pipeline = load_pipeline(self.options)
        self.pipeline.ask([], self.question, self.top)  # a checkpoint that cannot answer says so now

    def of(self, images, names):
        return self.pipeline.ask(images, self.question, self.top)

    def record(self, answers):
        return {"question": self.question, "answers": answers}

    def alone(self, record):
        return record["answers"]

    def lines(self, answers):
        return [(row["answer"], f"{row['probability']:.3f}") for row in answers]

    def cells(self, answers):
        return [value for row in answers for value in (row["answer"], row["probability"])]
