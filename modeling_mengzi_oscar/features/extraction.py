"""Photos -> regions -> RegionFeatureStore or Oscar's TSV files: streamed, resumable, shared by several processes.

What makes a resumed store equal, bit for bit, to one that was never interrupted: a shard is made of one stretch of the
stream, in batches that depend on that stretch alone, and is on disk as a whole or not at all. Only photos that have
one size for the region model share a batch, because padding changes what a detector finds.
"""

import json
import signal
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from tqdm.auto import tqdm

from ..files import clear_leftovers, naming, open_whole, read_json, with_checksum, write_whole
from ..labels.chinese import to_chinese
from ..modeling_regions import RegionModelOutput
from ..photos import MAX_PIXELS, PhotoError, open_photo
from ..pipeline_mengzi_oscar import describe_regions, load_region_model
from .oscar_tsv import export_tsv
from .photo_sources import open_source
from .photo_stream import read_ahead
from .store import RegionFeatureStore
from .store_folder import EXTRACTION_SETTINGS, LEFTOVERS, hash_id

IMAGES_PER_SHARD = 256  # what a killed process has to do again, at most
SHARDS_PER_INDEX = 32  # then the index is brought up to date, and the writer forgets what it added
TERMINATED = 128 + signal.SIGTERM  # status of a program that was asked to end
WAITING_BATCHES = 4  # photos of rare sizes wait for others of theirs, at most so many batches of them
PHOTOS_PICTURED = 4


