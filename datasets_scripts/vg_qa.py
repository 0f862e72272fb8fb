"""VG-QA: 1.7 million questions with free answers on the 108,077 photos of Visual Genome.

Source: Krishna et al. 2017, https://homes.cs.washington.edu/~ranjay/visualgenome, CC BY 4.0. Mengzi-Oscar was
pre-trained on 931,000 of the questions, translated into Chinese, of 87,000 photos; which ones was not published.

`data_dir` holds (the files of the site, unpacked)

    question_answers.json           a list of {"id": image, "qas": [{"qa_id", "image_id", "question", "answer"}, ..]}
    image_data.json                 a list of {"image_id", "coco_id", "width", "height", ..}: half of the photos are
                                    COCO's, and may be in somebody's test split (optional; column coco_id)
    VG_100K/ VG_100K_2/             the photos, `<image_id>.jpg`, or nowhere
"""

import datasets

from .reading import FilesBuilder, find, find_photos, get, json_items, photo_of, require, sentence


class VgQa(FilesBuilder):
    """One row per question, in one split "train": there is no official split.

    Raises:
        FileNotFoundError: question_answers.json is missing.
        ValueError: names file, item and question of an empty question or answer, or a photo that is not there.
    """

    def find_files(self, data_dir, config_name):
        paths = {name: find(data_dir, f"{name}.json") for name in ("question_answers", "image_data")}
        files = {name: path for name, path in paths.items() if path}
        require(files, ["question_answers"], data_dir, "get question_answers.json of Visual Genome 1.2")
        return files

    def _info(self):
        text = datasets.Value("string")
        return datasets.DatasetInfo(
            description=__doc__,
            features=datasets.Features(
                {
                    "question_id": text,
                    "image_id": text,
                    "image": datasets.Image(),
                    "question": text,
                    "answer": text,
                    "coco_id": datasets.Value("int64"),
                }
            ),
            homepage="https://homes.cs.washington.edu/~ranjay/visualgenome",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager):
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN)]

    def _generate_examples(self):
        photos = find_photos(self.config.data_dir, "VG_100K", "VG_100K_2")
        images = json_items(self.files["image_data"]) if "image_data" in self.files else ()
        coco_ids = {get(item, "image_id", int, where): item.get("coco_id") for where, item in images}
        count, seen = 0, set()
        for where, item in json_items(self.files["question_answers"], row=self.row):
            number = get(item, "id", int, where)
            seen.add(number)
            for question in get(item, "qas", list, where):
                with self.row():
                    row = _read(f"{where}, question {question.get('qa_id')!r}", question, number, photos)
                    count += 1
                    yield count, row | {"coco_id": coco_ids.get(number)}
        of_coco = sum(coco_ids.get(number) is not None for number in seen)
        self.report(f"VG-QA: {count:,} questions on {len(seen):,} photos, {of_coco:,} of them known to be COCO's.")


def _read(where, question, number, photos):
    """A row without its coco_id."""
    return {
        "question_id": str(get(question, "qa_id", int, where)),
        "image_id": str(number),
        "image": photo_of(photos, str(number), where),
        "question": sentence(question.get("question"), where),
        "answer": sentence(question.get("answer"), where),
    }
