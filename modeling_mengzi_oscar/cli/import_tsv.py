"""`mengzi-oscar import-tsv`: region features that others released, as a store."""

from .options import named, whole
from .output import fail, quiet


def add_arguments(parser):
    add = parser.add_argument
    add(
        "features",
        type=named,
        metavar="FEATURES.tsv",
        help="features: Oscar's for captioning or retrieval, bottom-up-attention's or LXMERT's",
    )
    add("objects", type=named, nargs="?", metavar="LABELS.tsv", help="the objects that belong to Oscar's features")
    add(
        "--output", type=named, required=True, metavar="STORE", help="folder of the store; an unfinished one is resumed"
    )
    add(
        "--language",
        choices=["zh", "en"],
        default="zh",
        help="zh (default): English names of objects become Chinese ones; en: names stay as they are",
    )
    add(
        "--labels",
        type=named,
        metavar="JSON",
        help="JSON of Chinese words that override the built-in ones, e.g. chinese_label.json",
    )
    add(
        "--labels-are",
        "--labels_are",
        choices=["regions", "tags"],
        default="regions",
        help="the objects are the regions of the features (default), or only tags of the photo",
    )
    add(
        "--assumed-size",
        "--assumed_size",
        type=whole(1, 10**6),
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of photos whose objects come without image_h and image_w (Oscar takes 600 800)",
    )
    add(
        "--feature-dim",
        "--feature_dim",
        type=whole(1, 10**6),
        help="numbers per region in the store (default: as in most of the first rows)",
    )
    add("--skip-bad", "--skip_bad", action="store_true", help="list bad rows in errors.jsonl and continue")
    add("--num-proc", "--num_proc", type=whole(1, 256), default=1, help="processes that decode (default 1)")
    add(
        "--dtype",
        choices=["float16", "float32"],
        default="float16",
        help="dtype of the stored features (default float16)",
    )
    add(
        "--images-per-shard",
        "--images_per_shard",
        type=whole(1, 65_536),
        default=512,
        help="images per shard; a kill loses at most one shard, or a minute of work (default 512)",
    )
    add(
        "--region-model",
        "--region_model",
        type=named,
        help="region model that made the features, recorded in the store",
    )


def run(options) -> int:
    quiet()
    from ..features.oscar_tsv import import_tsv
    from ..labels.chinese import load_dictionary

    settings = vars(options).copy()
    del settings["command"]
    features, output = settings.pop("features"), settings.pop("output")
    try:
        if options.labels and options.language == "en":
            raise ValueError("--labels are Chinese words, --language en takes none: leave out one of them")
        dictionary = load_dictionary(options.labels) if settings.pop("labels") else None
        settings |= {"label_tsv": settings.pop("objects"), "dictionary": dictionary}
        counts = import_tsv(features, output, **settings)
    except (ValueError, OSError) as error:
        return fail(error)
    return 2 if counts["skipped"] else 0
