"""What the demo does: the endpoints that other programs call, and the same for its pages, as HTML."""

import functools
import logging
from pathlib import Path

import gradio as gr
import views
from engine import QUESTIONS
from uploads import open_upload, photos_in, read_photo, uploaded
from words import UserError

from modeling_mengzi_oscar.demo.samples import MORE_SAMPLES, SAMPLES, sample_photos

MAX_GALLERY = 24


def samples() -> dict[str, tuple[Path, str]]:
    try:
        return sample_photos(MORE_SAMPLES | SAMPLES)
    except ModuleNotFoundError:
        return {}


class Functions:
    """What other programs call: each is an endpoint and an MCP tool, and tells people's mistakes as `UserError`."""

    def __init__(self, engine):
        self.engine = engine

    def caption(self, photo, num_beams=5, max_length=20, temperature=0):
        """Writes Chinese sentences for a photo.

        Args:
            photo: JPEG, PNG, WebP, BMP, GIF, TIFF, HEIC or AVIF.
            num_beams: how many sentences are considered and returned, 1 to 10.
            max_length: characters of a sentence with start and end, 5 to 30.
            temperature: 0 for the likeliest sentences, up to 2 for looser ones.

        Returns:
            {"caption", "captions": [{"caption", "score", "words": [{"word", "region_weights"}]}], "tags", "regions":
            [{"box", ...}], "size": [width, height], "seconds"}.
        """
        return self.engine.caption(open_upload(photo), num_beams, max_length, temperature)

    def match(self, photo, sentences):
        """How probable it is that each Chinese sentence is about the photo.

        Args:
            photo: JPEG, PNG, WebP, BMP, GIF, TIFF, HEIC or AVIF.
            sentences: a list of up to 20 sentences.

        Returns:
            {"matches": [{"text", "probability"}], likeliest first, "seconds"}.
        """
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise UserError("no_sentence")
        return self.engine.match(open_upload(photo), sentences)

    def rank(self, sentence, photos, with_samples=False):
        """How probable it is that each photo is what a Chinese sentence says.

        Args:
            sentence: what to look for.
            photos: up to 24 photos.
            with_samples: also the sample photos of the demo.

        Returns:
            {"matches": [{"photo" (its name), "index", "probability"}], likeliest first, "seconds"}.
        """
        return self.engine.rank(sentence or "", self.gallery(photos, with_samples))

    def ask(self, photo, question):
        """The five likeliest answers to a Chinese question about a photo.

        Args:
            photo: JPEG, PNG, WebP, BMP, GIF, TIFF, HEIC or AVIF.
            question: for example 图里有几个人？

        Returns:
            {"answers": [{"answer", "probability"}], likeliest first, "seconds"}.
        """
        return self.engine.ask(open_upload(photo), question or "")

    def batch(self, files):
        """Writes a Chinese sentence for each of many photos.

        Args:
            files: photos, zips with photos, or both; up to 100 photos.

        Returns:
            {"rows": [{"file", "caption", "score"} or {"file", "error"}]}.
        """
        found = photos_in(uploaded(files))
        return {"rows": [views.plain_row(row) for rows in self.engine.batch(found) for row in rows]}

    def gallery(self, files, with_samples):
        files = uploaded(files)
        if with_samples or not files:
            files = files + [(name, str(path)) for name, (path, _) in samples().items()]
        if len(files) > MAX_GALLERY:
            raise UserError("too_many_photos", limit=MAX_GALLERY)
        return [(name, read_photo(path)) for name, path in files]


class Pages(Functions):
    """The same for the browser: results and mistakes as HTML."""

    def show_caption(self, photo, num_beams, max_length, temperature):
        if photo is None:
            return views.views.empty("caption_empty", {})
        opened = open_upload(photo)
        result = self.engine.caption(opened, num_beams, max_length, temperature)
        return views.views.caption(result, views.picture(opened))

    def show_match(self, photo, sentences):
        return views.views.sentences(self.match(photo, (sentences or "").splitlines()))

    def show_rank(self, sentence, photos, with_samples):
        gallery = self.gallery(photos, with_samples)
        result = self.engine.rank(sentence or "", gallery)
        return views.views.photos(result, [views.picture(photo, 320) for _, photo in gallery])

    def show_answers(self, photo, question):
        return views.views.answers(self.ask(photo, question), question.strip())

    def show_batch(self, files):
        """A generator: the table as it grows. Whoever stops it keeps what is there."""
        try:
            found, rows = photos_in(uploaded(files)), []
            yield views.batch(rows, len(found))
            for more in self.engine.batch(found):
                for row in more:
                    row["picture"] = views.picture(row.pop("photo"), 64) if "photo" in row else None
                rows += more
                yield views.batch(rows, len(found))
        except UserError as error:
            yield views.views.error(error)
        except Exception:
            logging.exception("show_batch failed")
            yield views.views.error(UserError("unexpected"))

    def suggest(self, photo):
        questions = QUESTIONS if photo is None else self.engine.suggestions(open_upload(photo))
        return gr.Dataset(samples=[[question] for question in questions])

    def chosen(self, event: gr.SelectData):
        """The question as the page shows it: whose list it was the server may have forgotten by now."""
        return event.value[0]


def told(function):
    """Mistakes and failures as a card on the page."""

    @functools.wraps(function)
    def wrapper(*inputs):
        try:
            return function(*inputs)
        except UserError as error:
            return views.views.error(error)
        except Exception:
            logging.exception("%s failed", function.__name__)
            return views.views.error(UserError("unexpected"))

    return wrapper


def guarded(function):
    """Failures of ours without their details, which would tell of files and code."""

    @functools.wraps(function)
    def wrapper(*inputs):
        try:
            return function(*inputs)
        except UserError:
            raise
        except Exception:
            logging.exception("%s failed", function.__name__)
            raise UserError("unexpected") from None

    return wrapper


def quiet(function):
    """A photo that cannot be read is told once, where the caption would stand."""

    @functools.wraps(function)
    def wrapper(*inputs):
        try:
            return function(*inputs)
        except UserError:
            return gr.skip()

    return wrapper
