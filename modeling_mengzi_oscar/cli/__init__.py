"""The command `mengzi-oscar`: arguments in, one line per result or per mistake out. A file per command."""

import argparse
import sys

from .. import __version__
from . import ask, caption, convert, environment, extract, import_tsv, match, push, quantize, search
from .output import fail, leave_output
from .threads import sleep_soon

EXAMPLES = """examples:
  mengzi-oscar caption photo.jpg
  mengzi-oscar caption *.jpg --num-beams 3 --picture captions.png
  mengzi-oscar caption photo.jpg --style detailed
  mengzi-oscar caption photo.jpg --json
  mengzi-oscar caption photos/ '2025*/*.jpg' --output captions.csv
  mengzi-oscar caption --features stores/photos --output captions.jsonl
  mengzi-oscar caption --samples --picture demo.png
  mengzi-oscar caption *.jpg --model DIR --dtype int8
  mengzi-oscar ask photo.jpg 有几个人？
  mengzi-oscar ask photos/ 有几个人？ --output answers.csv
  mengzi-oscar match photo.jpg 两个人在骑马 一只猫
  mengzi-oscar search photos/ 两个人在骑马 --top 5 --prepared prepared/ --picture best.png
  mengzi-oscar extract photos/ --output stores/photos --picture regions.png
  mengzi-oscar extract stores/photos --format tsv-caption --output oscar/photos
  mengzi-oscar import-tsv train.feature.tsv train.label.tsv --output stores/train
  mengzi-oscar convert Langboat/mengzi-oscar-base-caption converted/ --region-model vinvl/
  mengzi-oscar convert Langboat/mengzi-oscar-base-retrieval converted/match
  mengzi-oscar quantize converted/ photos/
  mengzi-oscar push converted/ me/mengzi-oscar-caption --dry-run
  mengzi-oscar environment
"""
COMMANDS = {  # name -> its file, and what it does
    "caption": (caption, "caption photos, or the features in a store"),
    "ask": (ask, "answer a question about photos (needs an ask head)"),
    "match": (match, "score how well sentences match photos (needs a match head)"),
    "search": (search, "find the photos that match a sentence best (needs a match head)"),
    "extract": (extract, "extract the region features of photos"),
    "import-tsv": (import_tsv, "import a feature TSV (Oscar's, bottom-up-attention's, LXMERT's) into a store"),
    "convert": (convert, "convert an original checkpoint to a Hub repo folder"),
    "quantize": (quantize, "calibrate a VinVL detector on photos, for --dtype int8"),
    "push": (push, "check a checkpoint folder and upload it to the Hub"),
    "environment": (environment, "print versions, device and dtype, for bug reports"),
}


def main(arguments=None) -> int:
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show is spelled out; it never ends a command
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    sleep_soon()
    try:
        return COMMANDS[options.command][0].run(options)
    except ImportError as error:  # a library that is missing or too old: its message says what to install
        return fail(str(error))
    except KeyboardInterrupt as stopped:  # what was kept, where something was
        if arguments is not None:  # called from Python
            raise
        fail(stopped if stopped.args else "interrupted")
        return 130
    except BrokenPipeError:  # `mengzi-oscar caption *.jpg | head`: nobody reads on
        leave_output()
        return 1
    except OSError as error:  # a disk that is full, a file that cannot be written
        leave_output()
        return fail(error)


def parser():
    parser = argparse.ArgumentParser(
        prog="mengzi-oscar",
        description="Chinese captions, answers and matches for photos.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mengzi-oscar {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (command, does) in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=does))
    return parser


if __name__ == "__main__":
    sys.exit(main())
