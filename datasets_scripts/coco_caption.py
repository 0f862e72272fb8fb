"""Captions of COCO: Chinese ones written by people (COCO-CN), Chinese translations, and the English originals.

Sources and licences:
* COCO: Lin et al. 2014, Chen et al. 2015; annotations CC BY 4.0, the photos belong to their Flickr authors.
* COCO-CN: Li et al., "COCO-CN for Cross-Lingual Image Tagging, Captioning and Retrieval", IEEE Transactions on
  Multimedia 2019; https://github.com/li-xirong/coco-cn, MIT.
* Mengzi-Oscar was trained on a Chinese translation of all captions that was not published. Whoever has one lays it out
  as Oscar's `coco_caption` and takes "oscar".
* Splits of Karpathy and Fei-Fei (2015): dataset_coco.json of caption_datasets.zip.

Configurations and their layout. Photos are in train2014/ and val2014/ (also below images/), or nowhere.

"coco_cn"   coco-cn_train.txt coco-cn_val.txt coco-cn_test.txt      one `COCO_val2014_000000000042` a line
            imageid.human-written-caption.txt                       `COCO_..#0 TAB sentence`
            imageid.manually-translated-caption.txt                 the same, of the test split (optional)
            imageid.machine-translated-caption.bosonseg.txt         the same, by Baidu, segmented (optional)
            imageid.human-written-tags.txt                          `COCO_.. tag tag ..` (optional)
            coco-cn_ext.icap2020.txt                                `COCO_..#0 TAB sentence` of more photos: the split
                                                                    "extension" (optional, or alone)
            in `data_dir` or in coco-cn-version1805v1.1/ of the archive
"official"  annotations/captions_train2014.json captions_val2014.json, or these in `data_dir`: {"images": [..],
            "annotations": [{"image_id": 42, "id": 7, "caption": ".."}]}; the splits are those of the files
"karpathy"  dataset_coco.json: train (with restval) 113,287, validation 5,000, test 5,000
"oscar"     train.yaml val.yaml test.yaml, each naming caption: a JSON list of {"image_id", "id", "caption"}, and label:
            a TSV of `image id TAB [{"class": ..}, ..]`, whose rows say which images there are; further test sets in
            test_NAME.yaml: the split "test_NAME"
"""

import os
import re

import datasets

from .reading import (
    SENTENCES,
    FilesConfig,
    SplitsBuilder,
    find,
    find_photos,
    get,
    json_items,
    lines,
    read_karpathy,
    read_sentences,
    read_splits,
    read_yaml,
    require,
    say_photos,
    say_splits,
    sentence,
    tsv_rows,
)

TRAIN, VALIDATION, TEST = datasets.Split.TRAIN, datasets.Split.VALIDATION, datasets.Split.TEST
_CN = {TRAIN: "coco-cn_train.txt", VALIDATION: "coco-cn_val.txt", TEST: "coco-cn_test.txt"}
_WRITTEN, _EXTENSION = "imageid.human-written-caption.txt", "coco-cn_ext.icap2020.txt"
_TRANSLATED = "imageid.manually-translated-caption.txt"
_MACHINE = "imageid.machine-translated-caption.bosonseg.txt"
_TAGS = "imageid.human-written-tags.txt"
_OFFICIAL = {TRAIN: "captions_train2014.json", VALIDATION: "captions_val2014.json"}
_YAML = {TRAIN: "train.yaml", VALIDATION: "val.yaml", TEST: "test.yaml"}
_SOURCE = "docs/data.md says where to get it"


