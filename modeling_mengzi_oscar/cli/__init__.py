"""The command `mengzi-oscar`: arguments in, one line per result or per mistake out. The work is in the other files."""

import argparse
import json
import os
import re
import sys
from itertools import chain
from pathlib import Path

from .. import __version__
from .installed import bundled_checkpoint

EXAMPLES = """examples:
  mengzi-oscar caption photo.jpg
  mengzi-oscar caption *.jpg --num-beams 3 --picture captions.png
  mengzi-oscar caption photo.jpg --style detailed
  mengzi-oscar caption photo.jpg --json
  mengzi-oscar caption --samples --picture demo.png
  mengzi-oscar caption *.jpg --model DIR --int8
  mengzi-oscar ask photo.jpg 有几个人？
  mengzi-oscar match photo.jpg 两个人在骑马 一只猫
  mengzi-oscar extract photos/ --output stores/photos --picture regions.png
  mengzi-oscar convert Langboat/mengzi-oscar-base-caption converted/
  mengzi-oscar push converted/ me/mengzi-oscar-caption --dry-run
  mengzi-oscar environment
"""
TASKS = ("caption", "retrieval", "vqa", "gqa", "nlvr2", "pretrain")
MAX_BEAMS, MAX_TOKENS, MAX_ANSWERS = 100, 512, 100_000  # more is a mistake; what a checkpoint can do it says itself
MAX_PICTURED = 100
BUNDLED = bundled_checkpoint()
MINI_NOTICE = {
    "zh": "mini 模型只学过 6,000 张照片（人、狗、运动、户外）；其他题材多半说错，有时认得主要的东西。",
    "en": "The mini model learnt from 6,000 photos (people, dogs, sports, outdoors); it is mostly wrong elsewhere.",
}


def main(arguments=None) -> int:
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show is spelled out; it never ends a command
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    commands = (caption, ask, match, extract, convert, push, environment)
    try:
        return {command.__name__: command for command in commands}[options.command](options)
    except ImportError as error:  # a library that is missing or too old: its message says what to install
        return fail(str(error))
    except KeyboardInterrupt:
        if arguments is not None:  # called from Python
            raise
        fail("interrupted")
        return 130
    except BrokenPipeError:  # `mengzi-oscar caption *.jpg | head`: nobody reads on
        leave_output()
        return 1
    except OSError as error:  # a disk that is full, a file that cannot be written
        leave_output()
        return fail(error)


