"""What the demo does: the endpoints that other programs call, and the same for its pages, as HTML."""

import functools
import logging
from pathlib import Path

import gradio as gr
import views
from engine import QUESTIONS, in_short, whole
from uploads import MAX_PHOTOS, open_upload, photos_in, read_photo, uploaded
from words import UserError

from modeling_mengzi_oscar.demo.pictures import best_objects
from modeling_mengzi_oscar.demo.samples import MORE_SAMPLES, SAMPLES, sample_photos


def samples() -> dict[str, tuple[Path, str]]:
    try:
        return sample_photos(MORE_SAMPLES | SAMPLES)
    except ModuleNotFoundError:
        return {}


class Functions:
    """What other programs call: each is an endpoint and an MCP tool, and tells people's mistakes as `UserError`."""

    def __init__(self, engine):
        self.engine = engine

    def caption(
        self,
        photo: str,
        num_beams: int = None,
        max_length: int = None,
        temperature: float = 0,
        details: bool = False,
        style: str = None,
    ) -> dict:
        """Writes Chinese sentences for a photo.

        Args:
            photo: JPEG, PNG, WebP, HEIC or another: what /gradio_api/upload answered, or a data: address.
            num_beams: how many sentences are considered and returned, 1 to 10; if not given, as the checkpoint says.
            max_length: characters of a sentence with start and end, from 5; if not given, what the checkpoint writes.
            temperature: 0 for the likeliest sentences, up to 2 for looser ones.
            details: also where each word looked: long.
            style: "detailed" for longer sentences, where the checkpoint has learnt them.

        Returns:
            {"caption", "captions": [{"caption", "score"}], "tags", "objects": [{"box", "label", "score"}], "seconds"}.
            Where the checkpoint knows how sure it can be, beside each caption stand "confidence", how probable it is
            that it is right, and "probably_wrong", whether that is below 0.5: tell people of it. With details each
            of the captions has "words": [{"word", "region_weights", "objects": numbers of regions}], and instead of
            "objects" there are "regions": [{"box", ...}] and "size": [width, height].
        """
        details = yes_or_no("details", details)
        result = self.engine.caption(self.prepared(photo), num_beams, max_length, temperature, style)
        return result if details else without_details(result)

    def match(self, photo: str, sentences: list[str]) -> dict:
        """How probable it is that each Chinese sentence is about the photo.

        Args:
            photo: JPEG, PNG, WebP, HEIC or another: what /gradio_api/upload answered, or a data: address.
            sentences: up to 20 sentences.

        Returns:
            {"matches": [{"text", "probability"}], likeliest first, "seconds"}.
        """
        if isinstance(sentences, str):  # as the page has them
            sentences = sentences.splitlines()
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise UserError("no_sentence")
        return self.engine.match(self.prepared(photo), sentences)

    def rank(self, sentence: str, photos: list[str] = None, with_samples: bool = False, top: int = 10) -> dict:
        """How probable it is that each photo is what a Chinese sentence says.

        Args:
            sentence: what to look for.
            photos: up to 200 photos, each as for caption. Without any, the sample photos of the demo.
            with_samples: also the sample photos.
            top: how many of the likeliest are returned, 1 to 200.

        Returns:
            {"matches": [{"photo" (its name), "index", "probability"}], likeliest first, "errors": [{"photo", "index",
            "error"}] of photos that cannot be read, "seconds"}.
        """
        top = whole("top", top, 1, MAX_PHOTOS)
        result = self.engine.rank(text(sentence, "no_sentence"), self.gallery(photos, with_samples))
        errors = [row | {"error": row["error"].message} for row in result["errors"]]
        return result | {"matches": result["matches"][:top], "errors": errors}

    def ask(self, photo: str, question: str) -> dict:
        """The five likeliest answers to a Chinese question about a photo.

        Args:
            photo: JPEG, PNG, WebP, HEIC or another: what /gradio_api/upload answered, or a data: address.
            question: for example 图里有几个人？

        Returns:
            {"answers": [{"answer", "probability"}], likeliest first, "seconds"}.
        """
        return self.engine.ask(self.prepared(photo), text(question, "no_question"))

    def batch(self, files: list[str]) -> dict:
        """Writes a Chinese sentence for each of many photos.

        Args:
            files: photos, each as for caption, uploaded zips with photos, or both; up to 200 photos.

        Returns:
            {"rows": [{"file", "caption", "score"} or {"file", "error"}]}, "confidence" and "probably_wrong" as caption.
        """
        found = photos_in(uploaded(files))
        return {"rows": [views.plain_row(row) for rows in self.engine.batch(found) for row in rows]}

    def prepared(self, upload):
        """The photo of an upload; its pixels are let go of before it waits for the model."""
        return self.engine.prepare(open_upload(upload))

    def gallery(self, files, with_samples, seen=lambda photo: None):
        """(name, photo or what is wrong with it) of files and samples, each opened when it is its turn: all at once
        would not fit into memory."""
        files = uploaded(files)
        if len(files) > MAX_PHOTOS:
            raise UserError("too_many_photos", limit=MAX_PHOTOS)
        if yes_or_no("with_samples", with_samples) or not files:
            files = files + [(name, str(path)) for name, (path, _) in samples().items()]
        return self.opened_in_turn(files, seen) if files else []

    def opened_in_turn(self, files, seen):
        for name, source in files:
            try:
                photo = read_photo(source)
                seen(photo)
                photo = self.engine.prepare(photo)
            except UserError as error:
                photo = error
                seen(photo)
            yield name, photo


