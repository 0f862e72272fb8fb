"""Photo -> caption, answer or match, with everything in between: opens the photo, finds regions and tags, writes.

One folder (or Hub repo) holds the captioner at its root, further tasks in subfolders (`ask/`, `match/`), and names its
region model, so that a photo can never meet the wrong features.
"""

import os
import re
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from transformers import Pipeline, PretrainedConfig

from .matching import Matcher
from .modeling_mengzi_oscar import (
    MengziOscarForImageCaptioning,
    MengziOscarForImageTextRetrieval,
    MengziOscarForVisualQuestionAnswering,
)
from .photos import open_photo
from .processing_mengzi_oscar import MengziOscarProcessor
from .quantization import quantize

if TYPE_CHECKING:  # transformers before 5.10 brings only the files that the file of a class names itself
    from .configuration_mengzi_oscar import MengziOscarConfig  # noqa: F401
    from .configuration_vinvl import VinVLConfig  # noqa: F401
    from .generation_mengzi_oscar import MaskQueryGenerationMixin  # noqa: F401
    from .modeling_regions import RegionModelOutput  # noqa: F401
    from .supported_transformers import OLDEST  # noqa: F401

DETAILED_LENGTH = 30  # tokens of a detailed caption, with start and end


class CheckpointError(ValueError):
    """One line: which checkpoint, what is wrong with it, what to do."""


