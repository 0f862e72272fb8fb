"""`mengzi-oscar caption`: a line per photo."""

import json
import sys
import zlib
from functools import cached_property
from pathlib import Path

from .checkpoint import BUNDLED, load_pipeline, model_or_bundled
from .options import add_model, named, whole
from .output import fail, printable
from .photos import PHOTO_HELP, add_output, find_photos, made_with, run_photos

MAX_BEAMS, MAX_TOKENS = 100, 512  # more is a mistake; what a checkpoint can do it says itself
MAX_PICTURED = 100
OBJECT = ("box", "label", "score")  # what --json says of one
SURE = ("confidence", "probably_wrong")  # where the checkpoint knows how sure it can be
MINI_NOTICE = {
    "zh": "mini 模型只用 10,000 张照片训练（人、狗、运动、街景和单个物体），其他题材经常出错。",
    "en": "The mini model learnt from 10,000 photos (people, dogs, sports, streets, things); it often errs elsewhere.",
}


def add_arguments(parser):
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help=PHOTO_HELP)
    parser.add_argument("--samples", action="store_true", help="the sample photos of scikit-image and scikit-learn")
    parser.add_argument(
        "--features", type=named, metavar="STORE", help="instead of photos: a region feature store, folder or Hub id"
    )
    add_model(parser)
    parser.add_argument("--num-beams", type=whole(1, MAX_BEAMS), help="beam width (default: the checkpoint's)")
    parser.add_argument(
        "--max-length",
        type=whole(2, MAX_TOKENS),
        help="maximum tokens, [CLS] and [SEP] included (default: the checkpoint's)",
    )
    parser.add_argument(
        "--style", choices=["short", "detailed"], help="caption style, if the checkpoint has several (the mini)"
    )
    add_output(parser)
    parser.add_argument(
        "--details", action="store_true", help="JSON with tokens, regions and the attention between them"
    )
    parser.add_argument(
        "--picture", metavar="PNG", help="draw each photo, its caption and the regions of highest attention"
    )


def run(options) -> int:
    if options.details and (options.output or "").lower().endswith(".csv"):
        return fail(f"--output {options.output}: a .csv cannot hold --details; name a .jsonl")
    settings = {"num_beams": options.num_beams, "max_length": options.max_length, "style": options.style}
    if options.features is not None:
        return caption_store(options, settings)
    photos, credits = find_photos(options.photos), {}
    if options.samples:
        from ..demo.samples import sample_photos
        from ..features.photo_stream import OneName

        try:
            samples = sample_photos()
        except ModuleNotFoundError as error:
            return fail(str(error))
        photos.sources += [OneName(name, path) for name, (path, _) in samples.items()]
        credits = {name: credit for name, (_, credit) in samples.items()}
    if not photos.sources:
        return fail("mengzi-oscar caption: name a photo, or --samples")
    picture = None
    if options.picture is not None:
        from ..demo.pictures import check_picture

        exists = Path(options.picture).exists()  # then it may be one of them
        try:
            check_picture(options.picture, (photo.name for photo in photos.fetch_photos()) if exists else ())
        except ValueError as error:
            return fail(str(error))
        picture = Picture(options.picture, credits)
    job = Captions(options, settings, picture)
    status = run_photos(options, photos, job)
    notice = MINI_NOTICE if job.is_mini() else None
    if notice:
        print("\n".join(notice.values()), file=sys.stderr)
    if picture and picture.cards:
        picture.save(notice["zh"] if notice else None)
    return status


