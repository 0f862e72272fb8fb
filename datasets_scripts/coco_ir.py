"""Image-text retrieval in Oscar's layout, as COCO and Flickr30k are evaluated: all images against all captions.

Source: folder `coco_ir` of Microsoft's Oscar and VinVL (VinVL_DOWNLOAD.md of https://github.com/microsoft/Oscar), the
splits of Karpathy and Fei-Fei; captions CC BY 4.0 (COCO). A Chinese translation has the same files. `data_dir` holds

    <split>_captions.pt                 torch-saved {image id: [caption, ..] or the same as JSON text}; splits train,
                                        minival, val, test. The order of the dict is the order of the images.
    <split>_img_keys.tsv                one image id per line: further splits, here `test_keys` and `test_1k`, of these
    <split>_img_keys_1k.tsv             images in this order (also .txt, or torch-saved .pt as in Mengzi's command)
    <split>_caption_indexs_top20.pt     torch-saved {image id: [[image id, caption number], ..] or JSON text}: the
                                        captions to rank for an image, where not all are (`minival`)

COCO's 5k test is `test`, the 1k test is `test_1k`. AIC-ICC's retrieval test is a split of datasets_scripts/aic_icc.py.
"""

import json
import os
import re
from glob import escape, glob

import datasets
import torch

from .reading import SENTENCES, SplitsBuilder, lines, require, say_splits, sentences_of

_CAPTIONS = re.compile(r"(?P<split>train|minival|val|test)_captions\.pt")
_KEYS = re.compile(r"(?P<split>train|minival|val|test)_img_keys(?:_(?P<part>\w+))?\.(?:tsv|txt|pt)")
_CANDIDATES = re.compile(r"(?P<split>train|minival|val|test)_caption_indexs?_top(?P<number>\d+)\.pt")
_NAMES = {"train": datasets.Split.TRAIN, "val": datasets.Split.VALIDATION, "test": datasets.Split.TEST}


class CocoIr(SplitsBuilder):
    """One row per image. `candidates` are the captions of a caption-index file, empty where all captions are ranked.

    Raises:
        FileNotFoundError: no file of captions.
        ValueError: names file and image or row of an empty caption, a key or candidate that is no image or caption of
            the split, a key twice, a file that holds more than plain containers and tensors.
    """

    def find_files(self, data_dir, config_name):
        files = {os.path.basename(path): path for path in sorted(glob(os.path.join(escape(data_dir), "*")))}
        patterns = (_CAPTIONS, _KEYS, _CANDIDATES)
        files = {name: path for name, path in files.items() if any(pattern.fullmatch(name) for pattern in patterns)}
        if not any(map(_CAPTIONS.fullmatch, files)):
            require((), ["train_captions.pt", "test_captions.pt"], data_dir, "docs/data.md says where to get them")
        return files

    def _info(self):
        candidate = {"image_id": datasets.Value("string"), "caption": datasets.Value("int32")}
        return datasets.DatasetInfo(
            description=__doc__,
            features=datasets.Features(
                {
                    "image_id": datasets.Value("string"),
                    "captions": SENTENCES,
                    "candidates": datasets.List(candidate),
                }
            ),
            homepage="https://github.com/microsoft/Oscar",
            license="Captions of COCO: CC BY 4.0.",
        )

    def read(self):
        splits, whole = {}, {}
        for name, path in self.files.items():
            if match := _CAPTIONS.fullmatch(name):
                captions, candidates = self.read_captions(path), self.candidates(match["split"])
                self.check(candidates, captions, path)
                whole[match["split"]] = {
                    image_id: {"image_id": image_id, "captions": texts, "candidates": candidates.get(image_id, [])}
                    for image_id, texts in captions.items()
                }
                splits[_NAMES.get(match["split"], match["split"])] = list(whole[match["split"]].values())
        for name, path in self.files.items():
            if match := _KEYS.fullmatch(name):
                if match["split"] not in whole:
                    raise ValueError(f"{path}: there is no {match['split']}_captions.pt beside it")
                rows = self.select(path, whole[match["split"]])
                splits[f"{_NAMES.get(match['split'], match['split'])}_{match['part'] or 'keys'}"] = rows
        self.report(f"Retrieval: {say_splits(splits)}.")
        return splits

    def read_captions(self, path):
        """{image id: captions}"""
        captions = {}
        for image_id, texts in _load(path, dict).items():
            with self.row():
                where = f"{path}, image {image_id!r}"
                captions[str(image_id)] = sentences_of(_from_json(texts, where), where)
        return captions

    def candidates(self, split):
        """{image id: candidates}, of the caption-index file of a split if there is one."""
        names = [name for name in self.files if (match := _CANDIDATES.fullmatch(name)) and match["split"] == split]
        if len(names) > 1:
            raise ValueError(f"{' and '.join(self.files[name] for name in names)}: keep one")
        found = {}
        for name in names:
            for image_id, pairs in _load(self.files[name], dict).items():
                pairs = _from_json(pairs, f"{self.files[name]}, image {image_id!r}")
                found[str(image_id)] = [{"image_id": str(image), "caption": int(number)} for image, number in pairs]
        return found

    def check(self, candidates, captions, path):
        """Every candidate is a caption of the split."""
        for image_id, pairs in candidates.items():
            for pair in pairs:
                if not 0 <= pair["caption"] < len(captions.get(pair["image_id"], ())):
                    missing = f"caption {pair['caption']} of image {pair['image_id']!r}"
                    raise ValueError(f"{path}: has no {missing}, a candidate for {image_id!r}")
        if candidates and (missing := captions.keys() - candidates.keys()):
            raise ValueError(f"{path}: {len(missing)} images without candidates, e.g. {min(missing)!r}")

    def select(self, path, rows):
        """The rows of a file of keys, in its order."""
        if path.endswith(".pt"):
            keys = [(f"{path}, item {n}", str(key)) for n, key in enumerate(_load(path, list), start=1)]
        else:
            keys = lines(path, self.row)
        selected = {}
        for where, key in keys:
            with self.row():
                if key not in rows or key in selected:
                    problem = "is there twice" if key in selected else "has no captions"
                    raise ValueError(f"{where}: {key!r} {problem}")
                selected[key] = rows[key]
        return list(selected.values())


def _load(path, kind):
    """What torch saved, as long as it is plain containers, numbers and texts."""
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is damaged makes torch raise anything at all
        raise ValueError(f"{path}: refused or damaged ({str(error).splitlines()[0]})") from None
    if not isinstance(data, kind):
        raise ValueError(f"{path}: holds a {type(data).__name__} instead of a {kind.__name__}")
    return data


def _from_json(value, where):
    """A list, which upstream saved as it is or as JSON text."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: a {type(value).__name__} instead of a list")
    return value
