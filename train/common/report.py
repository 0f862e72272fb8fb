"""What a run leaves for people: curves, a table of scores, ten samples with their photos, a model card."""

import html
import json
import re
import shlex
import sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from accelerate import PartialState
from PIL import Image, ImageDraw

from modeling_mengzi_oscar.demo.pictures import GREY, INK, PAPER, arrange, font, wrap
from modeling_mengzi_oscar.files import write_whole
from modeling_mengzi_oscar.hub.model_card import escaped, model_card
from modeling_mengzi_oscar.photos import open_photo

SAMPLES = 10
USES = {  # of a checkpoint that sees photos
    "caption": "caption photo.jpg",
    "retrieval": "search photos/ SENTENCE",
    "vqa": "ask photo.jpg QUESTION",
    "gqa": "ask photo.jpg QUESTION",
}
LOGS = 0.02  # --logging_steps where it is not given, of the steps of a run: fifty lines of training loss
RAREST_LOG = 500  # steps
PHOTO_WIDTH, TEXT_SIZE, LINE = 420, 22, 30
CARD_SETTINGS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "num_train_epochs"),
    *("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "seed", "bf16", "fp16"),
)


def say(text):
    """A line of the first process, on stderr: results alone are on stdout."""
    PartialState().print(text, file=sys.stderr)


@contextmanager
def left_out_if_it_fails(what):
    """Around what a run can do without: why it could not be made is said in a line, and the run continues."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        say(f"left out: {what} ({reason:.500})")


def draw_curves(log_history, metric, path):
    """Training and validation loss over the steps, and the metric that chooses the best."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, label in (("loss", "training loss"), ("eval_loss", "validation loss")):
        points = [(entry["step"], entry[name]) for entry in log_history if name in entry]
        if points:
            axis.plot(*zip(*points, strict=True), label=label, marker="o" if name == "eval_loss" else None)
    axis.set(xlabel="step", ylabel="loss")
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    points = [(entry["step"], entry[name]) for entry in log_history if name in entry]
    if points and name != "eval_loss":
        metric_axis = axis.twinx()
        metric_axis.plot(*zip(*points, strict=True), color="tab:green", marker="s", label=metric)
        metric_axis.set_ylabel(metric)
        figure.legend(loc="outside upper right", ncols=3)
    else:
        axis.legend()
    temporary = path.with_name("." + path.name)
    figure.savefig(temporary, dpi=120)
    plt.close(figure)
    temporary.replace(path)


