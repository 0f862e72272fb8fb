"""Photo -> caption, answer or match, with everything in between.

One folder (or Hub repo) holds a captioner, a match head or a head that answers at its root, further tasks in subfolders
(`ask/`, `match/`), and names its region model, so that a photo can never meet the wrong features.
"""

import json
import os
import re
from inspect import signature
from pathlib import Path
from types import GeneratorType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import Dataset
from transformers import GenerationConfig, GenerationMixin, Pipeline

from .checkpoint_folder import CALIBRATION, CheckpointError, check_weights
from .confidence import PROBABLY_WRONG, calibrations_of, confidence
from .generation_mengzi_oscar import check_whole
from .loading import (
    KINDS,
    TASKS,
    check_together,
    check_width,
    has_head,
    load_checked,
    load_processor,
    load_region_model,
    task_of_root,
)
from .matching import Matcher, log_odds
from .modeling_mengzi_oscar import (
    MengziOscarForImageCaptioning,
    MengziOscarForImageTextRetrieval,
    MengziOscarForVisualQuestionAnswering,
)
from .photos import PhotoError, sent_photo
from .precision import chosen_dtype, compute_in, region_dtype
from .processing_mengzi_oscar import as_texts, numbered
from .seen_photos import RegionFinder, SeenPhoto, is_one_photo, open_or_error

if TYPE_CHECKING:  # transformers before 5.10 brings only the files that the file of a class names itself
    from .checksums import checksums  # noqa: F401
    from .configuration_mengzi_oscar import MengziOscarConfig  # noqa: F401
    from .configuration_vinvl import VinVLConfig  # noqa: F401
    from .fields import Rule  # noqa: F401
    from .generation_mengzi_oscar import MaskQueryGenerationMixin  # noqa: F401
    from .image_processing_vinvl import VinVLImageProcessor  # noqa: F401
    from .modeling_grid_regions import GridRegionModel  # noqa: F401
    from .modeling_nanodet import NanoDetForObjectDetection  # noqa: F401
    from .modeling_object_regions import ObjectRegionModel  # noqa: F401
    from .modeling_regions import RegionModelOutput  # noqa: F401
    from .modeling_vinvl import VinVLModel  # noqa: F401
    from .openvino_networks import Network  # noqa: F401
    from .processing_mengzi_oscar import MengziOscarProcessor  # noqa: F401
    from .progress import Bar  # noqa: F401
    from .quantization import quantize  # noqa: F401
    from .supported_transformers import OLDEST  # noqa: F401

CAPTIONER = MengziOscarForImageCaptioning
TASK_HEADS = {"ask": MengziOscarForVisualQuestionAnswering, "match": MengziOscarForImageTextRetrieval}
METHODS = {  # name of transformers' pipeline -> what it calls, and what that cannot do without beside photos
    "mengzi-oscar-captioning": ("caption", None),
    "mengzi-oscar-matching": ("match", "texts"),
    "mengzi-oscar-answering": ("ask", "question"),
}
REQUESTS = {  # what a request to a server may say beside photos, by the method that it asks for
    "match": ("texts",),
    "ask": ("question", "top"),
    "caption": (
        *("style", "num_beams", "max_new_tokens", "num_return_sequences"),
        *("do_sample", "temperature", "top_k", "top_p"),
    ),
}
REGION_MODEL = "region_model"  # the subfolder of it
SURE = ("score", "confidence", "probably_wrong")  # the last two only of calibrated checkpoints
LOOKED_AHEAD = 32  # photos encoded ahead
KEPT_BYTES = 2**20  # what a head prepared of a photo is kept for the next call up to this size; the mini's has 0.3 MB


