"""NLVR2: 107,292 sentences, each true or false of a pair of photos.

Sources and licences: Suhr et al. 2019, https://lil.nlp.cornell.edu/nlvr, sentences CC BY 4.0; the photos belong to
their owners on the web. Oscar's files: folder `nlvr2` of Microsoft's Oscar and VinVL (VinVL_DOWNLOAD.md of
https://github.com/microsoft/Oscar). Chinese sentences have the same files.

`data_dir` holds those that are there of

    nlvr2_train.json nlvr2_dev.json nlvr2_test1.json    lists of {"q": sentence, "o": {"left": "tag;tag", "right": ..},
                                                        "img_id": {"left": .., "right": ..}, "label": 0 or 1}
"""

import datasets

from .reading import SENTENCES, FilesBuilder, find, get, json_items, sentence, split_tags

_SPLITS = {"train": datasets.Split.TRAIN, "dev": datasets.Split.VALIDATION, "test1": datasets.Split.TEST}
_SIDES = ("left", "right")


class Nlvr2(FilesBuilder):
    """One row per sentence; `image_ids` and `tags` are those of the left and of the right photo.

    Raises:
        FileNotFoundError: there is no file of any split.
        ValueError: names file and item of an empty sentence, a missing photo or a label that is not 0 or 1.
    """

    def find_files(self, data_dir, config_name):
        paths = {str(split): find(data_dir, f"nlvr2_{name}.json") for name, split in _SPLITS.items()}
        files = {split: path for split, path in paths.items() if path}
        if not files:
            raise FileNotFoundError(f"{data_dir} has no nlvr2_train.json, nlvr2_dev.json or nlvr2_test1.json")
        return files

    def _info(self):
        return datasets.DatasetInfo(
            description=__doc__,
            features=datasets.Features(
                {
                    "image_ids": SENTENCES,
                    "sentence": datasets.Value("string"),
                    "tags": datasets.List(SENTENCES),
                    "label": datasets.ClassLabel(names=["false", "true"]),
                }
            ),
            homepage="https://lil.nlp.cornell.edu/nlvr",
            license="Sentences: CC BY 4.0. Photos: rights with their owners.",
        )

    def _split_generators(self, dl_manager):
        return [datasets.SplitGenerator(name=split, gen_kwargs={"path": path}) for split, path in self.files.items()]

    def _generate_examples(self, path):
        count = 0
        for where, item in json_items(path, row=self.row):
            with self.row():
                photos, tags = (get(item, name, dict, where) for name in ("img_id", "o"))
                if item.get("label") not in (0, 1):
                    raise ValueError(f"{where}: label {item.get('label')!r} instead of 0 or 1")
                row = {
                    "image_ids": [str(get(photos, side, (str, int), where)) for side in _SIDES],
                    "sentence": sentence(item.get("q"), where),
                    "tags": [split_tags(get(tags, side, str, where)) for side in _SIDES],
                    "label": item["label"],
                }
                count += 1
                yield count, row
        self.report(f"{path}: {count:,} sentences on pairs of photos.")