def write_score_table(log_history, path):
    """One row per evaluation, Markdown; the first, of step 0, is the one before training."""
    rows = [entry for entry in log_history if "eval_loss" in entry]
    ignored = {"eval_runtime", "eval_samples_per_second"}
    names = {name for row in rows for name in row if name.startswith("eval_")} - ignored
    names = sorted(names, key=lambda name: (name != "eval_loss", name))  # a resumed log has another order
    lines = ["| step | epoch | " + " | ".join(name.removeprefix("eval_") for name in names) + " |"]
    lines += ["|" + "--:|" * (len(names) + 2)]
    for row in rows:
        values = [f"{row[name]:.4g}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in names]
        step = row["step"] or "0 (before training)"
        lines.append(f"| {step} | {row['epoch']:.2f} | " + " | ".join(values) + " |")
    write_beside(path, "\n".join(lines) + "\n")


def save_samples(samples, folder):
    """samples.md, and samples.png where the photos are at hand.

    Args:
        samples: dicts with `image_id`, `lines` (what to show: prediction first), and `image`, the path of the photo.
    """
    samples = samples[:SAMPLES]
    if not samples:
        return
    text = [f"* **{sample['image_id']}**: " + " · ".join(sample["lines"]) + "\n" for sample in samples]
    write_beside(folder / "samples.md", html.escape("".join(text), quote=False))
    cards = []
    for sample in samples:
        if sample.get("image") and Path(sample["image"]).is_file():
            with left_out_if_it_fails(f"{sample['image_id']} of samples.png"):
                cards.append(sample_card(sample))
    if cards:
        arrange(cards).save(folder / ".samples.png")
        (folder / ".samples.png").replace(folder / "samples.png")


def sample_card(sample) -> Image.Image:
    photo = open_photo(sample["image"])
    height = round(PHOTO_WIDTH * photo.height / photo.width)
    photo = photo.resize((PHOTO_WIDTH, max(1, min(2 * PHOTO_WIDTH, height))))
    lines = [
        (line, INK if number == 0 else GREY)
        for number, text in enumerate(sample["lines"])
        for line in wrap(text, TEXT_SIZE, PHOTO_WIDTH)
    ]
    card = Image.new("RGB", (PHOTO_WIDTH, photo.height + LINE * len(lines) + 10), PAPER)
    card.paste(photo, (0, 0))
    draw = ImageDraw.Draw(card)
    for number, (line, colour) in enumerate(lines):
        draw.text((0, photo.height + 5 + LINE * number), line, colour, font(TEXT_SIZE))
    return card


def run_card(task, config, options, training, state, scores, samples=()) -> str:
    """The model card of a run: base model, data, hyper-parameters, scores of the chosen step, versions, an example."""
    numbers = {name: float(value) for name, value in scores.items() if isinstance(value, int | float)}
    settings = {name: getattr(training, name) for name in CARD_SETTINGS}
    settings = {name: value for name, value in settings.items() if value not in (None, False, -1)}
    settings["lr_scheduler_type"] = training.lr_scheduler_type.value
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate", "datasets"))
    weights = f"averaged weights (decay {options.ema_decay})" if options.ema_decay else "weights"
    step = f"step {state.global_step}" if state.global_step else "the start: no evaluation after it was better"
    metric = f"eval_{training.metric_for_best_model.removeprefix('eval_')}"
    start = next((entry[metric] for entry in state.log_history if not entry["step"] and metric in entry), None)
    before = "" if start is None else f" ({metric.removeprefix('eval_')} {start:.4g} before training)"
    notes = [
        f"started from: {escaped(Path(options.model_name_or_path).name)}{before}",
        f"data: {escaped(options.dataset)}; {weights} of {step}",
        "settings: " + ", ".join(f"{name} {value}" for name, value in settings.items()),
        f"versions: {versions}",
    ]
    evaluated_on = {"dataset": Path(options.dataset).name, "split": "validation"}
    name = Path(training.output_dir).resolve().name
    example = {}
    if task == "caption" and samples and samples[0].get("image"):
        photo = Path(samples[0]["image"]).name
        if re.fullmatch(r"[\w.-]+", photo):  # it stands in lines of Python
            example = {"photo": photo, "printed": samples[0]["lines"][0]}
    return model_card(task, config, name, scores=evaluated_on | numbers, license="other", notes=notes, **example)


def outcome(history, metric, greater_is_better, folder) -> str:
    """One line: how good the best evaluation is, beside the one before training, and where its weights are."""
    name, sign = f"eval_{metric}", 1 if greater_is_better else -1
    known = [entry for entry in history if isinstance(entry.get(name), int | float)]
    before = next((entry for entry in known if not entry["step"]), None)
    trained = [entry for entry in known if entry["step"]]
    if before is not None and all(entry["step"] == 0 for entry in history):
        return f"nothing was trained: {folder} holds the weights of the start, {metric} {before[name]:.4g}"
    if not trained:
        return f"{folder}: the weights of this run; no evaluation gave {metric}"
    best = max(trained, key=lambda entry: sign * entry[name])
    after = f"{best[name]:.4g} at step {best['step']}, epoch {best['epoch']:.3g}"
    if before is None:
        return f"{folder}: the best weights, {metric} {after}"
    if sign * best[name] > sign * before[name]:
        return f"{folder}: the best weights, {metric} {before[name]:.4g} before training, {after}"
    return (
        f"training made nothing better: {metric} {before[name]:.4g} before it, at best {after}. {folder} holds the "
        "weights of the start; a smaller --learning_rate, fewer epochs or more data may help"
    )


def how_to_use(task, config, options, training, folder) -> str:
    """The command that runs what a training has left in `folder`."""
    if task in USES and config.region_model:
        return f"mengzi-oscar {USES[task]} --model {shlex.quote(str(folder))}"
    if task == "pretrain":
        return f"python train/caption.py --do_train --model_name_or_path {shlex.quote(str(folder))} --help"
    output = Path(training.output_dir).with_name(f"{Path(training.output_dir).name}-test")
    words = ["python", f"train/{task}.py", "--do_predict", "--model_name_or_path", folder, "--dataset", options.dataset]
    for name in ("dataset_config", "data_dir"):
        if getattr(options, name) is not None:
            words += [f"--{name}", getattr(options, name)]
    words += ["--features", *options.features, "--output_dir", output]
    return shlex.join(map(str, words))


def write_beside(path, text):
    write_whole(path, text.encode())


def write_rows(path, rows):
    """One JSON object per line."""
    write_beside(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_scores(folder, scores):
    """scores.json, and what is in it on the screen."""
    text = json.dumps(scores, indent=2)
    write_beside(folder / "scores.json", text)
    print(text)