def leave_output():
    """Where nothing more can be printed: Python would try again at its end, and fail with a message of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser():
    parser = argparse.ArgumentParser(
        prog="mengzi-oscar",
        description="Chinese captions, answers and matches for photos.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mengzi-oscar {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_caption(commands.add_parser("caption", help="write a caption for each photo"))
    add_ask(commands.add_parser("ask", help="answer a question about a photo (checkpoints with an ask/ head)"))
    add_match(commands.add_parser("match", help="does a text belong to a photo? (checkpoints with a match/ head)"))
    extract_command = commands.add_parser("extract", help="region features of many photos")
    add_extract_arguments(extract_command)
    extract_command.add_argument(
        "--model", type=named, help="region model, or a checkpoint that names one (default: the mini's)"
    )
    add_convert(commands.add_parser("convert", help="an original checkpoint into a folder that is a Hub repo"))
    add_push(commands.add_parser("push", help="a checkpoint folder to the Hub, after checks"))
    commands.add_parser("environment", help="versions, device and dtype, for bug reports")
    return parser


def add_caption(parser):
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="JPEG, PNG, WebP, BMP, GIF, TIFF, HEIC or AVIF")
    parser.add_argument("--samples", action="store_true", help="the photos that scikit-image and scikit-learn carry")
    add_model(parser)
    parser.add_argument("--num-beams", type=whole(1, MAX_BEAMS), default=5, help="sentences considered (default 5)")
    parser.add_argument(
        "--max-length", type=whole(2, MAX_TOKENS), help="tokens, with start and end (default 20; detailed: 30)"
    )
    parser.add_argument("--style", choices=["short", "detailed"], help="where the checkpoint writes in both (the mini)")
    parser.add_argument("--json", action="store_true", help="everything the pipeline returns, a JSON object a line")
    parser.add_argument("--picture", metavar="PNG", help="photo, caption and the regions that weighed most")


def add_ask(parser):
    parser.add_argument("photo", metavar="PHOTO")
    parser.add_argument("question", metavar="QUESTION")
    add_model(parser)
    parser.add_argument("--top", type=whole(1, MAX_ANSWERS), default=5, help="answers printed (default 5)")
    parser.add_argument("--json", action="store_true")


def add_match(parser):
    parser.add_argument("photo", metavar="PHOTO")
    parser.add_argument("texts", nargs="+", metavar="TEXT")
    add_model(parser)
    parser.add_argument("--json", action="store_true")


def add_convert(parser):
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, .bin or Hub id (@REVISION); .pth of the VinVL detector")
    add("output", metavar="OUTPUT", help="new folder")
    add("--task", default="auto", choices=["auto", *TASKS], help="default: found from the weights")
    add("--region-model", metavar="ID@REV", help="region model of the training: Hub id or folder")
    add("--answers", metavar="FILE", help="answers of VQA or GQA: ans2label, JSON or pickle")
    add("--labelmap", metavar="FILE", help="detector: VG-SGG-dicts-vgoi6-clipped.json")
    add("--labels", metavar="FILE", help="detector: JSON {English: Chinese} that the captioner learnt")
    add("--vocab", metavar="FILE", help="vocab.txt, where none lies beside the weights")
    add("--allow-missing", action="store_true", help="initialise heads that the source has not")
    add("--base-model", metavar="ID", help="for the model card: what this was fine-tuned from")
    add("--dataset", metavar="ID", action="append", dest="datasets", help="for the model card: trained on")
    add("--scores", metavar="FILE", help="for the model card: scores.json of an evaluation")


def add_push(parser):
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("repo_id", metavar="REPO_ID")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--create-pr", action="store_true", help="a pull request instead of a commit")
    parser.add_argument("--dry-run", action="store_true", help="check, and list what would be sent")


def add_model(parser):
    """Which checkpoint, and how it computes: what the commands that look at a photo have in common."""
    parser.add_argument(
        "--model", type=named, help="folder or Hub id, @REVISION too (default: the mini checkpoint here)"
    )
    parser.add_argument("--int8", action="store_true", help="multiply in 8 bits: faster on CPUs at bert-base size")


def add_extract_arguments(parser):
    """What the command and train/extract_features.py have in common."""
    add = parser.add_argument
    add(
        "source",
        type=named,
        metavar="SOURCE",
        help="photos: folder, list (.txt, .csv, .jsonl), tar shards, dataset or Parquet",
    )
    add(
        "--output",
        type=named,
        required=True,
        metavar="STORE",
        help="folder to write: a store, or Oscar's files with --format tsv-…",
    )
    add("--format", choices=["store", "tsv-caption", "tsv-retrieval"], default="store", help="default: store")
    add(
        "--language",
        choices=["zh", "en"],
        default="zh",
        help="language of the class names in Oscar's files (default zh)",
    )
    add("--batch-size", "--batch_size", type=whole(1, 1024), default=16, help="photos in one forward pass (default 16)")
    add(
        "--dtype",
        choices=["float16", "float32"],
        default="float16",
        help="type of the stored features (default float16)",
    )
    add(
        "--precision", choices=["float32", "bfloat16"], default="float32", help="type that the region model computes in"
    )
    add("--flip", action="store_true", help="mirror the photos, as augmentation; write to a store of its own")
    add(
        "--limit-pixels",
        "--limit_pixels",
        type=whole(1, 10**12),
        default=64_000_000,
        help="skip larger photos (default 64 million)",
    )
    add(
        "--images-per-shard",
        "--images_per_shard",
        type=whole(1, 65_536),
        default=256,
        help="at most that many are lost by a kill",
    )
    add("--picture", metavar="PNG", help="draw the regions found in the first photos")


def named(text):
    """The type of a path or name. A shell makes an empty one of a variable that is not set; it means nothing."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a name, or leave it out")
    return text


