"""VQA v2: 1.1 million questions on COCO's photos, ten answers each, as soft scores over a vocabulary of 3,129 answers.

Sources and licences: Goyal et al. 2017, https://visualqa.org, questions and answers CC BY 4.0, photos with the rights
of their Flickr authors. Oscar's files: folder `vqa` of Microsoft's Oscar and VinVL (VinVL_DOWNLOAD.md of
https://github.com/microsoft/Oscar). Chinese questions have the same files.

Configurations and their layout. Both need the vocabulary, a map {answer: id} or a list of answers: the file
trainval_ans2label.pkl or .json, ans2label.pkl or .json, label2ans.pkl or .json, whichever comes first.

"oscar"     train2014_qla_mrcnn.json val2014_.. train+val2014_.. test2015_.. test-dev2015_.., those that are there:
            lists of {"q": question, "o": "tag;tag", "an": [answer id, ..], "s": [score, ..], "img_id", "q_id"}, without
            "q_id" in some and without answers in the test files. A test file that has answers keeps them, and
            "answer_type" and "dataset" (of the photo) are read where they are there, as train/mini/make_questions.py
            writes them. Also
            train2014_vg_qla_mrcnn.json and vg_qla_mrcnn.json, with questions of Visual Genome. Names without _mrcnn
            are taken where there is none with it (`data_label_type`).
"official"  v2_OpenEnded_mscoco_train2014_questions.json, val2014, test-dev2015, test2015: {"questions": [{"image_id",
            "question", "question_id"}]} and v2_mscoco_train2014_annotations.json, val2014: {"annotations":
            [{"question_id", "image_id", "question_type", "answer_type", "answers": [{"answer"}, ..]}]}; photos in
            train2014/ val2014/ test2015/ or nowhere. Score of an answer: 0.3, 0.6, 0.9, 1 for 1, 2, 3, 4 or more of
            the ten, which is the mean of the official min(count / 3, 1) over the ten ways to leave one person out.
"""

from collections import Counter

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
    sentence,
    split_tags,
)

TRAIN, VALIDATION, TEST = datasets.Split.TRAIN, datasets.Split.VALIDATION, datasets.Split.TEST
_OSCAR = {
    TRAIN: "train2014",
    VALIDATION: "val2014",
    "trainval": "train+val2014",
    "train_vg": "train2014_vg",
    "vg": "vg",
    TEST: "test2015",
    "test_dev": "test-dev2015",
}
_OFFICIAL = {TRAIN: "train2014", VALIDATION: "val2014", "test_dev": "test-dev2015", TEST: "test2015"}
_UNLABELLED = (TEST, "test_dev")
LABEL_FILES = [
    f"{name}.{kind}" for name in ("trainval_ans2label", "ans2label", "label2ans") for kind in ("pkl", "json")
]
SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)  # of an answer that 0, 1, 2, 3, 4 or more of ten people gave


class Vqa(QuestionsBuilder):
    """One row per question: `Vqa(config_name="oscar", data_dir=...)`.

    `labels` and `scores` are the answers of the vocabulary that somebody gave; `features["labels"].feature` knows
    their names. Training and validation questions without such an answer are left out and counted, as Oscar does.

    Raises:
        FileNotFoundError: no vocabulary, no questions, or questions without their annotations.
        ValueError: names file and item of an answer outside the vocabulary, another number of scores than answers, an
            empty question, a photo that is not there; or a pickle that holds more than plain containers.
    """

    BUILDER_CONFIGS = [
        FilesConfig("oscar", description="Oscar's files, with tags and scores"),
        FilesConfig("official", description="questions and annotations as published"),
    ]

    def find_files(self, data_dir, config_name):
        files = _find_official(data_dir) if config_name == "official" else find_qla(data_dir, _OSCAR)
        if not files:
            raise FileNotFoundError(f"{data_dir} has no questions in the layout {config_name!r}; see docs/data.md")
        return files | {"vocabulary": find_vocabulary(data_dir, LABEL_FILES)}

    def _info(self):
        label = datasets.ClassLabel(names=read_answer_list(self.files["vocabulary"]))
        features = {
            "question_id": datasets.Value("string"),
            "image_id": datasets.Value("string"),
            "question": datasets.Value("string"),
            "labels": datasets.List(label),
            "scores": datasets.List(datasets.Value("float64")),
            "answer_type": datasets.Value("string"),
        }
        if self.config.name == "oscar":
            features |= {"tags": SENTENCES, "dataset": datasets.Value("string")}
        else:
            features |= {"image": datasets.Image(), "answers": SENTENCES}
        return datasets.DatasetInfo(
            description=__doc__,
            features=datasets.Features(features),
            homepage="https://visualqa.org",
            license="Questions and answers: CC BY 4.0. Photos: rights with the Flickr users.",
        )

    def _split_generators(self, dl_manager):
        parts = _OFFICIAL if self.config.name == "official" else _OSCAR
        return [
            datasets.SplitGenerator(name=str(split), gen_kwargs={"split": str(split)})
            for split in parts
            if str(split) in self.files
        ]

    def _generate_examples(self, split):
        names = self.info.features["labels"].feature.names
        labelled = split not in _UNLABELLED
        rows = (
            self.official(split, names) if self.config.name == "official" else self.oscar(split, len(names), labelled)
        )
        yield from self.with_answers(f"VQA {split}", rows, labelled)

    def oscar(self, split, num_labels, labelled):
        for where, item in json_items(self.files[split], row=self.row):
            with self.row():
                answered = labelled or bool(item.get("an"))
                optional = {name: item.get(name) for name in ("answer_type", "dataset")}
                yield read_qla(where, item, num_labels, answered) | optional

    def official(self, split, names):
        ids = {name: number for number, name in enumerate(names)}
        labelled = f"{split} annotations" in self.files
        annotated = json_items(self.files[f"{split} annotations"], "annotations") if labelled else ()
        annotations = {get(item, "question_id", int, where): (where, item) for where, item in annotated}
        path, part = self.files[split], _OFFICIAL[split].replace("-dev", "")
        photos = find_photos(self.config.data_dir, part, f"images/{part}")
        for where, item in json_items(path, "questions", self.row):
            with self.row():
                question_id, number = get(item, "question_id", int, where), get(item, "image_id", int, where)
                if labelled and question_id not in annotations:
                    raise ValueError(f"{where}: question {question_id} has no annotation")
                answers, answer_type = read_answers(*annotations[question_id]) if labelled else ([], None)
                image_id = f"COCO_{part}_{number:012d}"
                scores = soft_scores(answers, ids)
                yield {
                    "question_id": str(question_id),
                    "image_id": image_id,
                    "image": photo_of(photos, image_id, where),
                    "question": sentence(item.get("question"), where),
                    "labels": list(scores),
                    "scores": list(scores.values()),
                    "answers": answers,
                    "answer_type": answer_type,
                }


