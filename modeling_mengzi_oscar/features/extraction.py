"""Photos -> regions -> RegionFeatureStore or Oscar's TSV files: streamed, resumable, shared by several processes.

What makes a resumed store equal, bit for bit, to one that was never interrupted: batches depend on a stretch of the
stream alone, whatever of it was done before, and are kept as a whole or not at all. Only photos that have
one size for the region model share a batch, because padding changes what a detector finds.
"""

import json
import time
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..files import clear_leftovers, naming, open_whole, read_json, with_checksum, write_whole
from ..labels.chinese import to_chinese
from ..loading import load_region_model
from ..modeling_regions import RegionModelOutput
from ..openvino_networks import why_in_float32
from ..photos import MAX_PIXELS, PhotoError, open_photo
from ..precision import compute_in, region_dtype
from ..progress import Progress
from ..seen_photos import describe_regions
from .oscar_tsv import export_tsv
from .photo_sources import open_source
from .photo_stream import read_ahead
from .stopping import stopped_politely
from .store import RegionFeatureStore
from .store_folder import EXTRACTION_SETTINGS, LEFTOVERS, SECONDS_PER_SHARD, hash_id

IMAGES_PER_SHARD = 256  # what a killed process has to do again, at most, or what it did in SECONDS_PER_SHARD
BATCH_SIZE = 16
PIXELS_ON_CPU = 16 * 260 * 260  # in one forward, where nobody says how many photos: a batch is lost as a whole
SHARDS_PER_INDEX = 32  # then the index is brought up to date, and the writer forgets what it added
WAITING_BATCHES = 4  # photos of rare sizes wait for others of theirs, at most so many batches of them
PHOTOS_PICTURED = 4


def extract(
    source,
    output,
    model=None,
    format="store",
    language="zh",
    picture=None,
    precision="auto",
    device="cpu",
    flip=False,
    limit_pixels=MAX_PIXELS,
    process_index=0,
    num_processes=1,
    wait_for_everyone=lambda: None,
    **options,
) -> tuple[str, int]:
    """What `mengzi-oscar extract` and `train/extract_features.py` do, from the names of things to a line of result.

    Args:
        source: see `open_source`; or a store, which is written as Oscar's files without looking at a photo.
        model: region model, or a checkpoint that names one; folder or Hub id. Of a store it is asked for names of
            classes that the store does not have; without it the region model that the store names.
        output: folder of the store; with format "tsv-caption" or "tsv-retrieval" the folder of Oscar's files, and the
            store is its subfolder `store`.
        language: of the classes, as the store names them and Oscar's files write them, "zh" or "en".
        picture: PNG of the first photos with what is found in them, drawn before the work starts.
        precision: what the region model computes in, "float32", "bfloat16" or "int8". "auto": what the store was begun
            with, for a new one what the processor is good at (`fast_dtype`).
        wait_for_everyone: returns when every process has called it; called twice.
        options: batch_size, dtype, images_per_shard of `extract_regions`.

    Returns:
        A line to print and the number of photos that could not be read, of all processes; from process 0 only.

    Raises:
        ValueError: one line: a source, region model or store that cannot be used, or that another start writes.
        OSError: names the file that could not be written.
        KeyboardInterrupt, SystemExit: the process was asked to end (Ctrl-C, SIGTERM); what is done is kept.
    """
    if picture is not None:
        from ..demo.pictures import check_picture

        check_picture(picture)
    if is_store(source):
        if picture is not None or flip:
            raise ValueError(f"{source} is a store, which holds no photos: leave out --picture and --flip")
        if process_index > 0:
            return "", 0
        with stopped_politely(lambda: f"{source} is as it was"):
            return write_store(source, Path(output), model, format, language), 0
    check_output(Path(output), format)
    opened = open_source(source)
    region_model, image_processor = load_region_model(model)
    try:
        labels = label_texts(region_model, language)
    except ValueError:
        if format != "store":
            raise
        labels = None
    store_path = Path(output) if format == "store" else Path(output) / "store"
    prepare = partial(prepare_photo, image_processor=image_processor, flip=flip, limit_pixels=limit_pixels)
    if process_index == 0:
        precision = settled_precision(store_path, precision, device)
        ready(region_model, device, precision)
        if picture is not None:
            draw_first(opened, region_model, prepare, picture)
        store_path.mkdir(parents=True, exist_ok=True)
        clear_leftovers(store_path, "lock.*", LEFTOVERS, store_path)
        if is_store(store_path) and "original_size" not in RegionFeatureStore.open(store_path).fields:
            raise ValueError(f"{store_path} was not made by extract, its rows have other fields: use another folder")
        keep_settings(store_path, {"flip": flip, "precision": precision})
    wait_for_everyone()
    if process_index > 0:  # on another kind of machine, perhaps
        precision = settled_precision(store_path, precision, device)
        ready(region_model, device, precision)
    share = {"process_index": process_index, "num_processes": num_processes}
    start = time.perf_counter()
    made_with = {"region_model_name": model, "labels": labels, "precision": precision}
    with stopped_politely(partial(photos_kept, store_path), say=process_index == 0):
        written = extract_regions(opened, region_model, prepare, store_path, **made_with, **share, **options)
        seconds = time.perf_counter() - start
        wait_for_everyone()
        if process_index > 0:
            return "", 0
        errors, errors_path = join_error_logs(store_path, num_processes)
        if not (store_path / "store.json").is_file():
            found = f"none of its {errors:,} photos could be read, see {errors_path}" if errors else "holds no photos"
            raise PhotoError(f"{source}: {found}")
        store = RegionFeatureStore.open(store_path)
        if format != "store":
            write_tsv(store, Path(output), format.removeprefix("tsv-"), labels)
    speed = (
        f"{written:,} in {seconds:.1f} s by this process, {written / seconds:.2f} a second" if written else "none new"
    )
    failed = f"; {errors:,} could not be read, see {errors_path}" if errors else ""
    passed_over = f"; {opened.passed_over}" if opened.passed_over.count else ""
    return f"{output}: {len(store):,} photos ({speed}){failed}{passed_over}", errors