class CocoCaption(SplitsBuilder):
    """One row per photo: `CocoCaption(config_name="coco_cn", data_dir=...)`, then as any builder of `datasets`.

    Raises:
        FileNotFoundError: the configuration's files are missing.
        ValueError: names file and row or item of what is wrong: an empty sentence, a photo that is not there or not in
            the split, a sentence number or photo twice, broken UTF-8 or JSON.
    """

    left_out = ""  # what a configuration has to say of itself

    BUILDER_CONFIGS = [
        FilesConfig("coco_cn", description="Chinese, written and translated by people"),
        FilesConfig("official", description="English, COCO's own annotation files"),
        FilesConfig("karpathy", description="English, the usual splits"),
        FilesConfig("oscar", description="any language, Oscar's yaml, JSON and TSV files"),
    ]

    def find_files(self, data_dir, config_name):
        finders = {"coco_cn": _find_cn, "official": _find_official, "karpathy": _find_karpathy, "oscar": _find_oscar}
        return finders[config_name](data_dir)

    def _info(self):
        features = {"image_id": datasets.Value("string"), "image": datasets.Image(), "captions": SENTENCES}
        if self.config.name == "coco_cn":
            features |= {"translated": SENTENCES, "machine": SENTENCES, "tags": SENTENCES}
        return datasets.DatasetInfo(
            description=__doc__,
            features=datasets.Features(features),
            homepage="https://github.com/li-xirong/coco-cn"
            if self.config.name == "coco_cn"
            else "https://cocodataset.org",
            license="Photos: rights with the Flickr users. Sentences: CC BY 4.0 (COCO), MIT (COCO-CN).",
        )

    def read(self):
        folders = ("train2014", "val2014", "images/train2014", "images/val2014")
        photos = find_photos(self.config.data_dir, *folders)
        read = {"coco_cn": self.coco_cn, "official": self.official, "karpathy": self.karpathy, "oscar": self.oscar}
        splits = {split: rows for split, rows in read[self.config.name](photos).items() if rows}
        empty = sum(not row["captions"] for rows in splits.values() for row in rows)
        used = {row["image_id"] for rows in splits.values() for row in rows}
        self.report(
            f"COCO captions, {self.config.name}: {say_splits(splits)}; {empty:,} of the photos have none.\n"
            f"Left out: {say_photos(photos, used)}{self.left_out}."
        )
        return splits

    def coco_cn(self, photos):
        files, splits, written = self.files, {}, {}
        machine, translated, tags = {}, {}, {}
        if _WRITTEN in files:
            splits = read_splits({split: files[name] for split, name in _CN.items()}, row=self.row)
            known = {image_id for image_ids in splits.values() for image_id in image_ids}
            written, _ = read_sentences(files[_WRITTEN], known, row=self.row)
            if _TRANSLATED in files:
                translated, _ = read_sentences(files[_TRANSLATED], known, row=self.row)
            if _MACHINE in files:
                machine, _ = read_sentences(files[_MACHINE], known, row=self.row, change=lambda s: "".join(s.split()))
            if _TAGS in files:
                tags = _read_tags(files[_TAGS], known, self.row)
        rows = {}
        for split, image_ids in splits.items():
            path = files[_CN[split]]
            captions = {image_id: (path, written.get(image_id, [])) for image_id in image_ids}
            rows[split] = self.caption_rows(captions, photos, translated=translated, machine=machine, tags=tags)
        if _EXTENSION in files:
            path = files[_EXTENSION]
            extension, _ = read_sentences(path, None, row=self.row)
            known = extension.keys() & {image_id for image_ids in splits.values() for image_id in image_ids}
            self.left_out = f"; {len(known):,} photos of the extension that are in an official split"
            captions = {i: (path, sentences) for i, sentences in extension.items() if i not in known}
            rows[datasets.NamedSplit("extension")] = self.caption_rows(
                captions, photos, translated={}, machine={}, tags={}
            )
        return rows

    def official(self, photos):
        return {
            split: self.caption_rows(self.read_official(self.files[name], name), photos)
            for split, name in _OFFICIAL.items()
            if name in self.files
        }

    def read_official(self, path, name):
        """{image id: (where, sentences)} in the order of the images; annotations are in no order of their own."""
        names, captions = {}, {}
        for where, item in json_items(path, "images", self.row):
            with self.row():
                image_id = os.path.splitext(get(item, "file_name", str, where))[0]
                if image_id in captions:
                    raise ValueError(f"{where}: {image_id!r} is already in {captions[image_id][0]}")
                names[get(item, "id", int, where)] = image_id
                captions[image_id] = where, []
        for where, item in json_items(path, "annotations", self.row):
            with self.row():
                if get(item, "image_id", int, where) not in names:
                    raise ValueError(f"{where}: image {item['image_id']} is not among the images of {name}")
                captions[names[item["image_id"]]][1].append(sentence(item.get("caption"), where))
        return captions

    def karpathy(self, photos):
        splits = read_karpathy(self.files["dataset_coco.json"], row=self.row)
        return {split: self.caption_rows(captions, photos) for split, captions in splits.items()}

    def oscar(self, photos):
        return {
            split: self.caption_rows(self.read_oscar(split), photos)
            for split in [name.removesuffix(".label") for name in self.files if name.endswith(".label")]
        }

    def read_oscar(self, split):
        """{image id: (where, sentences)} in the order of the label file, as Oscar counts images."""
        caption_path, label_path = self.files.get(f"{split}.caption"), self.files[f"{split}.label"]
        captions = {}
        for where, fields in tsv_rows(label_path, columns=2, row=self.row):
            with self.row():
                if fields[0] in captions:
                    raise ValueError(f"{where}: {fields[0]!r} is already in {captions[fields[0]][0]}")
                captions[fields[0]] = where, []
        for where, item in json_items(caption_path, row=self.row) if caption_path else ():
            with self.row():
                image_id = str(get(item, "image_id", (str, int), where))
                if image_id not in captions:
                    raise ValueError(f"{where}: {image_id!r} has no row in {label_path}")
                captions[image_id][1].append(sentence(item.get("caption"), where))
        return captions