def whole(low, high):
    """The type of an option that is a whole number in a range: what no checkpoint can do is refused at once."""

    def number(text):
        value = int(text) if text.isdecimal() and len(text) < 20 else -1
        if not low <= value <= high:
            shown = repr(text if len(text) < 40 else f"{text[:40]}…")
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high:,}, not {shown}")
        return value

    return number


def caption(options) -> int:
    from ..photos import PhotoError, is_apple_double, open_photo

    beside = [path for path in options.photos if is_apple_double(path)]
    if beside:
        print(
            f"passed over {len(beside):,} that macOS keeps beside photos, e.g. {printable(beside[0])}", file=sys.stderr
        )
    photos = [(path, path, None) for path in options.photos if path not in beside]  # name, source, credit
    if options.samples:
        from ..demo.samples import sample_photos

        try:
            photos += [(name, path, credit) for name, (path, credit) in sample_photos().items()]
        except ModuleNotFoundError as error:
            return fail(str(error))
    if not photos:
        return fail("mengzi-oscar caption: name a photo, or --samples")
    if options.picture is not None:
        from ..demo.pictures import check_picture

        try:
            check_picture(options.picture, [source for _, source, _ in photos])
        except ValueError as error:
            return fail(str(error))
    failed, opened = 0, []

    def open_all():  # one at a time: thousands need no memory
        nonlocal failed
        for name, source, credit in photos:
            try:
                yield name, open_photo(source), credit
            except PhotoError as error:
                failed = fail(str(error))

    readable = open_all()
    first = next(readable, None)
    if first is None:
        return failed
    settings = {"num_beams": options.num_beams, "style": options.style}
    if options.max_length or options.style != "detailed":
        settings["max_length"] = options.max_length or 20
    try:
        pipeline = load_pipeline(options)
        pipeline.caption([], **settings)  # says what cannot work before any photo is captioned
    except ValueError as error:
        return fail(str(error))
    for name, photo, credit in progress(chain([first], readable), len(photos)):
        [result] = pipeline.caption([photo], **settings)
        if "error" in result:
            failed = fail(result["error"])
            continue
        print_row(options.json, {"photo": name} | result, name, result["caption"], f"{result['score']:.3f}")
        if options.picture and len(opened) < MAX_PICTURED:
            opened.append((photo, result, Path(name).name, credit))
    notice = MINI_NOTICE if pipeline.captioner.config.name_or_path == str(BUNDLED) else None
    if notice:
        print("\n".join(notice.values()), file=sys.stderr)
    if opened:
        from ..demo.pictures import draw_captions, save_picture

        page = draw_captions(*zip(*opened, strict=True), notice["zh"] if notice else None)
        save_picture(page, options.picture)
        of = f", the first {MAX_PICTURED} photos" if len(photos) > MAX_PICTURED else ""
        print(f"picture: {printable(options.picture)}{of}", file=sys.stderr)
    return failed


def ask(options) -> int:
    if is_file(options.question):
        return fail(f"{options.question}: is a file, not a question; mengzi-oscar ask takes one photo, then a question")
    return print_rows(options, "answer", lambda pipeline: pipeline.ask(options.photo, options.question, options.top))


def match(options) -> int:
    if files := [text for text in options.texts if is_file(text)]:
        return fail(
            f"{files[0]}: is a file, not a sentence; mengzi-oscar match takes one photo, then sentences"
            + (f" ({len(files)} such)" if len(files) > 1 else "")
        )
    return print_rows(options, "text", lambda pipeline: pipeline.match(options.photo, options.texts))


def is_file(text) -> bool:
    """A file, or what a shell leaves of a pattern that matches none."""
    from ..photos import SUFFIXES

    return os.path.isfile(text) or text.lower().endswith(SUFFIXES)