@torch.inference_mode()
def extract_regions(
    source,
    region_model,
    prepare,
    store_path,
    batch_size=None,
    dtype="float16",
    images_per_shard=IMAGES_PER_SHARD,
    region_model_name=None,
    labels=None,
    process_index=0,
    num_processes=1,
    precision=None,
) -> int:
    """Runs a region model over the photos of a source; those that the store holds already are left out.

    Args:
        source: what `open_source` returned. prepare: `prepare_photo` with its settings.
        batch_size: photos in one forward pass. None: 16, on a CPU fewer where they are large for the region model.
        dtype: of the stored features, "float16" or "float32".
        images_per_shard: photos of the stream whose regions go into the store together, if it takes no minute.
        region_model_name: Hub id or folder, labels: texts of its class or tag ids, precision: what it computes in; all
            noted in the store.
        process_index, num_processes: a photo belongs to the process that the hash of its id says, so that two photos
            with one id meet in one process.

    Returns:
        How many photos were written now. Those that could not be stand in `<store>/errors-<process>.jsonl`.
    """
    worker = f"{process_index:05d}"
    settings = dtype, images_per_shard, worker, region_model_name, labels, precision
    writer, written = RegionFeatureStore.writer(store_path, *settings), 0
    before = RegionFeatureStore.open(store_path) if (Path(store_path) / "store.json").is_file() else {}
    report = Report(source, Path(store_path) / f"errors-{worker}.jsonl", process_index, num_processes)
    photos = own_photos(source, process_index, num_processes, report)
    ahead = 2 * (batch_size or BATCH_SIZE)
    rows = {}  # image id -> regions, in the order of the stream
    try:
        for number, first in enumerate(photos, start=1):
            stretch = chain([first], islice(photos, images_per_shard - 1))
            todo, since = left_to_do(stretch, before, rows, report), time.monotonic()
            for batch in batches_of_one_size(prepared(todo, prepare, ahead, report), batch_size, region_model.device):
                if batch := [(photo, inputs) for photo, inputs in batch if photo.image_id in rows]:
                    found = list(regions_of(batch, region_model, dtype, report))
                    report.done(len(found))
                    rows.update({photo.image_id: regions for photo, regions in found})  # as a whole, or not
                if time.monotonic() - since > SECONDS_PER_SHARD:
                    written, since = written + keep(rows, writer), time.monotonic()
            written += keep(rows, writer)
            rows.clear()  # of those that could not be read
            if number % SHARDS_PER_INDEX == 0:
                writer.update_index()
    finally:
        try:
            keep(rows, writer)  # an interruption keeps what is done
        finally:
            report.close()
            writer.close()
    return written


