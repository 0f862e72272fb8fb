"""Photos whose regions lie in a store: what a captioner needs of each, regions and the words of its tags."""

from collections.abc import Iterator
from types import SimpleNamespace

import torch

from ..loading import CheckpointError, region_model_classes, region_model_folder
from ..seen_photos import SeenPhoto
from .extraction import label_texts
from .photo_sources import PassedOver, Photo


class StoredPhotos:
    """The photos of a store as a source, in the order they were written; what is fetched is their row."""

    def __init__(self, store):
        self.store, self.total, self.passed_over = store, len(store), PassedOver()

    def fetch_photos(self) -> Iterator[Photo]:
        for image_id in self.store:
            yield Photo(image_id, image_id, lambda image_id=image_id: self.store[image_id])

    def read(self, photos, labels) -> Iterator[tuple[Photo, SeenPhoto]]:
        """(photo, what a region model would have found in it), with tags where there are `labels`."""
        for photo in photos:
            yield photo, stored_photo(photo.fetch(), labels, f"{self.store.path}, image {photo.image_id!r}")

    def labels_for(self, checkpoint) -> list[str] | None:
        """The words of the store's tag or class ids; where it does not say them those of a checkpoint's region model,
        None where neither knows.

        Raises:
            CheckpointError: the store's tags are those of another region model.
        """
        try:
            own = region_labels(checkpoint)
        except ValueError:  # it names no region model, or that has no words
            own = None
        said = self.store.labels
        if said and own and "tag_ids" in self.store.fields and said != own:
            raise CheckpointError(
                f"{self.store.path}: its {len(said) - 1:,} tags are of another region model than that of "
                f"{checkpoint}; extract the photos with --model {checkpoint}"
            )
        return said or own

    def check_width(self, config) -> None:
        """
        Raises:
            CheckpointError: a captioner of other regions.
        """
        if self.store.feature_dim != config.img_feature_dim:
            raise CheckpointError(
                f"{self.store.path}: its regions are {self.store.feature_dim:,} wide, {config.name_or_path} takes "
                f"{config.img_feature_dim:,}; extract the photos with --model {config.name_or_path}"
            )


def region_labels(checkpoint) -> list[str]:
    """Words of a checkpoint's region model, from its config alone: of tag or class ids, the first standing for none.

    Raises:
        ValueError: there is no region model, or it names none.
    """
    folder = region_model_folder(checkpoint)
    model_class, _ = region_model_classes(folder.json("config.json")["model_type"])
    return label_texts(SimpleNamespace(config=folder.config(model_class.config_class)), "zh")


def stored_photo(row, labels, name) -> SeenPhoto:
    """A row of a store as a pipeline without a region model takes it. labels: None = without tags."""
    features = torch.from_numpy(row["region_features"])
    regions = [{"box": box} for box in row["boxes"].tolist()] if "boxes" in row else [{} for _ in features]
    tags = tag_words(row, labels, name) if labels else []
    size = tuple(row["original_size"].tolist()[::-1]) if "original_size" in row else None
    return SeenPhoto(size, features, tags, regions, name, region_model=None)


def tag_words(regions, labels, name="an image") -> list[str]:
    """Names of an image's tags, as a store's row holds them: of the whole image if there are any, else of its regions.

    Doubles stay, as Oscar's label files have them. `labels[0]` stands for none.

    Raises:
        ValueError: a tag that has no name.
    """
    ids = regions["tag_ids"] if "tag_ids" in regions else regions.get("class_ids", ())
    try:
        return [labels[number] for number in map(int, ids) if number > 0]
    except IndexError:
        raise ValueError(f"{name}: has the tag {max(ids)}, but only {len(labels) - 1:,} have names") from None