class Pages(Functions):
    """The same for the browser: results and mistakes as HTML."""

    def show_caption(self, photo, num_beams, max_length, temperature, detailed=False):
        if photo is None:
            return views.views.empty("caption_empty", {})
        style = "detailed" if yes_or_no("detailed", detailed) else None
        opened = open_upload(photo)
        picture, prepared = views.picture(opened), self.engine.prepare(opened)
        del opened  # it may wait long
        result = self.engine.caption(prepared, num_beams, max_length, temperature, style)
        return views.views.caption(result, picture)

    def show_match(self, photo, sentences):
        return views.views.sentences(self.match(photo, text(sentences, "no_sentence").splitlines()))

    def show_rank(self, sentence, photos, with_samples):
        pictures = []

        def keep(photo):
            pictures.append(None if isinstance(photo, UserError) else views.picture(photo, 320))

        gallery = self.gallery(photos, with_samples, keep)
        result = self.engine.rank(text(sentence, "no_sentence"), gallery)
        return views.views.photos(result, pictures)

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
        questions = QUESTIONS if photo is None else self.engine.suggestions(self.prepared(photo))
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
        except Exception:
            logging.exception("%s failed", function.__name__)
            return gr.skip()

    return wrapper


class Demo(gr.Blocks):
    """Blocks that tell in one line of a call that does not fit its endpoint: gradio would tell the caller nothing and
    the log all that was sent."""

    async def process_api(self, block_fn, inputs, *arguments, **options):
        try:
            left_out = [component.value for component in block_fn.inputs[len(inputs) :]]  # their defaults
            return await super().process_api(block_fn, inputs + left_out, *arguments, **options)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            logging.warning("a call of %s does not fit: %s %.200r", block_fn.name, type(error).__name__, str(error))
            raise UserError("bad_request") from None


def text(value, key) -> str:
    if not isinstance(value, str):
        raise UserError(key)
    return value


def yes_or_no(name, value) -> bool:
    if not isinstance(value, bool):
        raise UserError("not_yes_or_no", name=name)
    return value


def without_details(result) -> dict:
    """What fits into a conversation."""
    captions = [in_short(one) for one in result["captions"]]
    objects = [{name: one[name] for name in ("box", "label", "score")} for one in best_objects(result["regions"])]
    names = ("caption", "confidence", "probably_wrong", "tags", "seconds")
    short = {name: result[name] for name in names if name in result}
    return short | {"captions": captions, "objects": objects}