def keep(rows, writer) -> int:
    """Writes what was found as a shard, in the order of the stream. Cut short, it can be called again."""
    found = {image_id: regions for image_id, regions in rows.items() if regions is not None}
    for image_id, regions in found.items():
        if image_id not in writer:
            writer.add(image_id, regions)
    writer.flush()
    for image_id in found:
        rows.pop(image_id, None)
    return len(found)


def photos_kept(store_path) -> str:
    there = (store_path / "store.json").is_file()
    return f"{store_path} keeps {len(RegionFeatureStore.open(store_path)) if there else 0:,} photos"


def own_photos(source, process_index, num_processes, report):
    """This process's share of the stream; an id that came before is reported."""
    seen = SeenIds()
    for photo in source.fetch_photos():
        key = hash_id(photo.image_id)
        if key % num_processes != process_index:
            continue
        if seen.add(key):
            yield photo
        else:
            report.failed(photo, f"{photo.name}: another photo has the id {photo.image_id!r}; rename one of them")


class SeenIds:
    """Which of many 64-bit hashes came before, in eight bytes each."""

    def __init__(self):
        self.sorted, self.recent = np.empty(0, np.uint64), set()

    def add(self, key: int) -> bool:
        """True if it is new."""
        place = self.sorted.searchsorted(np.uint64(key))
        if key in self.recent or (place < len(self.sorted) and self.sorted[place] == key):
            return False
        self.recent.add(key)
        if len(self.recent) == 100_000:
            self.sorted = np.sort(np.append(self.sorted, np.fromiter(self.recent, np.uint64)))
            self.recent = set()
        return True


def left_to_do(photos, before, rows, report):
    """The photos of a stretch that were not in the store before; each gets its place among `rows`.

    Of a stretch that was begun those that are there come along, blank: they hold their places, so that the others share
    their batches with as many photos as if nothing had happened.
    """
    done, begun = [], False
    for photo in photos:
        if photo.image_id in before:
            report.passed_over()
            done.append(photo)
        else:
            rows[photo.image_id], begun = None, True
            yield from (blank(photo, before) for photo in done)
            done = []
            yield photo
    if begun:
        yield from (blank(photo, before) for photo in done)


def blank(photo, store):
    height, width = store[photo.image_id]["original_size"].tolist()
    return photo._replace(fetch=lambda: Image.new("RGB", (width, height)))


def prepare_photo(content, name, image_processor, flip=False, limit_pixels=MAX_PIXELS):
    """The upright photo and what the region model takes, a batch of one.

    Raises:
        ValueError: a photo that cannot be read, or that is too thin for the region model.
    """
    photo = open_photo(content, limit_pixels, name)
    photo = ImageOps.mirror(photo) if flip else photo
    photo.filename = name  # of the mirrored one too: whatever is wrong with it is said of this photo
    return photo, image_processor([photo], return_tensors="pt")


def prepared(photos, prepare, ahead, report):
    """(photo, tensors), in order, made in threads while the model works, at most `ahead` before it needs them."""

    def tensors(content, name):  # the pixels of a large photo take a hundred times as much
        return prepare(content, name)[1]

    for photo, future in read_ahead(photos, tensors, ahead):
        try:
            yield photo, future.result()
        except ValueError as error:
            report.failed(photo, error)


def batches_of_one_size(photos, batch_size=None, device="cpu"):
    """(photo, tensors) -> lists of them with pixels of one shape. Without a size as `extract_regions` says."""

    def full(shape):
        fit = max(1, PIXELS_ON_CPU // (shape[-1] * shape[-2])) if str(device) == "cpu" else BATCH_SIZE
        return batch_size or min(BATCH_SIZE, fit)

    waiting = {}  # shape -> photos
    for photo, inputs in photos:
        shape = inputs["pixel_values"].shape
        waiting.setdefault(shape, []).append((photo, inputs))
        if len(waiting[shape]) == full(shape):
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) == WAITING_BATCHES * (batch_size or BATCH_SIZE):
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def regions_of(batch, region_model, dtype, report):
    """(photo, tensors) of one shape -> (photo, dict of its regions without padding), as a store takes them."""
    inputs = {name: torch.cat([inputs[name] for _, inputs in batch]) for name in batch[0][1]}
    output = find_regions(inputs, region_model)
    for row, (photo, _) in enumerate(batch):
        regions = unpad_regions(output, row)
        regions["region_features"] = regions["region_features"].to(getattr(torch, dtype))
        if not regions["region_features"].isfinite().all():
            report.failed(photo, f"{photo.name}: a feature is not finite in {dtype}; try float32")
            continue
        yield photo, regions | {"original_size": inputs["original_sizes"][row]}