def _find_cn(data_dir):
    names = (_WRITTEN, *_CN.values(), _TRANSLATED, _MACHINE, _TAGS, _EXTENSION)
    paths = {name: find(data_dir, name, f"coco-cn-version1805v1.1/{name}", f"data/{name}") for name in names}
    files = {name: path for name, path in paths.items() if path}
    if files.keys() != {_EXTENSION}:
        require(files, (_WRITTEN, *_CN.values()), data_dir, _SOURCE)
    return files


def _find_official(data_dir):
    paths = {name: find(data_dir, name, f"annotations/{name}") for name in _OFFICIAL.values()}
    files = {name: path for name, path in paths.items() if path}
    if not files:
        require(files, _OFFICIAL.values(), data_dir, _SOURCE)
    return files


def _find_karpathy(data_dir):
    path = find(data_dir, "dataset_coco.json", "annotations/dataset_coco.json")
    require({"dataset_coco.json"} if path else (), ["dataset_coco.json"], data_dir, _SOURCE)
    return {"dataset_coco.json": path}


def _find_oscar(data_dir):
    there = sorted(os.listdir(data_dir)) if os.path.isdir(data_dir) else []
    others = {name.removesuffix(".yaml"): name for name in there if re.fullmatch(r"test_\w+\.yaml", name)}
    files = {}
    for split, name in [*_YAML.items(), *others.items()]:
        if path := find(data_dir, name):
            files[f"{split}.yaml"] = path
            settings = read_yaml(path)
            if not isinstance(settings, dict) or "label" not in settings:
                raise ValueError(f"{path}: names no label file")
            for key in ("label", "caption"):
                if key in settings:
                    files[f"{split}.{key}"] = os.path.join(data_dir, settings[key])
                    if not os.path.isfile(files[f"{split}.{key}"]):
                        raise FileNotFoundError(f"{path}: {key}: {settings[key]} is not there")
    if not files:
        require(files, _YAML.values(), data_dir, _SOURCE)
    return files


def _read_tags(path, known, row):
    """{image id: tags} of `COCO_.. tag tag ..` lines."""
    tags = {}
    for where, text in lines(path, row):
        with row():
            image_id, *words = text.split()
            if image_id not in known:
                raise ValueError(f"{where}: {image_id!r} is in no split")
            tags[image_id] = words
    return tags
