"""Photos -> regions -> RegionFeatureStore: resumable, several processes may share the work."""

import json
from pathlib import Path

import torch
from PIL import ImageOps
from tqdm.auto import tqdm
from transformers.utils import logging

from .photos import PhotoError, open_photo
from .region_store import RegionFeatureStore

logger = logging.get_logger(__name__)


@torch.inference_mode()
def extract_regions(
    photos,
    region_model,
    image_processor,
    store_path,
    batch_size=16,
    flip=False,
    dtype="float16",
    region_model_name=None,
    process_index=0,
    num_processes=1,
) -> int:
    """Runs a region model over photos and writes what it finds; photos that the store holds already are left out.

    Args:
        photos: {image id: path}.
        flip: mirror every photo (left-right), as augmentation; use a store of its own.
        dtype: of the stored features, "float16" or "float32".
        region_model_name: Hub id or folder, noted in the store.
        process_index, num_processes: this process takes every `num_processes`-th photo.

    Returns:
        How many photos this process could not read; each stands in `<store>/errors-<process>.jsonl` with the reason.
    """
    worker = f"{process_index:05d}"
    with RegionFeatureStore.writer(store_path, dtype=dtype, worker=worker, region_model=region_model_name) as writer:
        mine = list(photos.items())[process_index::num_processes]
        todo = [(image_id, path) for image_id, path in mine if image_id not in writer]
        progress = tqdm(total=len(mine), initial=len(mine) - len(todo), unit="photo", disable=process_index > 0)
        errors_path = Path(store_path) / f"errors-{worker}.jsonl"
        errors_path.unlink(missing_ok=True)
        errors = 0
        for start in range(0, len(todo), batch_size):
            images = {}
            for image_id, path in todo[start : start + batch_size]:
                try:
                    image = open_photo(path)
                    images[image_id] = ImageOps.mirror(image) if flip else image
                except PhotoError as error:
                    errors += 1
                    with errors_path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"image_id": image_id, "error": str(error)}, ensure_ascii=False) + "\n")
            for image_id, regions in regions_of(images, region_model, image_processor):
                writer.add(image_id, regions)
            progress.update(min(batch_size, len(todo) - start))
        progress.close()
    if errors:
        logger.warning(f"{errors} of {len(mine)} photos could not be read, see {errors_path}")
    return errors


def regions_of(images, region_model, image_processor):
    """{image id: RGB image} -> (image id, dict of one image's regions without padding), as a store takes them."""
    if not images:
        return
    inputs = image_processor(list(images.values()), return_tensors="pt").to(region_model.device)
    output = region_model(**inputs)
    for row, image_id in enumerate(images):
        regions = unpad_regions(output, row)
        regions["original_size"] = inputs["original_sizes"][row]
        yield image_id, regions


def unpad_regions(output, row) -> dict:
    """One image of a `RegionModelOutput` as a dict, padding regions and empty tags cut off."""
    valid = output.region_attention_mask[row].bool()
    per_region = ("region_features", "boxes", "scores", "class_ids", "attribute_ids", "attribute_scores")
    regions = {name: output[name][row][valid] for name in per_region if output.get(name) is not None}
    if output.get("tag_ids") is not None:
        tagged = output.tag_ids[row] > 0
        regions |= {"tag_ids": output.tag_ids[row][tagged], "tag_scores": output.tag_scores[row][tagged]}
    return regions
