"""Flickr30k in Chinese (Flickr30k-CN, Flickr30k-CNA) and English: 31,783 photos, five sentences each.

Sources and licences:
* Photos and English: Young, Lai, Hodosh, Hockenmaier, TACL 2014; research use only, rights with the Flickr users.
  Splits of Karpathy and Fei-Fei (2015), 29,000 / 1,014 / 1,000: dataset_flickr30k.json of caption_datasets.zip.
* Flickr30k-CN: Lan, Li, Dong, "Fluency-Guided Cross-Lingual Image Captioning", ACM MM 2017;
  https://github.com/li-xirong/cross-lingual-cap. Train and validation are translated by Baidu, the test split by
  people. No licence stated.
* Flickr30k-CNA: Xie et al., "Zero and R2D2" (CCMB), 2022: train and validation translated again by people, the test
  split is that of Flickr30k-CN. Research use.

Configurations and their layout. Photos are in flickr30k-images/ or images/, `<number>.jpg`, or nowhere.

"cn"    flickr30kzhbbosontrain/ flickr30kzhbbosonval/ flickr30kzhmbosontest/, each with
            ImageSets/<folder>.txt                  one photo a line, without .jpg
            TextData/seg.<folder>.caption.txt       `<photo>#zhb#<0..4> word word ..`; two spaces stand for a comma, and
                                                    words may carry their part of speech, `word:n`. Joined on reading.
"cna"   train/flickr30k_cna_train.txt val/flickr30k_cna_val.txt test/flickr30k_cn_test.txt, or these in `data_dir`:
            `<photo>.jpg#<0..4> TAB sentence`
"en"    dataset_flickr30k.json
"""

import re
from dataclasses import dataclass

import datasets

from .reading import (
    SENTENCES,
    FilesConfig,
    SplitsBuilder,
    find,
    find_photos,
    read_karpathy,
    read_sentences,
    read_splits,
    require,
    say_photos,
    say_splits,
)

TRAIN, VALIDATION, TEST = datasets.Split.TRAIN, datasets.Split.VALIDATION, datasets.Split.TEST
_CN = {TRAIN: "flickr30kzhbbosontrain", VALIDATION: "flickr30kzhbbosonval", TEST: "flickr30kzhmbosontest"}
_CNA = {
    TRAIN: "train/flickr30k_cna_train.txt",
    VALIDATION: "val/flickr30k_cna_val.txt",
    TEST: "test/flickr30k_cn_test.txt",
}
_KARPATHY = "dataset_flickr30k.json"
_PART_OF_SPEECH = re.compile(r":[a-z]+$")


class Flickr30k(SplitsBuilder):
    """One row per photo: `Flickr30k(config_name="cn", data_dir=...)`.

    Raises:
        FileNotFoundError: the configuration's files are missing.
        ValueError: names file and row or item of an empty sentence, a line of another form, a sentence number given
            twice, a photo that is not there, in two splits, or not in the split of its sentences.
    """

    BUILDER_CONFIGS = [
        FilesConfig("cn", description="Chinese: translated by a machine, the test split by people"),
        FilesConfig("cna", description="Chinese: translated by people"),
        FilesConfig("en", description="English"),
    ]

    def find_files(self, data_dir, config_name):
        if config_name == "cn":
            names = {f"ImageSets {folder}": f"{folder}/ImageSets/{folder}.txt" for folder in _CN.values()}
            names |= {f"TextData {folder}": f"{folder}/TextData/seg.{folder}.caption.txt" for folder in _CN.values()}
        else:
            names = {"cna": {str(split): path for split, path in _CNA.items()}, "en": {"en": _KARPATHY}}[config_name]
        paths = {name: find(data_dir, path, path.rpartition("/")[2]) for name, path in names.items()}
        files = {name: path for name, path in paths.items() if path}
        require(files, names, data_dir, "docs/data.md says where to get it")
        return files

    def _info(self):
        return datasets.DatasetInfo(
            description=__doc__,
            features=datasets.Features(
                {"image_id": datasets.Value("string"), "image": datasets.Image(), "captions": SENTENCES}
            ),
            homepage="https://shannon.cs.illinois.edu/DenotationGraph/",
            license="Photos: research use only, rights with the Flickr users.",
        )

    def read(self):
        photos = find_photos(self.config.data_dir, "flickr30k-images", "images")
        splits = {"cn": self.cn, "cna": self.cna, "en": self.en}[self.config.name]()
        splits = {split: self.caption_rows(captions, photos) for split, captions in splits.items()}
        used = {row["image_id"] for rows in splits.values() for row in rows}
        self.report(f"Flickr30k, {self.config.name}: {say_splits(splits)}.\nLeft out: {say_photos(photos, used)}.")
        return splits

    def cn(self):
        """{split: {image id: (where, sentences)}}"""
        ids = read_splits({split: self.files[f"ImageSets {folder}"] for split, folder in _CN.items()}, row=self.row)
        splits = {}
        for split, folder in _CN.items():
            path = self.files[f"TextData {folder}"]
            captions, _ = read_sentences(path, set(ids[split]), row=self.row, change=join_words)
            splits[split] = {}
            for image_id in ids[split]:
                with self.row():
                    if image_id not in captions:
                        raise ValueError(
                            f"{self.files[f'ImageSets {folder}']}: {image_id!r} has no sentences in {path}"
                        )
                    splits[split][image_id] = path, captions[image_id]
        return splits

    def cna(self):
        splits, seen = {}, {}
        for split in map(str, _CNA):
            path = self.files[split]
            captions, _ = read_sentences(path, _NotIn(seen), row=self.row)
            splits[split] = {image_id: (path, sentences) for image_id, sentences in captions.items()}
            seen |= captions
        return splits

    def en(self):
        return read_karpathy(self.files["en"], row=self.row)


@dataclass
class _NotIn:
    """What has not been in an earlier split."""

    seen: dict

    def __contains__(self, image_id):
        return image_id not in self.seen


def join_words(text):
    """`两个 年轻 的 家伙  在 院子 里` or `两个:m 年轻:a ..` -> `两个年轻的家伙，在院子里`."""
    words = text.split()
    if words and all(map(_PART_OF_SPEECH.search, words)):
        return "".join(_PART_OF_SPEECH.sub("", word) for word in words)
    return "，".join("".join(part.split()) for part in re.split(r"\s{2,}", text.strip()))
