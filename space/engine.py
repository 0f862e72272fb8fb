"""What the pages and the API do: photos and words in, plain dicts out."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from hashlib import blake2b
from itertools import islice

import jieba
import torch
from words import UserError, cannot

from modeling_mengzi_oscar import MengziOscarPipeline
from modeling_mengzi_oscar.cli.checkpoint import BUNDLED
from modeling_mengzi_oscar.demo.pictures import best_objects
from modeling_mengzi_oscar.features.photo_sources import Photo
from modeling_mengzi_oscar.features.photo_stream import in_batches, read_ahead
from modeling_mengzi_oscar.loading import tasks_of
from modeling_mengzi_oscar.photos import PhotoError

try:  # ZeroGPU lends a GPU to a decorated function for as long as it runs
    from spaces import GPU
except ImportError:

    def GPU(function):
        return function


MAX_BEAMS, MAX_LENGTH, MAX_TEMPERATURE = 10, 60, 2.0
MIN_TEMPERATURE = 0.01  # of those above 0: scores divided by less than that are infinite
MAX_TEXT, MAX_SENTENCES = 200, 20
MAX_BATCH = 8  # photos in one forward
BATCH_SETTINGS = {"num_beams": None, "max_length": None, "temperature": 0, "style": None}  # None: the checkpoint's
REMEMBERED = 16  # photos of which is known what was seen in them
PEOPLE = set("人男女孩童婴")  # in words for people
QUESTIONS = ("图里有几个人？", "他们在做什么？", "这是在什么地方？")


class ModelThread:
    """The one thread that runs the model: more at a time would only share the same cores.

    A thread, not a lock around whoever calls: oneDNN's scratch memory and OpenMP's helpers belong to the thread that
    calls them, and gradio has forty.
    """

    def __init__(self):
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="model")

    def submit(self, function, *arguments) -> Future:
        return self.pool.submit(copy_context().run, function, *arguments)  # ZeroGPU looks there for whose request it is

    def run(self, function, *arguments):
        return self.submit(function, *arguments).result()


class Together:
    """Calls that arrive while another one runs are run together, up to `limit` with equal settings.

    Gradio can batch events itself, but then one broken request (a file it refuses, a missing argument) fails for
    everybody in its batch; here each request is checked before it joins.

    Args:
        run: (list of items, settings) -> list of results, a `UserError` in the place of one that has none.
        thread: where it runs.
    """

    def __init__(self, run, thread: ModelThread, limit: int = MAX_BATCH):
        self.run, self.thread, self.limit = run, thread, limit
        self.waiting, self.adding = [], threading.Lock()

    def __call__(self, item, **settings):
        done = Future()
        with self.adding:
            self.waiting.append((item, settings, done))
        self.thread.submit(self.run_next)
        return done.result()

    def run_next(self):
        with self.adding:
            if not self.waiting:  # somebody before us ran ours with theirs
                return
            settings = self.waiting[0][1]
            chosen = [call for call in self.waiting if call[1] == settings][: self.limit]
            self.waiting = [call for call in self.waiting if not any(call is other for other in chosen)]
        try:
            results = self.run([item for item, _, _ in chosen], settings)
        except Exception as error:
            for _, _, done in chosen:
                done.set_exception(error)
        else:
            for (_, _, done), result in zip(chosen, results, strict=True):
                done.set_exception(result) if isinstance(result, UserError) else done.set_result(result)


class Engine:
    """A checkpoint and what it can do.

    Args:
        model: folder, or Hub id with its revision, "org/name@commit".
    """

    def __init__(self, model: str):
        self.model = model
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline = MengziOscarPipeline.from_pretrained(model, device=device)
        self.styles, self.num_beams, self.lengths, self.max_length = [], MAX_BEAMS, {None: MAX_LENGTH}, MAX_LENGTH
        self.tasks = tasks_of(model)  # of a checkpoint that is a head: without captions
        for task in {*self.tasks} - {"caption"}:
            self.pipeline._head(task)  # a damaged one is told before anybody asks
        if "caption" in self.tasks:
            self.read_caption_settings()
        self.thread = ModelThread()
        self.run_captions, self.run_tags = GPU(self._captions), GPU(self._tags)
        self.run_match, self.run_ask, self.run_rank = GPU(self._match), GPU(self._ask), GPU(self.pipeline.rank)
        self.seen = {}  # hash of a photo -> what was seen in it; the model's thread alone looks in here
        self.caption_together = Together(self.run_captions, self.thread)
        jieba.setLogLevel("ERROR")
        jieba.initialize()

    def read_caption_settings(self):
        """What the checkpoint says of its captions, and what may be asked of it."""
        captioner = self.pipeline.captioner
        self.styles = list(self.pipeline.processor.styles or [])
        beams = captioner.generation_setting("num_beams", None, captioner.open_settings(None, {}))
        self.num_beams = min(beams or 1, MAX_BEAMS)
        self.lengths = {style: self.pipeline.caption_length(style) for style in (None, *self.styles)}
        self.max_length = min(self.pipeline.longest_caption, max(MAX_LENGTH, *self.lengths.values()))

    def caption(self, photo, num_beams=None, max_length=None, temperature=0.0, style=None) -> dict:
        """Captions of a photo (RGB, or what `prepare` made of it, as in all that takes one), best first, with the words
        of each and the weight of every region for a word.

        Beams and length are the checkpoint's where they are None.
        """
        self.need("caption")
        if style is not None and style not in self.styles:
            raise UserError("no_style", known=", ".join(self.styles) or "—")
        length, beams = self.lengths[style], self.num_beams
        settings = {
            "num_beams": beams if num_beams is None else whole("num_beams", num_beams, 1, MAX_BEAMS),
            "max_length": length if max_length is None else whole("max_length", max_length, 5, self.max_length),
            "temperature": number("temperature", temperature, 0, MAX_TEMPERATURE),
            "style": style,
        }
        start = time.perf_counter()
        result = self.caption_together(photo, **settings)
        return result | {"seconds": round(time.perf_counter() - start, 3)}

    def _captions(self, photos, settings):
        count, length, temperature = settings["num_beams"], settings["max_length"], settings["temperature"]
        generation = {"num_beams": count, "max_length": length, "style": settings["style"]}
        if temperature > 0:  # the search has no use for a temperature: draw as many sentences instead
            generation |= {"num_beams": 1, "num_return_sequences": count, "do_sample": True}
            generation["temperature"] = max(temperature, MIN_TEMPERATURE)
        results = self.pipeline.caption(self.look(photos), **generation)
        return [
            UserError("damaged") if "error" in result else simplify(result, photo, temperature > 0)
            for result, photo in zip(results, photos, strict=True)
        ]

    def match(self, photo, sentences: list[str]) -> dict:
        """How probable it is that each sentence belongs to the photo, likeliest first."""
        self.need("match")
        sentences = [sentence.strip() for sentence in sentences if sentence.strip()]
        if not sentences:
            raise UserError("no_sentence")
        if len(sentences) > MAX_SENTENCES:
            raise UserError("too_many_sentences", count=len(sentences), limit=MAX_SENTENCES)
        for sentence in sentences:
            check_length(sentence)
        start = time.perf_counter()
        matches = self.thread.run(self.run_match, photo, sentences)
        return ranked(matches, start)

    def rank(self, sentence: str, photos: list[tuple[str, object]]) -> dict:
        """How probable it is that each photo, (name, RGB), belongs to the sentence, likeliest first.

        What is wrong with a photo, a `UserError` in its place, is returned with its name under "errors".
        """
        self.need("match")
        if not sentence.strip():
            raise UserError("no_sentence")
        check_length(sentence)
        if not photos:
            raise UserError("no_photos")
        start, matches, errors, numbered = time.perf_counter(), [], [], enumerate(photos)
        while turn := list(islice(numbered, MAX_BATCH)):  # a few at a time: others get in between
            good = [(name, index, photo) for index, (name, photo) in turn if not isinstance(photo, UserError)]
            errors += [
                {"photo": name, "index": index, "error": photo}
                for index, (name, photo) in turn
                if isinstance(photo, UserError)
            ]
            rows = self.thread.run(self.run_rank, sentence.strip(), [photo for _, _, photo in good]) if good else []
            for row in rows:
                name, index, _ = good[row["photo"]]
                found = {"photo": name, "index": index}
                if "error" in row:
                    errors.append(found | {"error": UserError("damaged")})
                else:
                    matches.append(found | {"probability": row["probability"]})
        errors.sort(key=lambda row: row["index"])
        return ranked(sorted(matches, key=lambda row: row["index"]), start) | {"errors": errors}

    def ask(self, photo, question: str) -> dict:
        """The five likeliest answers."""
        self.need("ask")
        if not question.strip():
            raise UserError("no_question")
        check_length(question)
        start = time.perf_counter()
        answers = self.thread.run(self.run_ask, photo, question.strip())
        return {"answers": rounded(answers), "seconds": round(time.perf_counter() - start, 3)}

    def batch(self, photos: list[tuple[str, object]]):
        """Of (name, function that reads the photo): lists of rows, as they come, in order; the next ones are read
        meanwhile.

        A row is {"file", "photo", and what `in_short` tells of a caption} or {"file", "error"}.
        """
        self.need("caption")
        for batch in in_batches(read_in_turn(photos), MAX_BATCH):
            good = [photo for _, photo in batch if not isinstance(photo, UserError)]
            made = iter(self.thread.run(self.run_captions, good, BATCH_SETTINGS) if good else ())
            rows = []
            for name, photo in batch:
                result = photo if isinstance(photo, UserError) else next(made)
                if isinstance(result, UserError):
                    rows.append({"file": name, "error": result})
                else:
                    rows.append({"file": name, "photo": photo} | in_short(result["captions"][0]))
            yield rows

    def suggestions(self, photo) -> list[str]:
        """Questions worth asking about this photo: of what the region model sees in it, then what fits any photo."""
        tags = self.thread.run(self.run_tags, photo)
        things = [tag for tag in dict.fromkeys(tags) if 1 < len(tag) <= 4 and not set(tag) & set("人男女孩子在个？")]
        return [f"{thing}是什么颜色的？" for thing in things[:2]] + list(QUESTIONS)

    def prepare(self, photo):
        """A photo (RGB) as the region model takes it: one of 12 megapixels would hold 36 MB while it waits.

        Raises:
            UserError: there is nothing to look at.
        """
        prepared = self.pipeline.finder.prepare(photo)
        if isinstance(prepared, PhotoError):
            raise UserError("damaged")
        return prepared

    def look(self, photos) -> list:
        """What is seen in photos. Of the last ones it is remembered: people caption one, then ask about it."""
        photos = [self.prepare(photo) for photo in photos]
        hashes = [hash_of(photo.inputs) for photo in photos]
        new = {key: photo for key, photo in zip(hashes, photos, strict=True) if key not in self.seen}
        known = self.seen | dict(zip(new, self.pipeline.look(list(new.values())), strict=True))
        self.seen = dict(list(known.items())[-REMEMBERED:])
        return [known[key] for key in hashes]

    def _match(self, photo, sentences):
        return self.pipeline.match(self.look([photo])[0], sentences)

    def _ask(self, photo, question):
        return self.pipeline.ask(self.look([photo])[0], question)

    def _tags(self, photo):
        return self.pipeline.look(self.look([photo])[0]).tags

    def describe(self) -> dict:
        """The checkpoint, its region model, its tasks and sizes."""
        model, regions = self.pipeline.model, self.pipeline.region_model
        millions = {
            name: round(sum(weights.numel() for weights in (*part.parameters(), *in_8_bits(part))) / 1e6, 1)
            for name, part in {"captioner": model, "regions": regions}.items()
        }
        return {
            "model": "mengzi-oscar-mini" if self.model == str(BUNDLED) else self.model,
            "bundled": self.model == str(BUNDLED),
            "tasks": self.tasks,
            "region_model": regions.config.model_type,
            "region_config": regions.config,
            "millions_of_parameters": millions,
            "device": str(model.device),
        }

    def need(self, task):
        if task not in self.tasks:
            raise cannot(task)


def in_8_bits(model) -> list[torch.Tensor]:
    """Weights that are stored so: no parameters, for torch."""
    return [buffer for buffer in model.buffers() if buffer.dtype == torch.int8]


def read_in_turn(photos):
    """(name, function that reads the photo) -> (name, photo or what is wrong with it), read ahead in threads."""
    named = (Photo(name, name, lambda read=read: read) for name, read in photos)
    for photo, future in read_ahead(named, lambda read, name: read()):
        try:
            yield photo.name, future.result()
        except UserError as error:
            yield photo.name, error


def hash_of(inputs) -> bytes:
    """Of what a region model takes."""
    content = blake2b()
    for name, values in sorted(inputs.items()):
        content.update(f"{name} {tuple(values.shape)}".encode())
        content.update(values.numpy().tobytes())
    return content.digest()


def simplify(result, photo, drawn) -> dict:
    """The pipeline's dict with tokens joined to words and short numbers; captions that were drawn twice or in no order
    once and best first."""
    captions = result["captions"]
    if drawn:
        captions = sorted({one["caption"]: one for one in captions}.values(), key=lambda one: -one["score"])
    best = in_short(captions[0])
    return {name: best[name] for name in best if name != "score"} | {
        "captions": [in_short(one) | {"words": words_of(one, result["regions"])} for one in captions],
        "tags": list(dict.fromkeys(result["tags"])),
        "regions": [shortened(region) for region in result["regions"]],
        "size": list(photo.size),
    }


def in_short(caption) -> dict:
    """A caption and how sure it is: its score, and what the checkpoint makes of that, where it knows."""
    numbers = {name: round(caption[name], 4) for name in ("score", "confidence") if name in caption}
    marks = {name: caption[name] for name in ("probably_wrong",) if name in caption}
    return {"caption": caption["caption"]} | numbers | marks


def words_of(caption, regions) -> list[dict]:
    """[{"word", "region_weights", "objects"}]: jieba's words, each with the mean of the weights of its tokens
    (characters), and the numbers of the likely objects that it names."""
    likely = [(number, region) for number, region in enumerate(regions) if region in best_objects(regions)]
    pieces = [token.removeprefix("##") for token in caption["tokens"]]
    words = []
    for word, start, end in jieba.tokenize("".join(pieces)):
        at, weights = 0, []
        for piece, row in zip(pieces, caption["region_weights"], strict=True):
            if start < at + len(piece) and at < end:
                weights.append(row)
            at += len(piece)
        mean = [sum(column) / len(weights) for column in zip(*weights, strict=True)]
        objects = [number for number, region in likely if names(word, region["label"])]
        words.append({"word": word, "region_weights": [round(weight, 4) for weight in mean], "objects": objects})
    return words


def names(word, label) -> bool:
    """Whether a word of a caption says an object's label: 小狗 is a 狗, 车 any 汽车, 桌子 a 餐桌, 女孩 a 人."""
    stem, general = label.removesuffix("子"), word.removesuffix("子") or word
    return word.endswith(stem) or label.endswith(general) or (label == "人" and bool(set(word) & PEOPLE))


def shortened(region) -> dict:
    """Numbers of a region as people read them."""
    short = {"box": [round(side, 1) for side in region["box"]]}
    if "label" in region:
        attributes = [{"label": one["label"], "score": round(one["score"], 3)} for one in region.get("attributes", ())]
        short |= {"label": region["label"], "score": round(region["score"], 3), "attributes": attributes}
    return short


def ranked(matches, start) -> dict:
    matches = sorted(rounded(matches), key=lambda match: -match["probability"])
    return {"matches": matches, "seconds": round(time.perf_counter() - start, 3)}


def rounded(rows):
    return [row | {"probability": round(row["probability"], 4)} for row in rows]


def number(name, value, low, high) -> float:
    """A number that came from outside, in its range. A slider's 2.0 comes as 2, where transformers wants a float."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is in no range
        raise UserError("out_of_range", name=name, low=low, high=high)
    return float(value)


def whole(name, value, low, high) -> int:
    value = number(name, value, low, high)
    if value != int(value):
        raise UserError("not_whole", name=name, low=low, high=high)
    return int(value)


def check_length(text):
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # half a character: JSON can name it
        raise UserError("not_text")
    if len(text) > MAX_TEXT:
        raise UserError("too_long", length=len(text), limit=MAX_TEXT)
