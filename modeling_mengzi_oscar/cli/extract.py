"""`mengzi-oscar extract`: region features of many photos."""

from .checkpoint import model_or_bundled
from .options import named, whole
from .output import fail, printable, quiet, warnings_as_lines


def add_extract_arguments(parser):
    """What the command and train/extract_features.py have in common."""
    add = parser.add_argument
    add(
        "source",
        type=named,
        metavar="SOURCE",
        help="photos: folder, list (.txt, .csv, .jsonl), tar shards, dataset, Parquet; or a store, with --format tsv-…",
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
    add(
        "--batch-size",
        "--batch_size",
        type=whole(1, 1024),
        help="photos in one forward pass (default 16, fewer large ones on a CPU)",
    )
    add(
        "--dtype",
        choices=["float16", "float32"],
        default="float16",
        help="dtype of the stored features (default float16)",
    )
    add(
        "--precision",
        choices=["auto", "float32", "bfloat16", "int8"],
        default="auto",
        help="compute dtype of the region model (auto: that of an existing store, else bfloat16 on GPUs and "
        "on CPUs with AMX, else float32; int8: a VinVL calibrated by mengzi-oscar quantize, on the CPU)",
    )
    add("--flip", action="store_true", help="flip photos horizontally, as augmentation; use a separate store")
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
        help="images per shard; a kill loses at most one shard, or a minute of work (default 256)",
    )
    add("--picture", metavar="PNG", help="draw the regions found in the first photos")


def add_arguments(parser):
    add_extract_arguments(parser)
    parser.add_argument(
        "--model", type=named, help="region model, or a checkpoint that names one (default: the mini's, or the store's)"
    )


@warnings_as_lines()
def run(options) -> int:
    quiet()
    import torch

    from ..features.extraction import extract as extract_photos
    from ..features.extraction import is_store

    try:
        model = options.model if is_store(options.source) else model_or_bundled(options.model)
        settings = vars(options) | {"model": model}
        settings["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        del settings["command"]
        line, errors = extract_photos(**settings)
    except (ValueError, OSError) as error:
        return fail(error)
    print(printable(line))
    return 2 if errors else 0