class MengziOscarPipeline:
    """Captions, answers and matches for photos; `MengziOscarPipeline.from_pretrained("checkpoints/mengzi-oscar-mini")`.

    Args:
        model: captioner, match head or head that answers: the root of a checkpoint. processor: its own.
        load_head: a function from "ask" or "match" to the model and processor of that task, called when it is first
            asked for; None where there is only the root.
        load_exact: a function to the same pipeline in float32, where this one's weights are rounded.
        calibrations: of the model's captions, as `calibrations_of` finds them.
    """

    def __init__(
        self, model, processor, region_model, image_processor, load_head=None, load_exact=None, calibrations=None
    ):
        self.model, self.processor = model.eval(), processor
        self.finder = RegionFinder(region_model, image_processor)
        self.task = TASKS.get(type(model).__name__, "caption")
        self._load_head, self._load_exact = load_head, load_exact
        self.calibrations = calibrations or {}
        self._heads = {} if self.task == "caption" else {self.task: (self.model, processor)}
        self._prepared = WeakKeyDictionary()  # SeenPhoto -> what the match head prepared of it

    @property
    def region_model(self):
        return self.finder.region_model

    @property
    def image_processor(self):
        return self.finder.image_processor

    @property
    def captioner(self):
        """The model that writes captions.

        Raises:
            CheckpointError: the checkpoint is a head for another task; which, and what to name.
        """
        if self.task != "caption":
            raise CheckpointError(
                f"{self.model.config.name_or_path}: is {KINDS[self.task]} and writes no captions: "
                f"use {self.task}, or name a captioner"
            )
        return self.model

    @captioner.setter
    def captioner(self, model):
        self.model, self.calibrations = model, calibrations_of(model, self.processor)

    @classmethod
    def from_pretrained(cls, name, revision=None, device="cpu", dtype="auto", region_model=True):
        """
        Args:
            name: folder or Hub id, "org/name" or "org/name@revision". revision: of the Hub repo, the other way.
            device, dtype: "auto" is bfloat16 on GPUs and on CPUs with AMX (`fast_dtype`), else float32, whatever the
                checkpoint is stored in. "int8" computes captioner and heads in 8 bits (`quantize`), on CPUs. So does a
                calibrated VinVL if OpenVINO is installed; other region models stay in float32.
            region_model: False if features come from a store. Then no region model is loaded or needed.

        Raises:
            CheckpointError: nothing to load; a file that is damaged or outside the folder; an invalid field; weights
                that are missing, left over, of another size or not finite.
            ValueError: another dtype; int8 on another device, or a torch without it.
        """

        dtype = chosen_dtype(dtype, device)
        root = TASK_HEADS.get(task_of_root(name, revision), CAPTIONER)
        root, processor = load_checked(root, name, revision=revision), load_processor(name, revision)
        calibrations = calibrations_of(root, processor)
        root = compute_in(dtype, root, device)
        region_model, image_processor = load_region_model(name, revision=revision) if region_model else (None, None)
        check_width(region_model, root.config)

        def load_head(task):
            model, head_processor = head_in_subfolder(name, task, revision, region_model)
            return compute_in(dtype, model, device), head_processor

        def load_exact():
            return cls.from_pretrained(name, revision, dtype="float32")

        region_model = region_model and compute_in(region_dtype(dtype, device), region_model, device)
        exact = None if dtype == torch.float32 else load_exact
        return cls(root, processor, region_model, image_processor, load_head, exact, calibrations)

    def save_pretrained(self, folder) -> None:
        """Saves everything that `from_pretrained` loads: model, processor, region model, heads.

        Weights are never saved rounded: a pipeline in bfloat16 or 8 bits saves the checkpoint it was loaded from.

        Raises:
            CheckpointError: the pipeline was loaded without its region model.
        """
        if self.region_model is None:
            raise CheckpointError(f"{self.model.config.name_or_path}: loaded without its region model; load it whole")
        if self._load_exact is not None:
            return self._load_exact().save_pretrained(folder)
        folder, config = Path(folder), self.model.config
        for part in (self.region_model, self.image_processor):
            part.save_pretrained(folder / REGION_MODEL)
        if (calibration := self.region_model.calibration) is not None:
            (folder / REGION_MODEL / CALIBRATION).write_text(json.dumps(calibration), encoding="utf-8")
        named, config.region_model = config.region_model, REGION_MODEL
        try:
            self.model.save_pretrained(folder)
        finally:
            config.region_model = named
        self.processor.save_pretrained(folder)
        for task in TASK_HEADS.keys() - {self.task}:
            try:
                head, processor = self._head(task)
            except CheckpointError:  # not every checkpoint has it
                continue
            head.save_pretrained(folder / task, state_dict=head.state_dict())
            processor.save_pretrained(folder / task)

    def look(self, photos):
        """Encodes photos once, for any number of calls of `caption`, `ask`, `match` and `rank`.

        Args:
            photos: a path, PIL image or array (H, W, 3), or several: a list, tuple, generator, column.

        Returns:
            A `SeenPhoto`, or a list of them for several photos, with {"error": the line} in place of an unreadable one.
            The other methods take them like photos, also mixed with photos, and return the same results.

        Raises:
            PhotoError: the one photo cannot be read.
        """
        return self._of_each(photos, lambda seen: seen)

    def seen(self, regions, name=None) -> SeenPhoto:
        """The result of `look`, from a store that this checkpoint's region model filled.

        Args:
            regions: `RegionFeatureStore.open(path)[image_id]`. name: of the photo.

        Raises:
            ValueError: a field of the region model is missing, or its features have another width.
        """
        return self.finder.stored(regions, name)

    def caption(self, photos, batch_size=LOOKED_AHEAD, style=None, **generation) -> dict | list[dict]:
        """
        Args:
            photos: a path, PIL image or array (H, W, 3), or several: a list, tuple, generator, column. Or what `look`
                returned, here and in the methods below.
            batch_size: photos captioned together.
            style: "short" or "detailed", if the checkpoint has styles (`processor.styles`). None = captions are
                prompted with [CLS], as usual.
            **generation: as for `MengziOscarForImageCaptioning.generate`: `num_beams`, `max_length`, ... What is not
                given, or None, comes from the checkpoint: `caption_length` tokens, beams, ...

        Returns:
            A dict, or a list of dicts for several photos: `caption`, `score` (exp of the mean log-probability of its
            tokens), `captions` (all results of the search, best first, each with `caption`, `score`, `tokens` and
            `region_weights`, the attention of tokens x regions), `tags`, `regions` (`box` in pixels of the upright
            photo, and what the region model says of it). Among several photos an unreadable one costs only itself and
            becomes {"error": the line}. A calibrated checkpoint (confidence.py) adds to each `score` a `confidence`,
            the probability from 0 to 1 that the caption is right, and `probably_wrong`, whether that is below 0.5.

        Raises:
            PhotoError: the one photo cannot be read, or was encoded by another region model. ValueError: invalid
            settings, before any photo is opened; with an empty list they are only checked.
        """
        check_whole("batch_size", batch_size, 1)
        generation = self._generation(style, generation)
        return self._of_each(photos, lambda seen: self._caption_batch(seen, style, generation), batch_size)

    def ask(self, photo, question, top: int = 5, batch_size: int = 64) -> list[dict] | list[list[dict]]:
        """The likeliest answers to a question about a photo: [{"answer", "probability"}], best first.

        Several questions give a list of such lists, several photos a list of what one photo gives, with
        {"error": the line} in place of an unreadable one. The answers are the `top` of those that the checkpoint's
        `ask/` head knows. `batch_size` pairs of a photo and a question share a forward pass.

        Raises:
            CheckpointError: the checkpoint has no such head. PhotoError: the one photo cannot be read. ValueError: a
            question that is empty or no text, `top` or `batch_size` below 1.
        """
        check_whole("top", top, 1)
        check_whole("batch_size", batch_size, 1)
        questions = words_in(question, "question")
        model, processor = self._head("ask")
        scorer = Matcher(model, processor, batch_size)
        encoded, names = scorer.encode(questions), model.config.id2label

        def run(seen):
            logits = scorer.logits([image.as_input() for image in seen], encoded)  # (photos, questions, answers)
            several_may_be_right = model.config.loss_type == "bce"
            probabilities = logits.sigmoid() if several_may_be_right else logits.softmax(dim=-1)
            best = probabilities.topk(min(top, probabilities.shape[-1]))
            per_image = [
                [
                    [{"answer": names[index], "probability": value} for value, index in zip(*answers, strict=True)]
                    for answers in zip(*rows, strict=True)
                ]
                for rows in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
            return [rows[0] for rows in per_image] if isinstance(question, str) else per_image

        return self._of_each(photo, run)

    def match(self, photo, texts, batch_size: int = 64) -> list[dict] | list[list[dict]]:
        """Image-text matching (ITM): the probability that each text fits the photo, [{"text", "probability"}] in order.

        `texts` is a string, or several in a list, tuple, generator, column. Several photos give a list of such lists,
        with {"error": the line} in place of an unreadable one. `batch_size` pairs share a forward pass.

        Raises:
            CheckpointError: the checkpoint has no `match/` head. PhotoError: the one photo cannot be read. ValueError:
            a text that is empty or no text.
        """
        texts, log_odds_of, probabilities = self._matcher(texts, batch_size)

        def run(seen):
            rows = probabilities(log_odds_of(seen)).tolist()
            return [
                [{"text": text, "probability": probability} for text, probability in zip(texts, row, strict=True)]
                for row in rows
            ]

        return self._of_each(photo, run)

    def rank(self, texts, photos, top: int | None = None, batch_size: int = 64) -> list[dict] | list[list[dict]]:
        """The photos that match a text best: [{"photo", "probability"}], best first; `match` of every pair, sorted.

        Args:
            texts: a string, or several in a list, tuple, generator, column: then a list of such lists.
            photos: one or several. A generator is consumed lazily: memory does not grow with the number of photos.
            top: number of best photos; None = all of them.

        Returns:
            "photo" is the photo's number in `photos`, from 0, with "name" if it has one. Unreadable photos are at the
            end of every list, whatever `top` is, with "error" instead of "probability".

        Raises:
            CheckpointError: the checkpoint has no `match/` head. PhotoError: the one photo cannot be read. ValueError:
            a text that is empty or no text, `top` or `batch_size` below 1.
        """
        if top is not None:
            check_whole("top", top, 1)
        one, (texts, log_odds_of, probabilities) = isinstance(texts, str), self._matcher(texts, batch_size)
        if is_one_photo(photos):
            photos = [self.look(photos)]
        found, scores, errors = [], [torch.zeros(0, len(texts))], []
        for batch in self.finder.batches(photos, LOOKED_AHEAD):
            seen = {number: image for number, image in batch if isinstance(image, SeenPhoto)}
            found += [
                {"photo": number} | ({"name": image.name} if image.name else {}) for number, image in seen.items()
            ]
            scores += [log_odds_of(list(seen.values()))] if seen else []
            errors += [{"photo": number, "error": str(error)} for number, error in batch if number not in seen]
        rankings = []
        for column in torch.cat(scores).T:
            order = column.argsort(descending=True, stable=True)[:top]
            best = zip(order.tolist(), probabilities(column[order]).tolist(), strict=True)
            rankings.append([found[index] | {"probability": value} for index, value in best] + errors)
        return rankings[0] if one else rankings

    def _matcher(self, texts, batch_size):
        """The texts as a list, a function from encoded photos to log-odds (photos, texts), and one from
        those to probabilities."""
        check_whole("batch_size", batch_size, 1)
        texts = words_in(texts, "texts")
        matcher = Matcher(*self._head("match"), batch_size)
        encoded = matcher.encode(texts)

        def log_odds_of(seen):
            images = [image.as_input() for image in seen]
            return log_odds(matcher.logits(images, encoded, prepared=self._prepare(matcher, seen, images))).cpu()

        return texts, log_odds_of, matcher.probabilities

    def _prepare(self, matcher, seen, images) -> list:
        """What the match head needs of photos whatever the text, kept where it is small and worth it."""
        new = [index for index, image in enumerate(seen) if image not in self._prepared]
        prepared = dict(zip(new, matcher.prepare([images[index] for index in new]), strict=True))
        for index, one in prepared.items():
            if one.memories is not None and one.bytes <= KEPT_BYTES:
                self._prepared[seen[index]] = one
        return [prepared.get(index) or self._prepared[image] for index, image in enumerate(seen)]

    def caption_length(self, style=None) -> int:
        """Maximum tokens of a caption of that style, [CLS] and [SEP] included, unless the call says otherwise."""
        return (self.processor.style_lengths or {}).get(style) or self.captioner.caption_length(1, None, {})

    @property
    def longest_caption(self) -> int:
        """Maximum tokens a call may ask for: the captioner's positions minus those of its tags."""
        return self.captioner.config.max_position_embeddings - self.processor.tag_room

    def _head(self, task):
        """Model and processor of "ask" or "match"."""
        if task not in self._heads:
            if self._load_head is None:
                raise CheckpointError(f"there is no {task}/ head: load the checkpoint with MengziOscarPipeline")
            self._heads[task] = self._load_head(task)
        return self._heads[task]

    def _of_each(self, photos, run, batch_size=LOOKED_AHEAD):
        """What `run` makes of encoded photos (list -> list): of one photo one result, of several a list.

        A photo that cannot be read raises where it is the only one, and costs only its own result in a list.
        """
        if is_one_photo(photos):
            [seen] = self.finder.look([photos])
            if isinstance(seen, PhotoError):
                raise seen
            return run([seen])[0]
        results = []
        for batch in self.finder.batches(photos, batch_size):
            seen = [image for _, image in batch if isinstance(image, SeenPhoto)]
            made = iter(run(seen) if seen else [])
            results += [next(made) if isinstance(image, SeenPhoto) else {"error": str(image)} for _, image in batch]
        return results

    def _generation(self, style, generation) -> dict:
        """Arguments for `generate` as they were meant, checked.

        Raises:
            ValueError
        """
        captioner = self.captioner
        self.processor.begin(style, 0)
        generation = {name: value for name, value in generation.items() if value is not None}  # as nobody said it
        if (config := generation.pop("generation_config", None)) is not None:  # what it says, as arguments
            if not isinstance(config, GenerationConfig):
                kind = type(config).__name__
                raise ValueError(f"generation_config is of the type {kind}; give transformers' GenerationConfig")
            said = {name: value for name, value in config.to_dict().items() if value is not None}
            generation = {name: said[name] for name in said if name in vars(config)} | generation
            generation.pop("transformers_version", None)
        known = {*vars(GenerationConfig()), *signature(GenerationMixin.generate).parameters, "mask_token_id"}
        if unknown := [name for name in generation if name not in known - {"self", "inputs", "kwargs"}]:
            raise ValueError(f"caption does not know {', '.join(unknown)}; it takes what transformers' generate takes")
        generation["return_dict_in_generate"] = False
        if not {"max_length", "max_new_tokens"} & generation.keys():
            generation["max_length"] = self.caption_length(style)
        settings = captioner.open_settings(None, generation) | generation
        captioner.check_settings(settings, tags=self.processor.tag_room)
        return generation

    @torch.inference_mode()
    def _caption_batch(self, images, style, generation):
        regions, tags = [image.region_features for image in images], [image.tags for image in images]
        encoded = self.processor(tags=tags, regions=regions, return_tensors="pt").to(self.captioner.device)
        settings = self.captioner.open_settings(None, generation) | generation
        beams = self.captioner.generation_setting("num_beams", None, settings) or 1
        begun = self.processor.begin(style, len(images)).to(self.captioner.device)
        calibration = self._calibration(style, beams, settings)
        sequences = self.captioner.generate(**encoded, input_ids=begun, **{"num_return_sequences": beams} | generation)
        per_photo = sequences.split(len(sequences) // len(images))
        captions = [[self._until_sep(ids) for ids in rows.tolist()] for rows in per_photo]
        masks = encoded["tag_attention_mask"].bool()
        scored = self.captioner.score_captions(
            captions,
            encoded["region_features"],
            encoded["region_attention_mask"],
            tags=[ids[mask].tolist() for ids, mask in zip(encoded["tag_input_ids"], masks, strict=True)],
            tag_position=self.captioner.tag_start(self.captioner.caption_length(begun.shape[1], None, generation)),
        )
        scored, results = iter(zip(*scored, strict=True)), []
        for image, image_captions in zip(images, captions, strict=True):
            boxes = image.regions[: self.processor.max_regions]  # those that the captioner takes
            rows = [self._describe(ids, *next(scored), len(boxes), calibration) for ids in image_captions]
            best = {name: rows[0][name] for name in ("caption", *SURE) if name in rows[0]}
            results.append(best | {"captions": rows, "tags": image.tags, "regions": boxes})
        return results

    def _until_sep(self, ids):
        end = self.processor.tokenizer.sep_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids

    def _calibration(self, style, beams, settings):
        """What turns scores of such captions into confidence; None where that is not known."""
        calibration = self.calibrations.get(
            (self.processor.styles or {}).get(style, self.processor.tokenizer.cls_token)
        )
        sampled = self.captioner.generation_setting("do_sample", None, settings)
        return calibration if calibration and beams == calibration["num_beams"] and not sampled else None

    def _describe(self, ids, log_probs, region_weights, regions, calibration):
        end = len(ids) - 1 if ids[-1] == self.processor.tokenizer.sep_token_id else len(ids)
        score, sure = log_probs.mean().exp().item(), {}
        if calibration is not None:
            sure["confidence"] = confidence(calibration, score, end - 1)
            sure["probably_wrong"] = sure["confidence"] < PROBABLY_WRONG
        return {
            "caption": self.processor.decode(ids),
            "score": score,
            **sure,
            "tokens": self.processor.tokenizer.convert_ids_to_tokens(ids[1:end]),
            "region_weights": region_weights[: end - 1, :regions].tolist(),
        }


def head_in_subfolder(name, task, revision, region_model):
    """Model and processor of "ask" or "match".

    Raises:
        CheckpointError: the checkpoint has no such head, or it does not fit.
    """
    if not has_head(name, task, revision):
        put = f", or put one into it: mengzi-oscar convert HEAD {name}/{task}" if os.path.isdir(name) else ""
        raise CheckpointError(
            f"{name}: has no {task}/ head: this checkpoint was not trained to {task}; name one that was{put}"
        )
    model = load_checked(TASK_HEADS[task], name, revision, task)
    check_width(region_model, model.config)
    return model.eval(), load_processor(name, revision, task)


def sent_or_error(photo):
    """A photo that a client sent, or what stands in its place among several."""
    try:
        return sent_photo(photo)
    except PhotoError as error:
        return {"error": str(error)}


def words_in(texts, name: str) -> list[str]:
    """A text or several -> a list of them.

    Raises:
        ValueError: one is empty, or no text; which.
    """
    rows = as_texts(texts, name)
    empty = {number: "is empty" for number, text in enumerate(rows) if not text.strip()}
    if empty:
        raise ValueError(f"{name} is empty" if isinstance(texts, str) else f"{name}{numbered(empty)}")
    return rows


class MengziOscarPhotoPipeline(Pipeline):
    """`pipeline("mengzi-oscar-captioning", model=..., revision=..., trust_remote_code=True)`: the pipeline above.

    Photos in, what `MengziOscarPipeline` makes of them out. Also "mengzi-oscar-matching", called with `texts=`, and
    "mengzi-oscar-answering", called with `question=`: by the root of the repo or a head in a subfolder of it. `dtype`
    as in `MengziOscarPipeline.from_pretrained`.
    """

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_feature_extractor = _load_video_processor = False

    def __init__(self, model, processor, dtype="auto", **kwargs):
        super().__init__(model=model, processor=processor, **kwargs)
        check_weights(dict(self.model.named_parameters()), model.config.name_or_path)
        check_together(processor, model.config)
        calibrations = calibrations_of(model, processor)
        dtype = chosen_dtype(dtype, self.device)
        compute_in(dtype, self.model, self.device)
        self._rounded = dtype != torch.float32
        # The code of a Hub repo is imported as transformers_modules.<user>.<repo>.<commit>.<file>; nothing else tells
        # the revision that the user asked for.
        revision = re.search(r"\.([0-9a-f]{40})\.", __name__)
        self._revision = revision[1] if revision else None
        name = model.config.name_or_path
        region_model, image_processor = load_region_model(name, revision=self._revision)
        check_width(region_model, model.config)
        region_model = compute_in(region_dtype(dtype, self.device), region_model, self.device)

        def load_head(task):
            head, head_processor = head_in_subfolder(name, task, self._revision, region_model)
            return compute_in(dtype, head, self.device), head_processor

        self.photos = MengziOscarPipeline(
            self.model, processor, region_model, image_processor, load_head, calibrations=calibrations
        )
        self.method, self.asked = METHODS.get(self.task, METHODS["mengzi-oscar-captioning"])
        if self.method == "caption":
            self.photos.captioner  # noqa: B018  (says that it is none)
        else:
            self.photos._head(self.method)

    def __call__(self, photos, **options):
        """One photo -> one result; a list, tuple, column -> a list; a generator or torch's data set -> an iterator.

        Args:
            options: `batch_size`, `num_workers`, and what the method of `MengziOscarPipeline` takes: `texts` or
                `question` where texts are matched or a question is answered.

        Raises:
            PhotoError: the only photo cannot be read; among several it becomes {"error": the line}.
            ValueError: no `texts`, no `question`, or settings that cannot work.
        """
        if self.asked and options.get(self.asked) is None:
            raise ValueError(f"{self.task}: {self.asked} is missing: call it with (photo, {self.asked}=...)")
        if not is_one_photo(photos) and not isinstance(photos, (GeneratorType, Dataset)):
            photos = list(photos)
            if not photos:
                return []
        result = super().__call__(photos, **options)
        if isinstance(result, dict) and "error" in result:
            raise PhotoError(result["error"])
        return result

    def answer_request(self, body: dict):
        """What a server returns for a request of Inference Endpoints.

        Args:
            body: {"inputs": a photo as `sent_photo` takes it, or a list of them, "parameters": {}}. `texts` or
                `question` may also stand beside "inputs", or in it beside "image", as the Hub asks about a photo.

        Returns:
            What `caption`, `match` or `ask` returns: `match` where there are `texts`, `ask` for a `question`.

        Raises:
            PhotoError: the one photo cannot be read. ValueError: parameters that the method does not take, or that
                cannot work; the checkpoint has no such head.
        """
        inputs, parameters = body.get("inputs"), body.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError(f"parameters: a {type(parameters).__name__}; send a JSON object")
        inputs = inputs if isinstance(inputs, dict) else {"image": inputs}
        said = {**body, **inputs, **parameters}
        method = "match" if "texts" in said else "ask" if "question" in said else "caption"
        options = {name: said[name] for name in said if name not in ("inputs", "image", "parameters", "options")}
        if unknown := sorted(options.keys() - {*REQUESTS[method]}):
            raise ValueError(f"parameters: {unknown[0]!r} is none of {method}'s: {', '.join(REQUESTS[method])}")
        photos = inputs.get("image")
        photos = [sent_or_error(photo) for photo in photos] if isinstance(photos, list) else sent_photo(photos)
        return getattr(self.photos, method)(photos, **options)

    def save_pretrained(self, save_directory, **options):
        """Overridden because transformers saves no processor with a pipeline, and would save rounded weights."""
        computing = self.model
        if self._rounded:
            self.model = load_checked(type(computing), computing.config.name_or_path, self._revision)
        try:
            super().save_pretrained(save_directory, **options)
        finally:
            self.model = computing
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(self, **options):
        return {}, options, {}

    def preprocess(self, photo):
        return {"photo": open_or_error(photo, "the photo")}

    def _forward(self, inputs, **options):
        photos = inputs["photo"]  # a list of them where transformers made a batch
        opened = photos if isinstance(photos, list) else [photos]
        if self.method == "caption":
            options["batch_size"] = len(opened)
        results = getattr(self.photos, self.method)(opened, **options)
        return {"result": results if isinstance(photos, list) else results[0]}

    def postprocess(self, output):
        return output["result"]
