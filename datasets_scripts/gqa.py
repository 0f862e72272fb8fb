"""GQA: 22 million questions about scene graphs on 113,000 photos, one answer each; 1.7 million in the balanced part.

Sources and licences: Hudson and Manning 2019, https://cs.stanford.edu/people/dorarad/gqa, CC BY 4.0; photos of Visual
Genome. Oscar's files: folder `gqa` of Microsoft's Oscar and VinVL (VinVL_DOWNLOAD.md of
https://github.com/microsoft/Oscar). Chinese questions have the same files.

Configurations and their layout. All need the vocabulary of 1,853 answers, a map {answer: id} or a list: the file
trainval_testdev_all_ans2label.pkl or .json, trainval_ans2label.., ans2label.., label2ans.., whichever comes first.

"oscar_balanced"     gqa_bal_qla_train.json gqa_bal_qla_val.json gqa_bal_qla_testdev.json, those that are there: lists
                     of {"q": question, "o": "tag;tag", "an": [answer id, ..], "img_id", "q_id" (not in all)}
"oscar_all"          gqa_all_qla_.. and gqa_all_qla_submission.json
"official_balanced"  train_balanced_questions.json val_.. testdev_..: {question id: {"question", "imageId", "answer",
                     "fullAnswer", "types": {"structural", "semantic", "detailed"}, ..}}; photos in images/, or nowhere
"official_all"       the same with all; train may be a folder train_all_questions/ of
                     train_all_questions_0.json to .._9; submission_all_questions.json has no answers
"""

import os
from glob import escape, glob

import datasets

from modeling_mengzi_oscar.convert.label_maps import read_answers as read_answer_list

from .reading import (
    SENTENCES,
    FilesConfig,
    QuestionsBuilder,
    find,
    find_photos,
    get,
    json_items,
    photo_of,
    read_json,
    sentence,
)
from .vqa import LABEL_FILES, find_vocabulary, read_qla

_SPLITS = {
    "train": datasets.Split.TRAIN,
    "val": datasets.Split.VALIDATION,
    "testdev": "testdev",
    "submission": "submission",
}
_VOCABULARY = [f"trainval_testdev_all_ans2label.{kind}" for kind in ("pkl", "json")] + LABEL_FILES


class Gqa(QuestionsBuilder):
    """One row per question: `Gqa(config_name="oscar_balanced", data_dir=...)`.

    `labels` are the ids of the answers, the first of which counts in Oscar; `features["labels"].feature` knows their
    names. Questions without an answer of the vocabulary are left out and counted, but not those of "submission".

    Raises:
        FileNotFoundError: no vocabulary, or no questions.
        ValueError: names file and item or question of an answer outside the vocabulary (in Oscar's files), an empty
            question, a photo that is not there; or a pickle that holds more than plain containers.
    """

    BUILDER_CONFIGS = [
        FilesConfig(f"{layout}_{part}") for layout in ("oscar", "official") for part in ("balanced", "all")
    ]

    def find_files(self, data_dir, config_name):
        layout, _, part = config_name.partition("_")
        files = {}
        for name, split in _SPLITS.items():
            if layout == "oscar":
                path = find(data_dir, f"gqa_{'bal' if part == 'balanced' else 'all'}_qla_{name}.json")
                chunks = [path] if path else []
            else:
                stem = f"{name}_{part}_questions"
                path = find(data_dir, f"{stem}.json", f"questions1.2/{stem}.json")
                chunks = [path] if path else _chunks(data_dir, stem)
            files |= {f"{split} {number}": path for number, path in enumerate(chunks)}
        if not files:
            raise FileNotFoundError(f"{data_dir} has no questions in the layout {config_name!r}; see docs/data.md")
        return files | {"vocabulary": find_vocabulary(data_dir, _VOCABULARY)}

    def _info(self):
        label = datasets.ClassLabel(names=read_answer_list(self.files["vocabulary"]))
        text = datasets.Value("string")
        features = {"question_id": text, "image_id": text, "question": text, "labels": datasets.List(label)}
        if self.config.name.startswith("oscar"):
            features["tags"] = SENTENCES
        else:
            features |= {"image": datasets.Image(), "answer": text, "full_answer": text}
            features |= {"structural": text, "semantic": text, "detailed": text}
        return datasets.DatasetInfo(
            description=__doc__,
            features=datasets.Features(features),
            homepage="https://cs.stanford.edu/people/dorarad/gqa",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager):
        splits = [str(split) for split in _SPLITS.values() if f"{split} 0" in self.files]
        return [datasets.SplitGenerator(name=split, gen_kwargs={"split": split}) for split in splits]

    def _generate_examples(self, split):
        paths = [path for name, path in self.files.items() if name.startswith(f"{split} ")]
        names = self.info.features["labels"].feature.names
        rows = self.oscar(paths, len(names)) if self.config.name.startswith("oscar") else self.official(paths, names)
        yield from self.with_answers(f"GQA {split}", rows, labelled=split != "submission")

    def oscar(self, paths, num_labels):
        for where, item in (pair for path in paths for pair in json_items(path, row=self.row)):
            with self.row():
                row = read_qla(where, item, num_labels, labelled="an" in item, scored=False)
                del row["scores"]
                yield row

    def official(self, paths, names):
        ids = {name: number for number, name in enumerate(names)}
        photos = find_photos(self.config.data_dir, "images")
        for path in paths:
            for question_id, item in read_json(path).items():
                where = f"{path}, question {question_id!r}"
                with self.row():
                    image_id, types = get(item, "imageId", str, where), item.get("types") or {}
                    yield {
                        "question_id": question_id,
                        "image_id": image_id,
                        "image": photo_of(photos, image_id, where),
                        "question": sentence(item.get("question"), where),
                        "labels": [ids[item["answer"]]] if item.get("answer") in ids else [],
                        "answer": item.get("answer"),
                        "full_answer": item.get("fullAnswer"),
                    } | {name: types.get(name) for name in ("structural", "semantic", "detailed")}


def _chunks(data_dir, name):
    """The files of a folder like train_all_questions/, in the order of their numbers."""
    paths = [
        path
        for folder in ("", "questions1.2")
        for path in glob(os.path.join(escape(data_dir), folder, name, f"{name}_*.json"))
    ]
    return sorted(paths, key=lambda path: (len(path), path))