def soft_scores(answers, ids):
    """{label: score} of what ten people answered; answers outside the vocabulary count for nobody."""
    counts = Counter(answers)
    return {ids[answer]: SCORES[min(count, 4)] for answer, count in counts.items() if answer in ids}


def answer_vocabulary(*paths, minimum=9):
    """The answers that are the usual one of at least so many questions, the most frequent first.

    With both annotation files and 9 these are the 3,129 that everybody uses, up to how one normalises them; the ids
    of released checkpoints are in their own label file.
    """
    counts = Counter()
    for path in paths:
        counts.update(
            get(item, "multiple_choice_answer", str, where) for where, item in json_items(path, "annotations")
        )
    return [
        answer for answer, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])) if count >= minimum
    ]


def read_answers(where, annotation):
    """The ten answers and the type of a question."""
    answers = [get(answer, "answer", str, where) for answer in get(annotation, "answers", list, where)]
    return answers, annotation.get("answer_type")


def _find_official(data_dir):
    files = {}
    for split, part in _OFFICIAL.items():
        if questions := find(data_dir, f"v2_OpenEnded_mscoco_{part}_questions.json"):
            files[str(split)] = questions
            if split not in _UNLABELLED:
                files[f"{split} annotations"] = find(data_dir, f"v2_mscoco_{part}_annotations.json")
                if not files[f"{split} annotations"]:
                    raise FileNotFoundError(f"{data_dir} has no v2_mscoco_{part}_annotations.json, but the questions")
    return files


def find_vocabulary(data_dir, names):
    """The first of these files of answers."""
    if path := find(data_dir, *names):
        return path
    raise FileNotFoundError(f"{data_dir} has no vocabulary of answers: none of {', '.join(names)}")


def find_qla(data_dir, parts, prefix=""):
    """{split: path} of Oscar's question files, with _mrcnn where it is there."""
    paths = {
        str(split): find(data_dir, f"{prefix}{part}_qla_mrcnn.json", f"{prefix}{part}_qla.json")
        for split, part in parts.items()
    }
    return {split: path for split, path in paths.items() if path}


def read_qla(where, item, num_labels, labelled, scored=True):
    """A row of Oscar's question files."""
    labels = get(item, "an", list, where) if labelled else []
    scores = get(item, "s", list, where) if labelled and scored else [1.0] * len(labels)
    if len(labels) != len(scores):
        raise ValueError(f"{where}: {len(labels)} answers, but {len(scores)} scores")
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < num_labels:
            raise ValueError(f"{where}: answer {label!r} is not among the {num_labels} of the vocabulary")
    return {
        "question_id": str(item["q_id"]) if "q_id" in item else None,
        "image_id": str(get(item, "img_id", (str, int), where)),
        "question": sentence(item.get("q"), where),
        "tags": split_tags(get(item, "o", str, where)),
        "labels": labels,
        "scores": scores,
    }