def extract(
    source,
    output,
    model,
    format="store",
    language="zh",
    picture=None,
    precision="float32",
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
        source: see `open_source`. model: region model, or a checkpoint that names one; folder or Hub id.
        output: folder of the store; with format "tsv-caption" or "tsv-retrieval" the folder of Oscar's files, and the
            store is its subfolder `store`.
        language: of the classes, as the store names them and Oscar's files write them, "zh" or "en".
        picture: PNG of the first photos with what is found in them, drawn before the work starts.
        precision: what the region model computes in, "float32" or "bfloat16".
        wait_for_everyone: returns when every process has called it; called twice.
        options: batch_size, dtype, images_per_shard of `extract_regions`.

    Returns:
        A line to print and the number of photos that could not be read, of all processes; from process 0 only.

    Raises:
        ValueError: one line: a source, region model or store that cannot be used, or that another start writes.
        OSError: names the file that could not be written.
        SystemExit: the process was asked to end (SIGTERM); what is done is kept.
    """
    if picture is not None:
        from ..demo.pictures import check_picture

        check_picture(picture)
    opened = open_source(source)
    region_model, image_processor = load_region_model(model)
    ready(region_model, device, precision)
    try:
        labels = label_texts(region_model, language)
    except ValueError:
        if format != "store":
            raise
        labels = None
    store_path = Path(output) if format == "store" else Path(output) / "store"
    prepare = partial(prepare_photo, image_processor=image_processor, flip=flip, limit_pixels=limit_pixels)
    if picture is not None and process_index == 0:
        draw_first(opened, region_model, prepare, picture)
    if process_index == 0:
        store_path.mkdir(parents=True, exist_ok=True)
        clear_leftovers(store_path, "lock.*", LEFTOVERS, store_path)
        keep_settings(store_path, {"flip": flip, "precision": precision})
    wait_for_everyone()
    share = {"process_index": process_index, "num_processes": num_processes}
    start = time.perf_counter()
    made_with = {"region_model_name": model, "labels": labels}
    with ended_by_sigterm():
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


@contextmanager
def ended_by_sigterm():
    """SIGTERM ends the block like Ctrl-C does: with an exception, so that what is done is written."""
    if threading.current_thread() is not threading.main_thread():  # only there a signal can be caught
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@torch.inference_mode()
def extract_regions(
    source,
    region_model,
    prepare,
    store_path,
    batch_size=16,
    dtype="float16",
    images_per_shard=IMAGES_PER_SHARD,
    region_model_name=None,
    labels=None,
    process_index=0,
    num_processes=1,
) -> int:
    """Runs a region model over the photos of a source; those that the store holds already are left out.

    Args:
        source: what `open_source` returned. prepare: `prepare_photo` with its settings.
        dtype: of the stored features, "float16" or "float32".
        images_per_shard: photos of the stream whose regions go into the store together.
        region_model_name: Hub id or folder, labels: texts of its class or tag ids; noted in the store.
        process_index, num_processes: a photo belongs to the process that the hash of its id says, so that two photos
            with one id meet in one process.

    Returns:
        How many photos were written now. Those that could not be stand in `<store>/errors-<process>.jsonl`.
    """
    worker = f"{process_index:05d}"
    settings = dtype, images_per_shard, worker, region_model_name, labels
    writer, written = RegionFeatureStore.writer(store_path, *settings), 0
    report = Report(source, Path(store_path) / f"errors-{worker}.jsonl", process_index, num_processes)
    photos = own_photos(source, process_index, num_processes, report)
    try:
        for number, first in enumerate(photos, start=1):
            stretch = chain([first], islice(photos, images_per_shard - 1))
            rows = {}  # image id -> regions, in the order of the stream
            try:
                todo = left_to_do(stretch, writer, rows, report)
                for batch in batches_of_one_size(prepared(todo, prepare, 2 * batch_size, report), batch_size):
                    for photo, regions in regions_of(batch, region_model, dtype, report):
                        rows[photo.image_id] = regions
            finally:  # an interruption keeps what is done
                for image_id, regions in rows.items():
                    if regions is not None:
                        writer.add(image_id, regions)
                        written += 1
                writer.flush()
            if number % SHARDS_PER_INDEX == 0:
                writer.update_index()
    finally:
        report.close()
        writer.close()
    return written


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


def left_to_do(photos, writer, rows, report):
    """The photos that are not in the store; each gets its place among `rows`."""
    for photo in photos:
        if photo.image_id in writer:
            report.passed_over()
        else:
            rows[photo.image_id] = None
            yield photo


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


def batches_of_one_size(photos, batch_size):
    """(photo, tensors) -> lists of them with pixels of one shape."""
    waiting = {}  # shape -> photos
    for photo, inputs in photos:
        shape = inputs["pixel_values"].shape
        waiting.setdefault(shape, []).append((photo, inputs))
        if len(waiting[shape]) == batch_size:
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) == WAITING_BATCHES * batch_size:
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
        report.found()
        yield photo, regions | {"original_size": inputs["original_sizes"][row]}


def find_regions(inputs, region_model) -> RegionModelOutput:
    """The region model's output, on the CPU."""
    inputs = {name: values.to(region_model.device) for name, values in inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(region_model.dtype)
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
        self.source, self.errors_path, self.num_processes = source, errors_path, num_processes
        self.bar = tqdm(
            total=self.total(), unit="photo", unit_scale=num_processes, smoothing=0, disable=process_index > 0
        )
        errors_path.unlink(missing_ok=True)  # unreadable photos are tried again by every run

    def total(self):
        return self.source.total and self.source.total / self.num_processes

    def found(self):
        self.bar.total = self.total()  # of tar shards it is an estimate that gets better
        self.bar.update()

    def passed_over(self):
        """In the store already: no part of the speed."""
        if not self.bar.disable:  # a bar that is not shown has no beginning
            self.bar.initial += 1
            self.bar.n += 1
            self.bar.update(0)

    def failed(self, photo, error):
        record = {"image_id": photo.image_id, "name": photo.name, "error": str(error)}
        with naming(self.errors_path), open(self.errors_path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.bar.update()

    def close(self):
        self.bar.close()


def ready(region_model, device, precision):
    """To the device in the precision and the memory layout that it computes fastest in."""
    if hasattr(region_model, "fold_norms"):
        region_model.fold_norms()  # before rounding, see VinVLModel
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


def write_tsv(store, folder, layout, labels):
    """Oscar's files: `<folder>.feature.tsv` and `.label.tsv`, or features.tsv, predictions.tsv and imageid2idx.json."""
    names = ("features.tsv", "predictions.tsv")
    if layout == "caption":
        names = tuple(f"{folder.resolve().name}.{what}.tsv" for what in ("feature", "label"))
    features, objects = (folder / name for name in names)
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
            drawn.append((image, photo.image_id, regions, english, []))
        else:
            [regions], [tags] = describe_regions(region_model, output), region_model.tags(output)
            drawn.append((image, photo.image_id, regions, None, tags))
        if len(drawn) == PHOTOS_PICTURED:
            break
    if not drawn:
        raise PhotoError(f"--picture {path}: none of the photos can be read")
    save_picture(draw_regions(drawn), path)