class Captions:
    def __init__(self, options, settings, picture=None):
        self.options, self.settings, self.picture, self.pipeline = options, settings, picture, None

    @cached_property
    def calibrations(self) -> dict | None:
        """What the checkpoint says of how sure it can be, before it is loaded."""
        from ..loading import load_processor

        return load_processor(model_or_bundled(self.options.model)).confidence

    @property
    def columns(self):
        return ("caption", "score", *(SURE if self.calibrations else ()))

    def made_with(self):
        return made_with(self.options, **self.made_how())

    def made_how(self):
        """What another run must share to resume this one."""
        said = self.calibrations and json.dumps(self.calibrations, sort_keys=True).encode()
        confidence = f"{zlib.crc32(said):08x}" if said else None
        return {"details": self.options.details or None, "confidence": confidence} | self.settings

    def load(self):
        pipeline = load_pipeline(self.options)
        pipeline.caption([], **self.settings)  # says what cannot work before any photo is captioned
        self.pipeline = pipeline

    def is_mini(self) -> bool:
        return self.pipeline is not None and self.pipeline.captioner.config.name_or_path == str(BUNDLED)

    def of(self, images, names):
        results = self.pipeline.caption(images, **self.settings)
        if self.picture:
            self.picture.add(images, results, names)
        return results

    def record(self, result):
        """The caption in short; what it was made from with --details."""
        if self.options.details:
            return result
        names = [name for name in ("caption", "score", *SURE) if name in result]
        captions = [{name: one[name] for name in names} for one in result["captions"]]
        objects = [{name: region[name] for name in OBJECT} for region in result["regions"] if "label" in region]
        return {name: result[name] for name in names} | {
            "captions": captions,
            "tags": result["tags"],
            "objects": objects,
        }

    def alone(self, record):
        return record

    def lines(self, result):
        from ..confidence import MARK

        return [(result["caption"], f"{result['score']:.3f}", *[MARK] * result.get("probably_wrong", False))]

    def cells(self, result):
        from ..confidence import MARK

        sure = [result["confidence"], MARK * result["probably_wrong"]] if "confidence" in result else []
        return [result["caption"], result["score"], *sure]


class StoredCaptions(Captions):
    """Captions of the photos of a store, whose pixels nobody needs."""

    def __init__(self, options, settings, stored):
        super().__init__(options, settings)
        self.stored = stored

    def made_with(self):
        store = self.stored.store
        features = f"{store.path} ({store.region_model})"
        return made_with(self.options, region_model=False, features=features, **self.made_how())

    def load(self):
        pipeline = load_pipeline(self.options, region_model=False)
        self.stored.check_width(pipeline.captioner.config)
        pipeline.caption([], **self.settings)
        self.pipeline = pipeline


def caption_store(options, settings) -> int:
    if options.photos or options.samples or options.picture is not None:
        return fail(
            "mengzi-oscar caption: --features STORE captions what is in the store; leave out photos and --picture"
        )
    from ..features.store import RegionFeatureStore
    from ..features.stored_photos import StoredPhotos
    from ..precision import another_precision

    try:
        stored = StoredPhotos(RegionFeatureStore.open(options.features))
        labels = stored.labels_for(model_or_bundled(options.model))
    except (ValueError, OSError) as error:
        return fail(error)
    if line := another_precision(stored.store.precision, options.dtype):
        print(f"{printable(options.features)}: {line}", file=sys.stderr)
    if labels is None:
        print(f"{printable(options.features)}: has no tag names; captions are written without tags", file=sys.stderr)
    job = StoredCaptions(options, settings, stored)
    status = run_photos(options, stored, job, opened=lambda photos: stored.read(photos, labels))
    if job.is_mini():
        print("\n".join(MINI_NOTICE.values()), file=sys.stderr)
    return status


class Picture:
    """`--picture`: a card of each of the first photos, drawn when it is captioned; the photo itself is not kept."""

    def __init__(self, path, credits):
        self.path, self.credits, self.cards, self.left_out = path, credits, [], False

    def add(self, images, results, names):
        from ..demo.pictures import draw_card

        for image, result, name in zip(images, results, names, strict=True):
            if len(self.cards) == MAX_PICTURED:
                self.left_out = True
            elif "error" not in result:
                self.cards.append(draw_card(image, result, Path(name).name, self.credits.get(name)))

    def save(self, notice):
        from ..demo.pictures import arrange, save_picture

        save_picture(arrange(self.cards, notice), self.path)
        of = f", the first {MAX_PICTURED} photos" if self.left_out else ""
        print(f"picture: {printable(self.path)}{of}", file=sys.stderr)