def find_regions(inputs, region_model) -> RegionModelOutput:
    """The region model's output, on the CPU."""
    inputs = {name: values.to(region_model.device) for name, values in inputs.items()}
    return RegionModelOutput(**{name: values.cpu() for name, values in region_model(**inputs).items()})


def unpad_regions(output, row) -> dict:
    """One image of a `RegionModelOutput` as a dict, padding regions and empty tags cut off."""
    valid = output.region_attention_mask[row].bool()
    per_region = ("region_features", "boxes", "scores", "class_ids", "attribute_ids", "attribute_scores")
    regions = {name: output[name][row][valid] for name in per_region if output.get(name) is not None}
    if output.get("tag_ids") is not None:
        tagged = output.tag_ids[row] > 0
        regions |= {"tag_ids": output.tag_ids[row][tagged], "tag_scores": output.tag_scores[row][tagged]}
    return regions


class Report:
    """Progress of one process on the screen (process 0 speaks for all), and its list of unreadable photos on disk."""

    def __init__(self, source, errors_path, process_index, num_processes):
        self.errors_path, self.num_processes = errors_path, num_processes
        self.progress = Progress(lambda: source.total, shown=process_index == 0, smoothing=0).begin()
        errors_path.unlink(missing_ok=True)  # unreadable photos are tried again by every run

    def done(self, count=1):
        self.progress.update(count * self.num_processes)  # the others are about as far

    def passed_over(self):
        self.progress.passed_over(self.num_processes)

    def failed(self, photo, error):
        record = {"image_id": photo.image_id, "name": photo.name, "error": str(error)}
        with naming(self.errors_path), open(self.errors_path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.done()

    def close(self):
        self.progress.close()


def ready(region_model, device, precision):
    """To the device in the precision and the memory layout that it computes fastest in; in 8 bits to the CPU.

    Raises:
        ValueError: it cannot compute in 8 bits here; what it lacks.
    """
    if precision == "int8":
        if reason := why_in_float32(region_model):
            raise ValueError(f"{reason}; or leave out --precision int8")
        compute_in("int8", region_model.eval())
        return
    if hasattr(region_model, "fold_norms"):
        region_model.fold_norms()  # before rounding, see VinVLModel
    if hasattr(region_model, "fold_batch_norms") and precision == "float32":  # rounded they would be others
        region_model.fold_batch_norms()
    region_model.eval().to(device, dtype=getattr(torch, precision), memory_format=torch.channels_last)


def label_texts(region_model, language) -> list[str]:
    """Text of every class or tag id, the first standing for none.

    Raises:
        ValueError: the region model has no words, or none in this language.
    """
    config = region_model.config
    if getattr(config, "tag_labels", None):
        return ["", *config.tag_labels]
    names = config.id2label if hasattr(config, "num_classes") else {}
    if not names:
        raise ValueError("the region model names no classes, which Oscar's TSV files need: use --format store")
    texts = [names.get(index, "") for index in range(max(names) + 1)]
    return texts if language == "en" else [to_chinese(text, config.labels_zh) for text in texts]


def settled_precision(store_path, precision, device) -> str:
    """What "auto" means: a store is continued in the precision it was started with."""
    begun = store_path / "extraction.json"
    if precision == "auto" and begun.is_file():
        return read_json(begun, names=EXTRACTION_SETTINGS).get("precision", "float32")
    return str(region_dtype(precision, device)).removeprefix("torch.")


def keep_settings(store_path, settings):
    """Notes what a store is made with; going on with something else is an error, as its rows would not match.

    Raises:
        ValueError
    """
    path = store_path / "extraction.json"
    if not path.is_file():
        write_whole(path, with_checksum(settings))
    elif (before := read_json(path, names=EXTRACTION_SETTINGS)) != settings:
        raise ValueError(f"{store_path} was begun with {before}, not {settings}: use another folder")


def join_error_logs(store_path, num_processes) -> tuple[int, Path]:
    """The lists of the processes as one errors.jsonl, or none; the number of its lines, and its path."""
    path, count = store_path / "errors.jsonl", 0
    with open_whole(path) as joined:
        for log in (store_path / f"errors-{index:05d}.jsonl" for index in range(num_processes)):
            if log.is_file():
                with open(log, "rb") as file:
                    count += sum(joined.write(line) > 0 for line in file)
    for log in store_path.glob("errors-*.jsonl"):  # also those of killed runs with more processes
        log.unlink()
    if count == 0:
        path.unlink()
    return count, path


def is_store(path) -> bool:
    return isinstance(path, str | Path) and (Path(path) / "store.json").is_file()


def check_output(folder, format):
    """A store in the place of Oscar's files, or the other way round, is work that would be done again beside it.

    Raises:
        ValueError
    """
    if format != "store" and is_store(folder):
        raise ValueError(
            f"{folder} is a store: give it as the source to write its photos as Oscar's files, to another folder: "
            f"mengzi-oscar extract {folder} --format {format} --output …"
        )
    if format == "store" and is_store(folder / "store"):
        raise ValueError(f"{folder} holds Oscar's files and their store, {folder / 'store'}: name that as the --output")


def write_store(source, folder, model, format, language) -> str:
    """A store as Oscar's files; the line to print."""
    if format == "store":
        raise ValueError(f"{source} is a store already; --format tsv-caption or tsv-retrieval writes Oscar's files")
    check_output(folder, format)
    layout = format.removeprefix("tsv-")
    for path in tsv_paths(folder, layout):
        if path.exists():
            raise ValueError(f"{path} is there already: delete it to write it again, or name another --output")
    store = RegionFeatureStore.open(source)
    write_tsv(store, folder, layout, store_labels(store, language, model))
    return f"{folder}: {len(store):,} photos, written from the store {source}; none was processed again"


def store_labels(store, language, model=None) -> list[str]:
    """Texts of the ids in a store: those that it keeps, or its region model's where it keeps none in this language."""
    if store.labels and language == "zh":
        return [to_chinese(text) for text in store.labels]
    if store.labels and all(text.isascii() for text in store.labels):
        return store.labels
    if not (model or store.region_model):
        raise ValueError(f"{store.path} has no class names in {language!r} and names no region model: give --model")
    return label_texts(load_region_model(model or store.region_model)[0], language)


def tsv_paths(folder, layout) -> tuple[Path, Path]:
    """Features and objects: `<folder>.feature.tsv` and `.label.tsv`, or features.tsv and predictions.tsv."""
    names = ("features.tsv", "predictions.tsv")
    if layout == "caption":
        names = tuple(f"{folder.resolve().name}.{what}.tsv" for what in ("feature", "label"))
    return tuple(folder / name for name in names)


def write_tsv(store, folder, layout, labels):
    """Oscar's files, for retrieval with imageid2idx.json."""
    features, objects = tsv_paths(folder, layout)
    export_tsv(store, features, layout, label_tsv=objects, labels=labels)


@torch.inference_mode()
def draw_first(source, region_model, prepare, path):
    """A PNG of the first photos that can be read, with what the region model finds, in both languages.

    Raises:
        PhotoError: none could be read.
    """
    from ..demo.pictures import draw_regions, save_picture

    drawn = []
    for photo in source.fetch_photos():
        try:
            image, inputs = prepare(photo.fetch(), photo.name)
        except ValueError:  # listed when its turn comes
            continue
        output = find_regions(inputs, region_model)
        if hasattr(region_model, "describe"):
            regions, english = (region_model.describe(output, language)[0] for language in ("zh", "en"))
            of_the_photo = region_model.tags(output)[0] if output.tag_ids is not None else []
            drawn.append((image, photo.image_id, regions, english, of_the_photo))
        else:
            [regions], [tags] = describe_regions(region_model, output), region_model.tags(output)
            drawn.append((image, photo.image_id, regions, None, tags))
        if len(drawn) == PHOTOS_PICTURED:
            break
    if not drawn:
        raise PhotoError(f"--picture {path}: none of the photos can be read")
    save_picture(draw_regions(drawn), path)
