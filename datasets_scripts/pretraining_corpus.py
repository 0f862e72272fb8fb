"""The corpus of Oscar+ (VinVL), which Mengzi-Oscar's has the layout of: captions with tags, questions with answers.

Source: coco_flickr30k_gqa.tsv and the larger ones of https://github.com/microsoft/Oscar, VinVL_DOWNLOAD.md; the
licences are those of COCO, Flickr30k, GQA and so on. Mengzi-Oscar's Chinese one was not published. `data_dir` holds

    coco_flickr30k_gqa.yaml     corpus_file: coco_flickr30k_gqa.tsv     relative to the yaml, as are the labels
                                corpus: coco_flickr30k_gqa              data sets to take, joined by "_"
                                image_label_path: {coco: <folder>, flickr30k: .., gqa: ..}
                                image_feature_path: ..                  not read here; features are in a store
    coco_flickr30k_gqa.tsv      <data set>_..<image id> TAB <label info> TAB text; the label info of a question has a
                                part "qa" and ends with <image id>_<question id>, a caption's with the image id.
                                Large data sets have chunks: googlecc_<chunk>_<image id>
    <folder>/predictions_gt.tsv <image id> TAB {"objects": [{"class"}, ..], "image_h", "image_w"[, "gt_objects"]}
    <folder>/QA_fileB.tsv       <question id> TAB {"labels": [answer, ..]}, where the data set has questions

The .lineidx and imageid2idx.json files that Oscar needs are not read. `yaml_file=` names another yaml.
"""

import json
import os
from dataclasses import dataclass

import datasets

from .reading import FilesBuilder, FilesConfig, find, get, read_yaml, sentence, tsv_rows

_ALIASES = {"cc": "googlecc"}
_CHUNKED = ("googlecc", "sbu", "oi", "objects365", "tagoi")


@dataclass
class PretrainingCorpusConfig(FilesConfig):
    """`ground_truth`: take the annotated objects of an image instead of the detected ones, where there are any."""

    ground_truth: bool = True


class PretrainingCorpus(FilesBuilder):
    """One row per caption or question, in the order of the file; rows of data sets not in `corpus` are counted.

    `text` is the caption or question, `tags` what goes behind it: the names of the objects of a caption's image, or
    the answers to a question, joined by spaces. Wrong texts and tags are drawn when batches are made.

    Raises:
        FileNotFoundError: the yaml, the corpus or a file of labels is missing.
        ValueError: names file and row of an empty text, an image or question without labels, a row of another form.
    """

    BUILDER_CONFIG_CLASS = PretrainingCorpusConfig

    def __init__(self, *, yaml_file="coco_flickr30k_gqa.yaml", **kwargs):
        self.yaml_file = yaml_file
        super().__init__(**kwargs)

    def find_files(self, data_dir, config_name):
        path = find(data_dir, self.yaml_file)
        if not path:
            raise FileNotFoundError(f"{data_dir} has no {self.yaml_file}; name another with yaml_file=")
        settings = read_yaml(path)
        for key in ("corpus_file", "corpus", "image_label_path"):
            if not isinstance(settings, dict) or key not in settings:
                raise ValueError(f"{path}: names no {key}")
        folder = os.path.dirname(path)
        files = {"yaml": path, "corpus": os.path.join(folder, settings["corpus_file"])}
        self.names = [_ALIASES.get(name, name) for name in settings["corpus"].split("_")]
        for name, labels in settings["image_label_path"].items():
            name, labels = _ALIASES.get(name, name), os.path.join(folder, labels)
            if name in self.names:
                files[f"{name} objects"] = os.path.join(labels, "predictions_gt.tsv")
                if os.path.isfile(os.path.join(labels, "QA_fileB.tsv")):
                    files[f"{name} answers"] = os.path.join(labels, "QA_fileB.tsv")
        for name in self.names:
            if f"{name} objects" not in files:
                raise ValueError(f"{path}: image_label_path has no folder for {name}")
        if missing := [path for path in files.values() if not os.path.isfile(path)]:
            raise FileNotFoundError(f"{path} needs {', '.join(missing)}")
        return files

    def _info(self):
        text = datasets.Value("string")
        return datasets.DatasetInfo(
            description=__doc__,
            features=datasets.Features(
                {
                    "dataset": text,
                    "chunk": text,
                    "image_id": text,
                    "question_id": text,
                    "text": text,
                    "tags": text,
                    "image_height": datasets.Value("int32"),
                    "image_width": datasets.Value("int32"),
                }
            ),
            homepage="https://github.com/microsoft/Oscar",
            license="Those of COCO, Flickr30k and GQA; photos: rights with the Flickr users.",
        )

    def _split_generators(self, dl_manager):
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN)]

    def _generate_examples(self):
        objects = {name: self.read_objects(self.files[f"{name} objects"]) for name in self.names}
        answers = {name: self.read_answers(self.files.get(f"{name} answers")) for name in self.names}
        captions = questions = left = 0
        for where, (image_info, label_info, text, *_) in tsv_rows(self.files["corpus"], columns=3, row=self.row):
            with self.row():
                name, chunk, image_id = _image(where, image_info)
                if name not in self.names:
                    left += 1
                    continue
                if image_id not in objects[name]:
                    raise ValueError(f"{where}: image {image_id!r} has no row in {self.files[f'{name} objects']}")
                tags, height, width = objects[name][image_id]
                question_id = None
                if "qa" in label_info.split("_"):
                    question_id = label_info.split("_")[-1]
                    if question_id not in answers[name]:
                        raise ValueError(f"{where}: question {question_id!r} has no row in a QA_fileB.tsv of {name}")
                    tags = answers[name][question_id]
                row = {
                    "dataset": name,
                    "chunk": chunk,
                    "image_id": image_id,
                    "question_id": question_id,
                    "text": sentence(text, where),
                    "tags": sentence(tags, f"{where}, its tags or answers"),
                    "image_height": height,
                    "image_width": width,
                }
                captions, questions = captions + (question_id is None), questions + (question_id is not None)
                yield captions + questions, row
        self.report(
            f"{self.files['corpus']}: {captions:,} captions and {questions:,} questions of {', '.join(self.names)}. "
            f"Left out: {left:,} rows of other data sets."
        )

    def read_objects(self, path):
        """{image id: (names of its objects, height, width)}"""
        found = {}
        for where, (image_id, text, *_) in tsv_rows(path, columns=2, row=self.row):
            with self.row():
                record = _object(where, text)
                given = record.get("gt_objects") if self.config.ground_truth else None
                names = [get(one, "class", str, where) for one in given or get(record, "objects", list, where)]
                if image_id in found:
                    raise ValueError(f"{where}: image {image_id!r} is there twice")
                found[image_id] = " ".join(names), record.get("image_h"), record.get("image_w")
        return found

    def read_answers(self, path):
        """{question id: answers, joined by spaces}"""
        found = {}
        for where, (question_id, text, *_) in tsv_rows(path, columns=2, row=self.row) if path else ():
            with self.row():
                found[question_id] = " ".join(get(_object(where, text), "labels", list, where))
        return found


def _image(where, info):
    """Data set, chunk (or None) and image id of `coco_42` or `googlecc_3_42`."""
    parts = info.split("_")
    if len(parts) < 2:
        raise ValueError(f"{where}: {info!r} is not of the form '<data set>_<image id>'")
    name = _ALIASES.get(parts[0], parts[0])
    return name, parts[-2] if name in _CHUNKED and len(parts) > 2 else None, parts[-1]


def _object(where, text):
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: not a JSON object")
    return record