TASK_HEADS = {"ask": MengziOscarForVisualQuestionAnswering, "match": MengziOscarForImageTextRetrieval}


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
            name: folder or Hub id. revision: of the Hub repo.
            device, dtype: where and in what type the captioner runs; checkpoints stored in float16 run in float32
                unless asked otherwise. The region model stays in float32.
            int8: captioner and heads multiply in 8 bits (`quantize`): on CPUs faster, captions nearly the same.

        Raises:
            CheckpointError: nothing to load, weights missing, left over or of another size.
            ValueError: int8 with another device or dtype, or a torch without it.
        """

        def prepared(model):
            model = model.to(device)
            return quantize(model) if int8 else model

        captioner = prepared(load_checked(MengziOscarForImageCaptioning, name, revision=revision, dtype=dtype))
        processor = MengziOscarProcessor.from_pretrained(name, revision=revision)
        region_model, image_processor = load_region_model(name, revision=revision)

        def load_head(task):
            options = {"revision": revision, "subfolder": task}
            if not PretrainedConfig.get_config_dict(name, **options)[0]:
                raise CheckpointError(
                    f"{name}: has no {task}/ head: this checkpoint was not trained to {task}; name one that was"
                )
            model = prepared(load_checked(TASK_HEADS[task], name, dtype=dtype, **options))
            return model.eval(), MengziOscarProcessor.from_pretrained(name, **options)

        return cls(captioner, processor, region_model.to(device), image_processor, load_head)

    def caption(self, photos, batch_size=32, style=None, **generation) -> dict | list[dict]:
        """
        Args:
            photos: a path, PIL image or array (H, W, 3), or a list of them.
            style: where the checkpoint writes in several (`processor.styles`): "short" or "detailed". None = [CLS]
                begins a caption, as everywhere.
            **generation: as `MengziOscarForImageCaptioning.generate` takes them: `num_beams`, `max_length`, ...

        Returns:
            For one photo a dict, for a list a list of them: `caption`, `score` (exp of the mean log-probability of its
            tokens), `captions` (all that the search returned, best first, each with `caption`, `score`, `tokens`,
            `region_weights` tokens x regions), `tags`, `regions` (`box` in pixels of the upright photo, and what the
            region model says of it).

        Raises:
            PhotoError: a photo that cannot be read. ValueError: a style that the checkpoint does not have.
        """
        if not isinstance(photos, list):
            return self.caption([photos], style=style, **generation)[0]
        if (config := generation.pop("generation_config", None)) is not None:  # what it says, as arguments
            said = {name: value for name, value in config.to_dict().items() if value is not None}
            generation = {name: said[name] for name in said if name in vars(config)} | generation
            generation.pop("transformers_version", None)
        generation.pop("return_dict_in_generate", None)
        if style == "detailed" and not {"max_length", "max_new_tokens"} & generation.keys():
            generation = {"max_length": DETAILED_LENGTH} | generation  # more than the 20 tokens of the published length
        results = []
        for start in range(0, len(photos), batch_size):
            numbered = enumerate(photos[start : start + batch_size], start + 1)
            batch = [open_photo(photo, name=f"photo {number}") for number, photo in numbered]
            results += self._caption_batch(batch, style, generation)
        return results

    def ask(self, photo, question: str, top: int = 5) -> list[dict] | list[list[dict]]:
        """The likeliest answers to a question about a photo: [{"answer", "probability"}], best first.

        For a list of photos a list of such lists. The answers are those that the checkpoint's `ask/` head knows.

        Raises:
            CheckpointError: the checkpoint has no such head. PhotoError: the photo cannot be read.
        """
        if isinstance(photo, list):
            return [self.ask(one, question, top) for one in photo]
        model, processor = self._head("ask")
        image = self._regions_and_tags(photo)
        inputs = processor(text=[question], tags=[image["tags"]], regions=[image["region_features"]], layout="pair")
        with torch.inference_mode():
            logits = model(**inputs.to(model.device)).logits[0].float()
        several_may_be_right = model.config.loss_type == "bce"
        probabilities = logits.sigmoid() if several_may_be_right else logits.softmax(dim=-1)
        best = probabilities.topk(min(top, len(probabilities)))
        return [
            {"answer": model.config.id2label[index], "probability": probability}
            for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def match(self, photo, texts: list[str], batch_size: int = 64) -> list[dict] | list[list[dict]]:
        """How probable it is that each text belongs to the photo: [{"text", "probability"}] in their order.

        For a list of photos a list of such lists.

        Raises:
            CheckpointError: the checkpoint has no `match/` head. PhotoError: the photo cannot be read.
        """
        photos = photo if isinstance(photo, list) else [photo]
        model, processor = self._head("match")
        matcher = Matcher(model, processor, batch_size)
        encoded, results = matcher.encode(texts), []
        for one in photos:
            probabilities = matcher.probabilities(matcher.row(self._regions_and_tags(one), encoded).cpu())
            rows = zip(texts, probabilities.tolist(), strict=True)
            results.append([{"text": text, "probability": probability} for text, probability in rows])
        return results if isinstance(photo, list) else results[0]

    def _head(self, task):
        """Model and processor of "ask" or "match"."""
        if task not in self._heads:
            if self._load_head is None:
                raise CheckpointError(f"there is no {task}/ head: load the checkpoint with MengziOscarPipeline")
            self._heads[task] = self._load_head(task)
        return self._heads[task]

    def _regions_and_tags(self, photo):
        """The regions (R, D) and tags of one photo."""
        regions, tags = self._find_regions([open_photo(photo)])
        return {"region_features": regions.region_features[0][regions.region_attention_mask[0].bool()], "tags": tags[0]}

    @torch.inference_mode()
    def _find_regions(self, photos):
        """RGB photos -> output of the region model, and the tags of each photo."""
        inputs = self.image_processor(photos, return_tensors="pt").to(self.region_model.device)
        regions = self.region_model(**inputs)
        return regions, self.region_model.tags(regions)

    @torch.inference_mode()
    def _caption_batch(self, photos, style, generation):
        regions, tags = self._find_regions(photos)
        encoded = self.processor(tags=tags, regions=regions, return_tensors="pt").to(self.captioner.device)
        settings = self.captioner.open_settings(None, generation) | generation
        beams = self.captioner.generation_setting("num_beams", None, settings) or 1
        begun = self.processor.begin(style, len(photos)).to(self.captioner.device)
        sequences = self.captioner.generate(**encoded, input_ids=begun, **{"num_return_sequences": beams} | generation)
        per_photo = sequences.split(len(sequences) // len(photos))
        captions = [[self._until_sep(ids) for ids in rows.tolist()] for rows in per_photo]
        tag_ids = None
        if "tag_input_ids" in encoded:
            masks = encoded["tag_attention_mask"].bool()
            tag_ids = [ids[mask].tolist() for ids, mask in zip(encoded["tag_input_ids"], masks, strict=True)]
        scored = self.captioner.score_captions(
            captions,
            encoded["region_features"],
            encoded["region_attention_mask"],
            tags=tag_ids,
            tag_position=self.captioner.tag_start(self.captioner.caption_length(begun.shape[1], None, generation)),
        )
        scored = iter(zip(*scored, strict=True))
        rows = [[self._describe(ids, *next(scored)) for ids in image_captions] for image_captions in captions]
        described = describe_regions(self.region_model, regions)
        return [
            {"caption": row[0]["caption"], "score": row[0]["score"], "captions": row, "tags": words, "regions": boxes}
            for row, words, boxes in zip(rows, tags, described, strict=True)
        ]

    def _until_sep(self, ids):
        end = self.processor.tokenizer.sep_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids

    def _describe(self, ids, log_probs, region_weights):
        end = len(ids) - 1 if ids[-1] == self.processor.tokenizer.sep_token_id else len(ids)
        return {
            "caption": self.processor.decode(ids),
            "score": log_probs.mean().exp().item(),
            "tokens": self.processor.tokenizer.convert_ids_to_tokens(ids[1:end]),
            "region_weights": region_weights[: end - 1].tolist(),
        }


def describe_regions(region_model, output) -> list[list[dict]]:
    """Per image, per region: its box and what the region model says of it."""
    if hasattr(region_model, "describe"):
        return region_model.describe(output)
    masks = output.region_attention_mask.bool()
    return [[{"box": box} for box in boxes[mask].tolist()] for boxes, mask in zip(output.boxes, masks, strict=True)]


def load_checked(model_class, name, **options):
    """`from_pretrained` that refuses a checkpoint which does not fit the model, in one line.

    Raises:
        CheckpointError
    """
    try:
        model, info = model_class.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        here = "" if os.path.exists(name) else "no such folder here, and as a Hub id it "
        raise CheckpointError(f"{name}: {here}cannot be loaded as {model_class.__name__}: {reason[:300]}") from None
    problems = {kind: sorted(map(str, info[kind])) for kind in info if kind.endswith("keys") and info[kind]}
    if problems:
        found = "; ".join(f"{len(keys)} {kind.replace('_', ' ')}, e.g. {keys[0]}" for kind, keys in problems.items())
        raise CheckpointError(
            f"{name}: its weights do not fit {model_class.__name__} ({found}); "
            "config.json and weights must be of one checkpoint"
        )
    return model


def region_model_classes(model_type):
    """Model and image processor of a `model_type`, None where it is no region model.

    They are ours: code of another repo never runs. Each is imported where it is needed: the detector needs no timm, the
    grid model no torchvision.
    """
    if model_type == "grid_regions":
        from .modeling_grid_regions import GridRegionImageProcessor, GridRegionModel

        return GridRegionModel, GridRegionImageProcessor
    if model_type == "vinvl":
        from .image_processing_vinvl import VinVLImageProcessor
        from .modeling_vinvl import VinVLModel

        return VinVLModel, VinVLImageProcessor
    return None


def load_region_model(name, subfolder="", revision=None):
    """Region model and its image processor, float32, from a folder or Hub id.

    `name` is a region model or a Mengzi-Oscar checkpoint that names one in its config: a subfolder of its own repo,
    or "org/name@revision".

    Raises:
        CheckpointError: it is neither, or its weights do not fit.
    """
    try:
        config, _ = PretrainedConfig.get_config_dict(name, subfolder=subfolder, revision=revision)
    except OSError as error:
        raise CheckpointError(f"{name}: no config.json there ({' '.join(str(error).split())[:200]})") from None
    model_type = config.get("model_type")
    if classes := region_model_classes(model_type):
        model_class, processor_class = classes
        options = {"subfolder": subfolder, "revision": revision}
        model = load_checked(model_class, name, dtype="float32", **options)
        model = model.eval().to(memory_format=torch.channels_last)  # convolutions are 1.5 times as fast on CPUs
        return model, processor_class.from_pretrained(name, **options)
    region_model = config.get("region_model")
    if not region_model:
        raise CheckpointError(f"{name}: no region model there, and its config names none (model_type {model_type!r})")
    if re.fullmatch(r"[\w.-]+/[\w.-]+@[\w.-]+", region_model):
        repository, region_revision = region_model.split("@")
        return load_region_model(repository, revision=region_revision)
    return load_region_model(name, subfolder=region_model, revision=revision)


class MengziOscarCaptioningPipeline(Pipeline):
    """`pipeline("mengzi-oscar-captioning", model=..., trust_remote_code=True)`: the pipeline above, as transformers'.

    Photos in, dicts out, generation arguments in between. A checkpoint stored in float16 runs in float32 on a CPU
    unless a dtype is asked for. `int8=True` multiplies in 8 bits there.
    """

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_feature_extractor = _load_video_processor = False

    def __init__(self, model, processor, dtype=None, int8=False, **kwargs):
        super().__init__(model=model, processor=processor, **kwargs)
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
        self.captioning = MengziOscarPipeline(self.model, processor, region_model.to(self.device), image_processor)

    def _sanitize_parameters(self, **generation):
        return {}, generation, {}

    def preprocess(self, photo):
        return {"photo": open_photo(photo)}

    def _forward(self, inputs, **generation):
        return self.captioning.caption(inputs["photo"], **generation)

    def postprocess(self, output):
        return output
