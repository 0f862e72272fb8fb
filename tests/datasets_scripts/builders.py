"""The builders of the tests: their fixtures, arguments and rows, and how they are built."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from datasets_scripts.aic_icc import AicIcc
from datasets_scripts.coco_caption import CocoCaption
from datasets_scripts.coco_ir import CocoIr
from datasets_scripts.flickr8k_cn import Flickr8kCN
from datasets_scripts.flickr30k import Flickr30k
from datasets_scripts.gqa import Gqa
from datasets_scripts.image_captions import ImageCaptions
from datasets_scripts.nlvr2 import Nlvr2
from datasets_scripts.pretraining_corpus import PretrainingCorpus
from datasets_scripts.vg_qa import VgQa
from datasets_scripts.vqa import Vqa

FIXTURES = Path(__file__).parent / "fixtures"


OWN_PHOTOS = [f"images/{name}" for name in ("cat.jpg", "dog.jpg", "bird.jpg", "trip/IMG_0001.png", "trip/IMG_0002.png")]
COCO_PHOTOS = [
    *(f"train2014/COCO_train2014_{number:012d}.jpg" for number in (9, 25, 30)),
    *(f"val2014/COCO_val2014_{number:012d}.jpg" for number in (42, 73, 139)),
]
AIC = FIXTURES / "aic_icc"
AIC_TRAIN = "ai_challenger_caption_train_20170902/caption_train_annotations_20170902.json"
AIC_VALIDATION = "ai_challenger_caption_validation_20170910/caption_validation_annotations_20170910.json"
AIC_PHOTOS = [
    f"{file.rpartition('/')[0]}/{file.rpartition('/')[2].replace('annotations', 'images')[:-5]}/{row['image_id']}"
    for file in (AIC_TRAIN, AIC_VALIDATION)
    for row in json.loads((AIC / file).read_text("utf-8"))
]
FLICKR8K = FIXTURES / "flickr8k_cn" / "flickr8kzhc.caption.txt"
FLICKR8K_PHOTOS = sorted({f"images/{line.partition('#')[0]}" for line in FLICKR8K.read_text("utf-8").splitlines()})
FLICKR_PHOTOS = [f"flickr30k-images/{number}.jpg" for number in range(1000000001, 1000000006)]
VQA_PHOTOS = [
    *(f"train2014/COCO_train2014_{number:012d}.jpg" for number in (458752, 262146)),
    "val2014/COCO_val2014_000000262148.jpg",
    "test2015/COCO_test2015_000000000001.jpg",
]

# fixture (up to the hyphen) -> builder, its arguments, photos to generate, rows of every split
BUILDERS = {
    "image_captions": (ImageCaptions, {}, OWN_PHOTOS, {"train": 3, "validation": 1}),
    "coco_caption-coco_cn": (
        CocoCaption,
        {"config_name": "coco_cn"},
        COCO_PHOTOS,
        {"train": 2, "validation": 1, "test": 1, "extension": 2},
    ),
    "coco_caption-official": (CocoCaption, {"config_name": "official"}, COCO_PHOTOS, {"train": 2, "validation": 2}),
    "coco_caption-karpathy": (
        CocoCaption,
        {"config_name": "karpathy"},
        COCO_PHOTOS,
        {"train": 2, "validation": 1, "test": 1},
    ),
    "coco_caption-oscar": (CocoCaption, {"config_name": "oscar"}, [], {"train": 3, "test": 2}),
    "aic_icc": (AicIcc, {}, AIC_PHOTOS, {"train": 2, "validation": 3, "retrieval_1k": 3}),
    "flickr8k_cn": (Flickr8kCN, {}, FLICKR8K_PHOTOS, {"train": 2, "validation": 1, "test": 2}),
    "flickr30k-cn": (Flickr30k, {"config_name": "cn"}, FLICKR_PHOTOS, {"train": 2, "validation": 1, "test": 1}),
    "flickr30k-cna": (Flickr30k, {"config_name": "cna"}, FLICKR_PHOTOS, {"train": 2, "validation": 1, "test": 1}),
    "flickr30k-en": (Flickr30k, {"config_name": "en"}, FLICKR_PHOTOS, {"train": 2, "validation": 1, "test": 1}),
    "coco_ir": (CocoIr, {}, [], {"train": 1, "minival": 3, "test": 3, "test_1k": 2}),
    "vqa-oscar": (Vqa, {"config_name": "oscar"}, [], {"train": 2, "validation": 1, "vg": 1, "test": 1}),
    "vqa-official": (Vqa, {"config_name": "official"}, VQA_PHOTOS, {"train": 2, "validation": 1, "test": 1}),
    "gqa-oscar_balanced": (Gqa, {"config_name": "oscar_balanced"}, [], {"train": 2, "validation": 1, "testdev": 1}),
    "gqa-oscar_all": (Gqa, {"config_name": "oscar_all"}, [], {"validation": 1, "submission": 2}),
    "gqa-official_balanced": (
        Gqa,
        {"config_name": "official_balanced"},
        ["images/2354786.jpg", "images/2354787.jpg"],
        {"train": 1, "validation": 1},
    ),
    "gqa-official_all": (Gqa, {"config_name": "official_all"}, [], {"train": 2, "submission": 1}),
    "nlvr2": (Nlvr2, {}, [], {"train": 2, "validation": 1}),
    "vg_qa": (VgQa, {}, ["VG_100K_2/1.jpg", "VG_100K/2.jpg", "VG_100K/3.jpg"], {"train": 3}),
    "pretraining_corpus": (PretrainingCorpus, {}, [], {"train": 5}),
    "pretraining_corpus-cc": (PretrainingCorpus, {"yaml_file": "coco_flickr30k_gqa_cc.yaml"}, [], {"train": 4}),
}


def copy_files(name, into):
    """A copy of a fixture with generated photos."""
    fixture, photos = name.partition("-")[0], BUILDERS[name][2]
    folder = into / name
    shutil.copytree(FIXTURES / fixture, folder)
    for photo in photos:
        (folder / photo).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), "green").save(folder / photo)
    return folder


def builder_of(name, folder, **changes):
    cls, arguments, *_ = BUILDERS[name]
    cache = {"cache_dir": str(folder.parent / "cache")}
    return cls(data_dir=str(folder), **(cache | arguments | changes))


def build(name, folder, **changes):
    builder = builder_of(name, folder, **changes)
    builder.download_and_prepare()
    return builder.as_dataset()


def edit(path, old, new):
    data = path.read_bytes()
    old, new = (text.encode() if isinstance(text, str) else text for text in (old, new))
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def without_image(row):
    return {key: value for key, value in row.items() if key != "image"}


class Dangerous:
    def __reduce__(self):
        return print, ("called",)


def names_of(dataset, row):
    return [dataset.features["labels"].feature.int2str(label) for label in row["labels"]]


def wrong(name, folder, file, old, new, message, **changes):
    edit(folder / file, old, new)
    with pytest.raises(ValueError, match=f"{Path(file).name}, {message}"):
        build(name, folder, **changes)
