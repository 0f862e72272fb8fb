"""README.md of a checkpoint: what the Hub reads of it (metadata), and what a person reads."""

import math
import re

from huggingface_hub import EvalResult, ModelCardData

from ..checkpoint_folder import shown
from ..supported_transformers import NEWEST_TESTED, OLDEST

TESTED = (
    f"Tested with transformers {OLDEST} to {NEWEST_TESTED}; needs torch, and timm or torchvision for the region model."
)
USAGE = """from transformers import AutoProcessor, {auto_class}

repo = "…"  # this repository or a folder with its files
model = {auto_class}.from_pretrained(repo, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
# features: (regions, width) of one image; tags: its objects, as the region model names them
{usage}"""
PIPELINE_USAGE = 'pipeline("mengzi-oscar-{}", model=repo, trust_remote_code=True)("photo.jpg"{}'
ON_PHOTOS = {  # task -> transformers' pipeline of the whole checkpoint
    "caption": PIPELINE_USAGE.format("captioning", ')["caption"]'),
    "retrieval": PIPELINE_USAGE.format("matching", ', texts=["两个人在骑马", "一只猫"])'),
    "vqa": PIPELINE_USAGE.format("answering", ', question="有几个人？")'),
    "gqa": PIPELINE_USAGE.format("answering", ', question="有几个人？")'),
}
PHOTO_USAGE = "from transformers import pipeline\n\n{}"
PAIR = 'inputs = processor(text=["{}"], tags=[["人", "马"]], regions=[features])\nmodel(**inputs).{}'
TASKS = {  # task -> Auto class, the Hub's pipeline tag, what it does, how to use it
    "pretrain": (
        "AutoModelForPreTraining",
        "fill-mask",
        "Reads Chinese text and the regions of an image; to be fine-tuned.",
        PAIR.format("两个人在[MASK]马", "prediction_logits"),
    ),
    "caption": (
        "AutoModelForImageTextToText",
        "image-to-text",
        "Writes Chinese captions for images, from the features of their regions.",
        'ids = model.generate(**processor(tags=[["人", "马"]], regions=[features]))\nprocessor.batch_decode(ids)',
    ),
    "retrieval": (
        "AutoModelForSequenceClassification",
        "zero-shot-image-classification",
        "Says how probable it is that a Chinese text and an image belong together.",
        PAIR.format("两个人在骑马", "logits.softmax(-1)[:, 1]"),
    ),
    "vqa": (
        "AutoModelForVisualQuestionAnswering",
        "visual-question-answering",
        "Answers questions about images, from a list of known answers (VQA: several may be right).",
        PAIR.format("有几个人？", "logits"),
    ),
    "gqa": (
        "AutoModelForVisualQuestionAnswering",
        "visual-question-answering",
        "Answers questions about images, from a list of known answers (GQA: one is right).",
        PAIR.format("有几个人？", "logits"),
    ),
    "nlvr2": (
        "AutoModelForMultipleChoice",
        "visual-question-answering",
        "Says whether a statement about two images is true.",
        "# the statement with each of the two images: (2, ...) -> (1, 2, ...)\n"
        'inputs = processor(text=["两张图里都有马"] * 2, tags=[["人", "马"], ["马"]], regions=[features, features])\n'
        "model(**{name: rows[None] for name, rows in inputs.items()}).logits",
    ),
}

MARKDOWN = re.compile(r"[\\`*\[\]|~#$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|^[-+=]")


def escaped(text) -> str:
    """A name that somebody gave, as it reads in Markdown: one line, no markup, no HTML."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKDOWN.sub(lambda found: "\\" + found[0], line)


def model_card(task, config, name, base_model=None, datasets=None, scores=None, license="apache-2.0", notes=()) -> str:
    """README.md of a checkpoint, with the Hub's metadata.

    Args:
        task: a key of `TASKS`. config: of the checkpoint. name: of the model, as the title says it.
        base_model, datasets: Hub ids. scores: {"dataset", "split", metric: float, ...} -> `model-index`; strings
            in it (how the text was segmented, ...) are repeated beside the numbers. notes: Markdown sentences, one a
            line; names in them are `escaped` by who writes them.

    Raises:
        ValueError: scores that are of something else.
    """
    auto_class, pipeline_tag, does, usage = TASKS[task]
    results = None
    scores = dict(scores or {})
    if scores:
        dataset, split = scores.pop("dataset", (datasets or ["unnamed"])[0]), scores.pop("split", None)
        if not isinstance(dataset, str) or not isinstance(split, str | None):
            raise ValueError(f"scores are of the dataset {shown(dataset)}, split {shown(split)}: both must be texts")
        results = [
            EvalResult(
                task_type=pipeline_tag,
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=split,
                metric_type=metric,
                metric_value=round(value, 4),
            )
            for metric, value in scores.items()
            if isinstance(value, float) and math.isfinite(value)
        ]
    data = ModelCardData(
        language="zh",
        license=license,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=["mengzi-oscar", "oscar", "region-features"],
        base_model=base_model,
        datasets=datasets,
        model_name=name if results else None,
        eval_results=results,
    )
    region_model = (
        escaped(config.region_model or "")
        or "none named: pass features of the model that this checkpoint was trained with"
    )
    lines = [f"# {escaped(name)}", "", does, ""]
    lines += [f"* region features: {config.img_feature_dim} numbers a region; region model: {region_model}"]
    lines += [f"* {' '.join(note.split())}" for note in notes]
    if results:
        about = "; ".join(escaped(f"{key} {value}") for key, value in scores.items() if isinstance(value, str))
        lines += [
            "",
            f"## Scores on {escaped(dataset)}{f', {escaped(split)}' if split else ''}",
            "",
            *([about, ""] if about else []),
        ]
        lines += ["| metric | value |", "|---|--:|"]
        lines += [f"| {escaped(result.metric_type)} | {result.metric_value:.4f} |" for result in results]
    lines += ["", "## Use", "", TESTED, "", "```python", USAGE.format(auto_class=auto_class, usage=usage), "```", ""]
    if config.region_model and task in ON_PHOTOS:
        lines += ["From a photo:", "", "```python", PHOTO_USAGE.format(ON_PHOTOS[task]), "```", ""]
    return f"---\n{data}\n---\n\n" + "\n".join(lines)


def head_section(task, notes=()) -> str:
    """What README.md of a checkpoint says of a head in a subfolder, below its heading; arguments as `model_card`."""
    lines = [TASKS[task][2], "", *(f"* {' '.join(note.split())}" for note in notes), ""]
    return "\n".join([*lines, "```python", PHOTO_USAGE.format(ON_PHOTOS[task]), "```"])


def detector_card(config, name) -> str:
    """README.md of a VinVL detector."""
    data = ModelCardData(
        language=["zh", "en"],
        license="mit",
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["mengzi-oscar", "vinvl", "region-features"],
    )
    return f"""---
{data}
---

# {escaped(name)}

The VinVL detector ({config.num_classes - 1:,} classes, {config.num_attributes - 1:,} attributes) of
microsoft/scene_graph_benchmark, converted by `mengzi-oscar convert`: an image to regions, each with a feature row of
{config.region_feature_size:,} numbers.

{TESTED}

```python
from transformers import AutoImageProcessor, AutoModel

repo = "…"  # this repository or a folder with its files
model = AutoModel.from_pretrained(repo, trust_remote_code=True)
images = AutoImageProcessor.from_pretrained(repo, trust_remote_code=True)
regions = model(**images([photo], return_tensors="pt"))
```
"""
