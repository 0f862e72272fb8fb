"""README.md of a checkpoint: what the Hub reads of it (metadata), and what a person reads."""

import math
import re

from huggingface_hub import EvalResult, ModelCardData

from ..checkpoint_folder import shown
from ..supported_transformers import NEWEST_TESTED, OLDEST

TESTED = (
    f"Tested with transformers {OLDEST} to {NEWEST_TESTED}; needs torch, and timm or torchvision for the region model."
)
REPO = 'repo, revision = "…", "…"  # this repo, and the full hash of a commit whose code you trust'
USAGE = """from transformers import AutoProcessor, {auto_class}

{repo}
model = {auto_class}.from_pretrained(repo, revision=revision, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(repo, revision=revision, trust_remote_code=True)
# features: (regions, width) of one image; tags: names of its objects, from the region model
{usage}"""
PHOTO_USAGE = """from transformers import pipeline

{repo}
{name} = pipeline("mengzi-oscar-{pipeline}", model=repo, revision=revision, trust_remote_code=True)
{address}print({name}("{photo}"{arguments}){part}){printed}"""
ON_PHOTOS = {  # task -> transformers' pipeline of the whole checkpoint
    "caption": {"pipeline": "captioning", "name": "captioner", "arguments": "", "part": '["caption"]'},
    "retrieval": {
        "pipeline": "matching",
        "name": "matcher",
        "arguments": ', texts=["两个人在骑马", "一只猫"]',
        "part": "",
    },
    "vqa": {
        "pipeline": "answering",
        "name": "answers",
        "arguments": ', question="有几个人？"',
        "part": '[0]["answer"]',
    },
}
ON_PHOTOS["gqa"] = ON_PHOTOS["vqa"]
PAIR = 'inputs = processor(text=["{}"], tags=[["人", "马"]], regions=[features])\nmodel(**inputs).{}'
# The Hub's pipeline tags are those that transformers 5 has a pipeline for: image-to-text and visual-question-answering
# have none any more, image-text-to-text stands for both.
TASKS = {  # task -> Auto class, the Hub's pipeline tag, what it does, how to use it
    "pretrain": (
        "AutoModelForPreTraining",
        "fill-mask",
        "Encodes Chinese text together with the region features of an image. To be fine-tuned.",
        PAIR.format("两个人在[MASK]马", "prediction_logits"),
    ),
    "caption": (
        "AutoModelForImageTextToText",
        "image-text-to-text",
        "Image captioning: writes Chinese captions for images, from the features of their regions.",
        'ids = model.generate(**processor(tags=[["人", "马"]], regions=[features]))\nprocessor.batch_decode(ids)',
    ),
    "retrieval": (
        "AutoModelForSequenceClassification",
        "zero-shot-image-classification",
        "Image–text matching (ITM): a cross-encoder that returns the probability that a Chinese text matches an image.",
        PAIR.format("两个人在骑马", "logits.softmax(-1)[:, 1]"),
    ),
    "vqa": (
        "AutoModelForVisualQuestionAnswering",
        "image-text-to-text",
        "Visual question answering: picks the answer from a fixed list (VQA: several may be right).",
        PAIR.format("有几个人？", "logits"),
    ),
    "gqa": (
        "AutoModelForVisualQuestionAnswering",
        "image-text-to-text",
        "Visual question answering: picks the answer from a fixed list (GQA: one is right).",
        PAIR.format("有几个人？", "logits"),
    ),
    "nlvr2": (
        "AutoModelForMultipleChoice",
        "image-text-to-text",
        "Visual reasoning: predicts whether a statement about two images is true.",
        "# the statement with each of the two images: (2, ...) -> (1, 2, ...)\n"
        'inputs = processor(text=["两张图里都有马"] * 2, tags=[["人", "马"], ["马"]], regions=[features, features])\n'
        "model(**{name: rows[None] for name, rows in inputs.items()}).logits",
    ),
}
# Photos for the Hub's widget: those of its own examples; the cat of `demo.samples`, where it can be fetched.
EXAMPLES = {
    "Savanna": "https://huggingface.co/datasets/mishig/sample_images/resolve/main/savanna.jpg",
    "Football match": "https://huggingface.co/datasets/mishig/sample_images/resolve/main/football-match.jpg",
}
CAT = "https://raw.githubusercontent.com/scikit-image/scikit-image/v0.22.0/skimage/data/chelsea.png"
ASKED = {  # task -> what a widget's example has beside its photo
    "caption": {"text": "用一句话描述这张照片。"},
    "vqa": {"text": "有几个人？"},
    "gqa": {"text": "有几个人？"},
    "nlvr2": {"text": "两张图里都有马"},
    "retrieval": {"candidate_labels": "草原上的动物, 一场足球比赛, 一只猫"},
}
METRICS = {  # the end of a score's name -> the id of its metric, one of evaluate's, which the Hub knows; its name
    **{f"bleu_{n}": ("bleu", f"BLEU-{n}") for n in range(1, 5)},
    "rouge_l": ("rouge", "ROUGE-L"),
    "meteor_exact": ("meteor", "METEOR-exact"),
    "accuracy": ("accuracy", "accuracy"),
    "masked_accuracy": ("accuracy", "accuracy of masked tokens"),
    "contrast_accuracy": ("accuracy", "accuracy of contrast"),
    "official_accuracy": ("accuracy", "accuracy, official normalization"),
    **{
        f"{there}_to_{back}_r{k}": ("recall", f"R@{k}, {there} to {back}")
        for there, back in (("image", "text"), ("text", "image"))
        for k in (1, 5, 10)
    },
    "mean_recall": ("recall", "mean recall"),
}
LEVELS = {"": "", "char_": ", characters", "word_": ", jieba words", "aic_icc_": ", AI Challenger protocol"}
METRICS = {level + name: (kind, said + of) for level, of in LEVELS.items() for name, (kind, said) in METRICS.items()}