def print_rows(options, name, run) -> int:
    """A line per answer or text with its probability, or all of them as one JSON list."""
    try:
        rows = run(load_pipeline(options))
    except ValueError as error:
        return fail(str(error))
    if options.json:
        print_row(True, rows)
    else:
        for row in rows:
            print_row(False, row, row[name], f"{row['probability']:.3f}")
    return 0


def print_row(as_json, record, *columns):
    """A result as one line of standard output: as JSON, or its columns between tabs."""
    line = json.dumps(record, ensure_ascii=False) if as_json else "\t".join(map(printable, columns))
    if as_json:
        try:
            line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
        except UnicodeEncodeError:  # spelled out as JSON does it
            line = json.dumps(record)
    print(line, flush=True)


def printable(text) -> str:
    """Line ends and control characters spelled out, as file names may have them."""
    return re.sub(r"[\0-\x1f\x7f-\x9f\u2028\u2029]", lambda sign: repr(sign[0])[1:-1], text)


def extract(options) -> int:
    quiet()
    import torch

    from ..features.extraction import extract as extract_photos

    try:
        settings = vars(options) | {"model": model_or_bundled(options.model)}
        settings["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        del settings["command"]
        line, errors = extract_photos(**settings)
    except (ValueError, OSError) as error:
        return fail(error)
    print(printable(line))
    return 2 if errors else 0


def convert(options) -> int:
    quiet()
    from ..convert.oscar import convert as convert_checkpoint
    from ..convert.oscar import convert_detector
    from ..hub.repo import read_json

    try:
        if options.source.endswith(".pth"):
            said = [convert_detector(options.source, options.output, options.labelmap, options.labels)]
        else:
            names = ("task", "region_model", "answers", "vocab", "allow_missing", "base_model", "datasets")
            arguments = {name: getattr(options, name) for name in names}
            arguments["scores"] = read_json(options.scores) if options.scores else None
            task, notes = convert_checkpoint(options.source, options.output, **arguments)
            said = [f"task {task}.", *notes]
    except ValueError as error:
        return fail(str(error))
    print(printable(f"{options.output}: {' '.join(said)}"))
    return 0


def push(options) -> int:
    quiet()
    from .. import hub

    try:
        if not options.dry_run:
            print(hub.push(options.folder, options.repo_id, options.private, options.create_pr))
            return 0
        sizes = {name: (Path(options.folder) / name).stat().st_size for name in hub.check_repo(options.folder)}
    except ValueError as error:
        return fail(str(error))
    for name, size in sizes.items():
        print(f"{size:14,}  {printable(str(name))}")
    kind = "private " * options.private + "pull request to " * options.create_pr
    print(f"{sum(sizes.values()):14,}  bytes in {len(sizes)} files would go to {kind}{options.repo_id}")
    return 0


def environment(options) -> int:
    from .installed import environment as rows_of_environment

    rows = rows_of_environment()
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")
    return 0


def load_pipeline(options):
    if sys.stderr.isatty():  # the libraries below take seconds to import
        print("loading …", end="\r", file=sys.stderr, flush=True)
    quiet()
    from ..pipeline_mengzi_oscar import MengziOscarPipeline

    return MengziOscarPipeline.from_pretrained(model_or_bundled(options.model), int8=options.int8)


def model_or_bundled(model):
    if model is None and not BUNDLED.is_dir():
        raise ValueError(f"{BUNDLED}: the mini checkpoint is not there: name another one with --model")
    return str(BUNDLED) if model is None else model


def progress(items, total):
    from tqdm import tqdm

    return tqdm(items, total=total, unit="photo", disable=total < 5, file=sys.stderr)


def quiet():
    """Our own lines only: no progress bars and no notices of the libraries below."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def fail(message) -> int:
    """One line on the screen, of a text or an error; the status of the command."""
    from tqdm import tqdm

    if isinstance(message, OSError) and message.filename is not None:
        message = f"{message.filename}: {message.strerror}"
    line = " ".join(part.strip() for part in str(message).splitlines())
    tqdm.write(printable(line), file=sys.stderr)  # above its bar
    return 2


if __name__ == "__main__":
    sys.exit(main())
