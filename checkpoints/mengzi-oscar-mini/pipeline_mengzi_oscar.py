"""Photo -> caption, answer or match, with everything in between: opens the photo, finds regions and tags, writes.

One folder (or Hub repo) holds the captioner at its root, further tasks in subfolders (`ask/`, `match/`), and names its
region model, so that a photo can never meet the wrong features.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from itertools import islice
from pathlib import Path
from types import GeneratorType
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset
from transformers import GenerationConfig, GenerationMixin, Pipeline

from .checkpoint_folder import CheckpointError, check_weights
from .generation_mengzi_oscar import check_whole
from .loading import check_together, check_width, has_head, load_checked, load_processor, load_region_model
from .matching import Matcher
from .modeling_mengzi_oscar import (
    MengziOscarForImageCaptioning,
    MengziOscarForImageTextRetrieval,
    MengziOscarForVisualQuestionAnswering,
)
from .photos import PhotoError, open_photo
from .processing_mengzi_oscar import as_texts, numbered
from .quantization import is_int8, quantize

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
    from .processing_mengzi_oscar import MengziOscarProcessor  # noqa: F401
    from .supported_transformers import OLDEST  # noqa: F401

DETAILED_LENGTH = 30  # tokens of a detailed caption, with start and end
TASK_HEADS = {"ask": MengziOscarForVisualQuestionAnswering, "match": MengziOscarForImageTextRetrieval}
REGION_MODEL = "region_model"  # the subfolder of it


class MengziOscarPipeline:
    """Captions, answers and matches for photos; `MengziOscarPipeline.from_pretrained("checkpoints/mengzi-oscar-mini")`.

    Args:
        load_head: a function from "ask" or "match" to the model and processor of that task, called when it is first
            asked for; None where there is only the captioner.
    """

    def __init__(self, captioner, processor, region_model, image_processor, load_head=None):
        self.captioner, self.processor = captioner.eval(), processor
        self.region_model, self.image_processor = region_model.eval(), image_processor
        self._load_head, self._heads = load_head, {}

    @classmethod
    def from_pretrained(cls, name, revision=None, device="cpu", dtype="float32", int8=False):
        """
        Args:
            name: folder or Hub id, "org/name" or "org/name@revision". revision: of the Hub repo, the other way.
            device, dtype: where and in what type the captioner runs; checkpoints stored in float16 run in float32
                unless asked otherwise. The region model stays in float32.
            int8: captioner and heads multiply in 8 bits (`quantize`): on CPUs faster, captions nearly the same.

        Raises:
            CheckpointError: nothing to load, a file that is damaged or leads out of the folder, a field that may not
                be, weights missing, left over, of another size, or no numbers.
            ValueError: int8 with another device or dtype, or a torch without it.
        """

        def prepared(model):
            model = model.to(device)
            return quantize(model) if int8 else model

        captioner = prepared(load_checked(MengziOscarForImageCaptioning, name, revision=revision, dtype=dtype))
        processor = load_processor(name, revision)
        region_model, image_processor = load_region_model(name, revision=revision)
        check_width(region_model, captioner.config)

        def load_head(task):
            if not has_head(name, task, revision):
                raise CheckpointError(
                    f"{name}: has no {task}/ head: this checkpoint was not trained to {task}; name one that was"
                )
            model = prepared(load_checked(TASK_HEADS[task], name, revision, task, dtype=dtype))
            check_width(region_model, model.config)
            return model.eval(), load_processor(name, revision, task)

        return cls(captioner, processor, region_model.to(device), image_processor, load_head)

    def save_pretrained(self, folder) -> None:
        """Writes everything that `from_pretrained` reads: captioner, processor, region model, heads.

        Raises:
            ValueError: weights in 8 bits, which are made anew whenever a checkpoint is loaded.
        """
        if is_int8(self.captioner):
            raise ValueError("weights in 8 bits are not saved: load the checkpoint without int8, and save that")
        folder, config = Path(folder), self.captioner.config
        for part in (self.region_model, self.image_processor):
            part.save_pretrained(folder / REGION_MODEL)
        named, config.region_model = config.region_model, REGION_MODEL
        try:
            self.captioner.save_pretrained(folder)
        finally:
            config.region_model = named
        self.processor.save_pretrained(folder)
        for task in TASK_HEADS:
            try:
                head, processor = self._head(task)
            except CheckpointError:  # not every checkpoint has it
                continue
            head.save_pretrained(folder / task, state_dict=head.state_dict())
            processor.save_pretrained(folder / task)

    def caption(self, photos, batch_size=32, style=None, **generation) -> dict | list[dict]:
        """
        Args:
            photos: a path, PIL image or array (H, W, 3), or several: a list, tuple, generator, column.
            batch_size: photos opened together. Only those of one size for the region model share a pass of it.
            style: where the checkpoint writes in several (`processor.styles`): "short" or "detailed". None = [CLS]
                begins a caption, as everywhere.
            **generation: as `MengziOscarForImageCaptioning.generate` takes them: `num_beams`, `max_length`, ...

        Returns:
            For one photo a dict, for several a list of them: `caption`, `score` (exp of the mean log-probability of its
            tokens), `captions` (all that the search returned, best first, each with `caption`, `score`, `tokens`,
            `region_weights` tokens x regions), `tags`, `regions` (`box` in pixels of the upright photo, and what the
            region model says of it). Of several photos one that cannot be read costs only itself: {"error": the line}
            stands in its place.

        Raises:
            PhotoError: the one photo cannot be read. ValueError: settings that cannot work, before any photo is
            opened; with an empty list they are only checked.
        """
        check_whole("batch_size", batch_size, 1)
        generation = self._generation(style, generation)
        return self._of_each(photos, lambda seen: self._caption_batch(seen, style, generation), batch_size)

    def ask(self, photo, question, top: int = 5) -> list[dict] | list[list[dict]]:
        """The likeliest answers to a question about a photo: [{"answer", "probability"}], best first.

        For several questions a list of such lists, for several photos a list of what one photo gives, with
        {"error": the line} in the place of one that cannot be read. The answers are those that the checkpoint's `ask/`
        head knows; `top` of them.

        Raises:
            CheckpointError: the checkpoint has no such head. PhotoError: the one photo cannot be read. ValueError: a
            question that is empty or no text, `top` below 1.
        """
        check_whole("top", top, 1)
        questions = words_in(question, "question")
        model, processor = self._head("ask")

        def answers(image, question):
            inputs = processor(text=[question], tags=[image.tags], regions=[image.region_features], layout="pair")
            with torch.inference_mode():
                logits = model(**inputs.to(model.device)).logits[0].float()
            several_may_be_right = model.config.loss_type == "bce"
            probabilities = logits.sigmoid() if several_may_be_right else logits.softmax(dim=-1)
            best = probabilities.topk(min(top, len(probabilities)))
            return [
                {"answer": model.config.id2label[index], "probability": probability}
                for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]

        def run(seen):
            per_image = [[answers(image, one) for one in questions] for image in seen]
            return [rows[0] for rows in per_image] if isinstance(question, str) else per_image

        return self._of_each(photo, run)

    def match(self, photo, texts, batch_size: int = 64) -> list[dict] | list[list[dict]]:
        """How probable it is that each text belongs to the photo: [{"text", "probability"}] in their order.

        `texts` is a string, or several in a list, tuple, generator, column. For several photos a list of such lists,
        with {"error": the line} in the place of a photo that cannot be read.

        Raises:
            CheckpointError: the checkpoint has no `match/` head. PhotoError: the one photo cannot be read. ValueError:
            a text that is empty or no text.
        """
        check_whole("batch_size", batch_size, 1)
        texts = words_in(texts, "texts")
        model, processor = self._head("match")
        matcher = Matcher(model, processor, batch_size)
        encoded = matcher.encode(texts)

        def matches(image):
            row = matcher.row({"region_features": image.region_features, "tags": image.tags}, encoded)
            rows = zip(texts, matcher.probabilities(row.cpu()).tolist(), strict=True)
            return [{"text": text, "probability": probability} for text, probability in rows]

        return self._of_each(photo, lambda seen: [matches(image) for image in seen])

    def _head(self, task):
        """Model and processor of "ask" or "match"."""
        if task not in self._heads:
            if self._load_head is None:
                raise CheckpointError(f"there is no {task}/ head: load the checkpoint with MengziOscarPipeline")
            self._heads[task] = self._load_head(task)
        return self._heads[task]

    def _of_each(self, photos, run, batch_size=1):
        """What `run` makes of what was found in photos (list -> list): of one photo one result, of several a list.

        A photo that cannot be read raises where it is the only one, and costs only its own result in a list.
        """
        if is_one_photo(photos):
            [result] = self._of_opened([open_photo(photos)], run)
            if isinstance(result, PhotoError):
                raise result
            return result
        results, numbered = [], enumerate(photos, start=1)
        while batch := list(islice(numbered, batch_size)):
            results += self._of_opened([open_or_error(photo, f"photo {number}") for number, photo in batch], run)
        return [{"error": str(result)} if isinstance(result, PhotoError) else result for result in results]

    def _of_opened(self, photos, run) -> list:
        """The same for RGB photos; `PhotoError`s stay what they are."""
        found = self.find_regions(photos)
        seen = [image for image in found if isinstance(image, FoundRegions)]
        made = iter(run(seen) if seen else [])
        return [next(made) if isinstance(image, FoundRegions) else image for image in found]

    @torch.inference_mode()
    def find_regions(self, photos) -> list:
        """RGB photos -> what was found in each. Errors among them stay, photos that cannot be prepared become one.

        Photos share a pass where they have one size for the region model: padding changes what a detector finds.
        """
        found, of_one_size = list(photos), {}
        for number, photo in enumerate(photos):
            if isinstance(photo, PhotoError):
                continue
            try:
                inputs = self.image_processor([photo], return_tensors="pt")
            except PhotoError as error:  # too thin
                found[number] = error
            else:
                of_one_size.setdefault(inputs["pixel_values"].shape, []).append((number, inputs))
        for group in of_one_size.values():
            together = {name: torch.cat([inputs[name] for _, inputs in group]) for name in group[0][1]}
            output = self.region_model(**{name: rows.to(self.region_model.device) for name, rows in together.items()})
            tags, described = self.region_model.tags(output), describe_regions(self.region_model, output)
            valid = output.region_attention_mask.bool()
            for row, (number, _) in enumerate(group):
                found[number] = FoundRegions(output.region_features[row][valid[row]], tags[row], described[row])
        return found

    def _generation(self, style, generation) -> dict:
        """Arguments for `generate` as they were meant, checked.

        Raises:
            ValueError
        """
        self.processor.begin(style, 0)
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
        if style == "detailed" and not {"max_length", "max_new_tokens"} & generation.keys():
            generation["max_length"] = DETAILED_LENGTH  # more than the 20 tokens of the published length
        processor = self.processor
        tags = 0 if processor.max_tags == 0 else max(processor.max_length - processor.tag_position_offset, 0)
        self.captioner.check_settings(self.captioner.open_settings(None, generation) | generation, tags=tags)
        return generation

    @torch.inference_mode()
    def _caption_batch(self, images, style, generation):
        regions, tags = [image.region_features for image in images], [image.tags for image in images]
        encoded = self.processor(tags=tags, regions=regions, return_tensors="pt").to(self.captioner.device)
        settings = self.captioner.open_settings(None, generation) | generation
        beams = self.captioner.generation_setting("num_beams", None, settings) or 1
        begun = self.processor.begin(style, len(images)).to(self.captioner.device)
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
            boxes = image.described[: self.processor.max_regions]  # those that the captioner reads
            rows = [self._describe(ids, *next(scored), len(boxes)) for ids in image_captions]
            best = {name: rows[0][name] for name in ("caption", "score")}
            results.append(best | {"captions": rows, "tags": image.tags, "regions": boxes})
        return results

    def _until_sep(self, ids):
        end = self.processor.tokenizer.sep_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids

    def _describe(self, ids, log_probs, region_weights, regions):
        end = len(ids) - 1 if ids[-1] == self.processor.tokenizer.sep_token_id else len(ids)
        return {
            "caption": self.processor.decode(ids),
            "score": log_probs.mean().exp().item(),
            "tokens": self.processor.tokenizer.convert_ids_to_tokens(ids[1:end]),
            "region_weights": region_weights[: end - 1, :regions].tolist(),
        }


@dataclass
class FoundRegions:
    """What was found in a photo: `region_features` (R, D), words, and per region what `describe_regions` says."""

    region_features: torch.FloatTensor
    tags: list[str]
    described: list[dict]


def is_one_photo(photos) -> bool:
    """Whether it is a photo, in any form that has one, and not several in a list, tuple, generator or column."""
    if isinstance(photos, (str, bytes, bytearray, memoryview, os.PathLike, Mapping)) or hasattr(photos, "read"):
        return True
    if hasattr(photos, "ndim"):  # of numbers it is a photo, a column of names several
        return photos.ndim != 1 or getattr(photos.dtype, "kind", None) not in ("O", "U", "S", "T")
    return not hasattr(photos, "__iter__")


def open_or_error(photo, name: str):
    """RGB photo, or the `PhotoError` that says why not; such an error stays what it is."""
    if isinstance(photo, PhotoError):
        return photo
    try:
        return open_photo(photo, name=name)
    except PhotoError as error:
        return error


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


def describe_regions(region_model, output) -> list[list[dict]]:
    """Per image, per region: its box and what the region model says of it."""
    if hasattr(region_model, "describe"):
        return region_model.describe(output)
    masks = output.region_attention_mask.bool()
    return [[{"box": box} for box in boxes[mask].tolist()] for boxes, mask in zip(output.boxes, masks, strict=True)]


class MengziOscarCaptioningPipeline(Pipeline):
    """`pipeline("mengzi-oscar-captioning", model=..., trust_remote_code=True)`: the pipeline above, as transformers'.

    Photos in, dicts out, generation arguments in between. A checkpoint stored in float16 runs in float32 on a CPU
    unless a dtype is asked for. `int8=True` multiplies in 8 bits there.
    """

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_feature_extractor = _load_video_processor = False

    def __init__(self, model, processor, dtype=None, int8=False, **kwargs):
        super().__init__(model=model, processor=processor, **kwargs)
        check_weights(dict(self.model.named_parameters()), model.config.name_or_path)
        check_together(processor, model.config)
        if self.device.type == "cpu" and dtype in (None, "auto"):
            self.model.float()
        if int8:
            quantize(self.model)
        # The code of a Hub repo is imported as transformers_modules.<user>.<repo>.<commit>.<file>; nothing else tells
        # the revision that the user asked for.
        revision = re.search(r"\.([0-9a-f]{40})\.", __name__)
        region_model, image_processor = load_region_model(
            model.config.name_or_path, revision=revision[1] if revision else None
        )
        check_width(region_model, model.config)
        self.captioning = MengziOscarPipeline(self.model, processor, region_model.to(self.device), image_processor)

    def __call__(self, photos, **options):
        """One photo -> a dict; a list, tuple, column -> a list; a generator or torch's data set -> an iterator.

        Args:
            options: `batch_size`, `num_workers`, and what `MengziOscarPipeline.caption` takes.

        Raises:
            PhotoError: the one photo cannot be read; among several {"error": the line} stands in its place.
        """
        if not is_one_photo(photos) and not isinstance(photos, (GeneratorType, Dataset)):
            photos = list(photos)
            if not photos:
                return []
        result = super().__call__(photos, **options)
        if isinstance(result, dict) and "error" in result:
            raise PhotoError(result["error"])
        return result

    def save_pretrained(self, save_directory, **options):
        """Overridden because transformers saves no processor with a pipeline."""
        super().save_pretrained(save_directory, **options)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(self, **generation):
        return {}, generation, {}

    def preprocess(self, photo):
        return {"photo": open_or_error(photo, "the photo")}

    def _forward(self, inputs, **generation):
        photos = inputs["photo"]  # a list of them where transformers made a batch
        opened = photos if isinstance(photos, list) else [photos]
        captioned = self.captioning.caption(opened, batch_size=len(opened), **generation)
        return {"result": captioned if isinstance(photos, list) else captioned[0]}

    def postprocess(self, output):
        return output["result"]