MARKDOWN = re.compile(r"[\\`*\[\]|~#$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|^[-+=]")


def escaped(text) -> str:
    """A name that somebody gave, as it reads in Markdown: one line, no markup, no HTML."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return MARKDOWN.sub(lambda found: "\\" + found[0], line)


def model_card(
    task,
    config,
    name,
    base_model=None,
    datasets=None,
    scores=None,
    license="apache-2.0",
    notes=(),
    photo="photo.jpg",
    printed=None,
) -> str:
    """README.md of a checkpoint, with the Hub's metadata.

    Args:
        task: a key of `TASKS`. config: of the checkpoint. name: of the model, as the title says it.
        base_model, datasets: Hub ids. scores: {"dataset", "split", metric: float, ...} -> `model-index`; strings
            in it (how the text was segmented, ...) are repeated beside the numbers. notes: Markdown sentences, one a
            line; names in them are `escaped` by who writes them.
        photo, printed: what the checkpoint says of a photo, a file or the address of one: the example of the card.

    Raises:
        ValueError: scores that are of something else.
    """
    auto_class, pipeline_tag, does, usage = TASKS[task]
    results, numbers = None, {}
    scores = dict(scores or {})
    if scores:
        dataset, split = scores.pop("dataset", (datasets or ["unnamed"])[0]), scores.pop("split", None)
        if not isinstance(dataset, str) or not isinstance(split, str | None):
            raise ValueError(f"scores are of the dataset {shown(dataset)}, split {shown(split)}: both must be texts")
        numbers = {name: n for name, n in scores.items() if isinstance(n, float) and math.isfinite(n)}
        results = [
            EvalResult(
                task_type=pipeline_tag,
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=split,
                metric_type=METRICS[metric][0],
                metric_name=METRICS[metric][1],
                metric_value=round(value, 4),
            )
            for metric, value in numbers.items()
            if metric in METRICS
        ]
    data = ModelCardData(
        language="zh",
        license=license,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=["mengzi-oscar", "oscar", "region-features"],
        base_model=base_model,
        datasets=datasets,
        metrics=sorted({result.metric_type for result in results or ()}) or None,
        model_name=name if results else None,
        eval_results=results or None,
        widget=widget(task, photo, printed),
    )
    region_model = (
        escaped(config.region_model or "")
        or "none; pass features extracted by the model that this checkpoint was trained with"
    )
    lines = [f"# {escaped(name)}", "", does, ""]
    lines += [f"* region features: {config.img_feature_dim} numbers per region; region model: {region_model}"]
    lines += [f"* {' '.join(note.split())}" for note in notes]
    if numbers:
        about = "; ".join(escaped(f"{key} {value}") for key, value in scores.items() if isinstance(value, str))
        lines += [
            "",
            f"## Scores on {escaped(dataset)}{f', {escaped(split)}' if split else ''}",
            "",
            *([about, ""] if about else []),
        ]
        lines += ["| metric | value |", "|---|--:|"]
        lines += [f"| {escaped(metric)} | {value:.4f} |" for metric, value in numbers.items()]
    lines += ["", "## Use", "", TESTED, ""]
    if config.region_model and task in ON_PHOTOS:
        lines += ["From a photo:", "", "```python", photo_usage(task, photo, printed), "```", ""]
        lines += ["From the features of its regions:", ""]
    lines += ["```python", USAGE.format(repo=REPO, auto_class=auto_class, usage=usage), "```", ""]
    return f"---\n{data}\n---\n\n" + "\n".join(lines)


def photo_usage(task, photo="photo.jpg", printed=None) -> str:
    """Lines of Python that print what a checkpoint says of a photo, and behind them what that is, where it is known."""
    said = {
        "photo": photo.rpartition("/")[2],
        "address": f"# {photo}\n" if "://" in photo else "",
        "printed": f"  # {' '.join(printed.split())}" if printed else "",
    }
    return PHOTO_USAGE.format(repo=REPO, **said, **ON_PHOTOS[task])


def widget(task, photo, printed) -> list[dict]:
    """Examples for the Hub's page of a model: an address of a photo, what is asked of it, the answer if it is known."""
    if task == "pretrain":
        return [{"text": "两个人在[MASK]马"}]
    examples = [{"src": src, "example_title": title, **ASKED[task]} for title, src in EXAMPLES.items()]
    if printed and "://" in photo:
        title = photo.rpartition("/")[2]
        examples.insert(0, {"src": photo, "example_title": title, **ASKED[task], "output": {"text": printed}})
    return examples


