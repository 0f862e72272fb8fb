"""The options that several commands have, and the types of their values."""

import argparse


def add_model(parser):
    """Which checkpoint, and how it computes: what the commands that look at a photo have in common."""
    parser.add_argument(
        "--model", type=named, help="folder or Hub id, optionally @REVISION (default: the bundled mini)"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "int8"],
        default="auto",
        help="compute dtype (auto: bfloat16 on GPUs and on CPUs with AMX, else float32; int8: 8 bits, on CPUs)",
    )


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