def head_section(task, notes=()) -> str:
    """What README.md of a checkpoint says of a head in a subfolder, below its heading; arguments as `model_card`."""
    lines = [TASKS[task][2], "", *(f"* {' '.join(note.split())}" for note in notes), ""]
    return "\n".join([*lines, "```python", photo_usage(task), "```"])


def detector_card(config, name) -> str:
    """README.md of a VinVL detector."""
    data = ModelCardData(
        language=["zh", "en"],
        license="mit",
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=["mengzi-oscar", "vinvl", "region-features"],
        widget=[{"src": src, "example_title": title} for title, src in EXAMPLES.items()],
    )
    return f"""---
{data}
---

# {escaped(name)}

The VinVL object detector ({config.num_classes - 1:,} classes, {config.num_attributes - 1:,} attributes) of
microsoft/scene_graph_benchmark, converted by `mengzi-oscar convert`. It detects the regions of an image, each with a
feature row of {config.region_feature_size:,} numbers.

{TESTED}

```python
from transformers import AutoImageProcessor, AutoModel

{REPO}
model = AutoModel.from_pretrained(repo, revision=revision, trust_remote_code=True)
images = AutoImageProcessor.from_pretrained(repo, revision=revision, trust_remote_code=True)
regions = model(**images([photo], return_tensors="pt"))
```
"""
