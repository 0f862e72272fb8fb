"""Flickr8k-CN: 8,091 photos with five Chinese sentences each, written by native speakers looking at the photo.

Source: Li, Lan, Dong, Liu: "Adding Chinese Captions to Images", ICMR 2016; the text files are the folder `data` of
https://github.com/li-xirong/flickr8kcn, which states no licence. The photos are Flickr8k's (Hodosh, Young,
Hockenmaier 2013): research use only, the rights stay with the Flickr users.

`data_dir` holds the authors' files, in itself or in `data/` (a clone of their repository) or `original/`:

    flickr8kzhc.caption.txt               `<photo>.jpg#zhc#<0..4> <sentence>`, written by people
    flickr8ktrain.txt  flickr8kval.txt  flickr8ktest.txt        one photo a line, without .jpg: the official split
    flickr8kzhmtest.captions.txt          `...#zhm#<0..4> <sentence>`: the English sentences of the test photos,
                                          translated by people (optional)
    flickr8kzhg.caption.txt               `...#zhg#...`, `...#zhb#...`: machine translations by Google and Baidu as
    flickr8kzhb.caption.txt               used in the paper (optional), and those made in August 2016 (optional)
    flickr8kzhg.caption.txt.v20160816  flickr8kzhb.caption.txt.v20160815
    captions.jsonl                        instead of the latter (optional): {"image_id": .., "machine": {system: [..]}}
    images/ or Flicker8k_Dataset/         `<photo>.jpg`, the latter as the archive of Flickr8k calls it
"""

import json
import os
import re

import datasets
from datasets.data_files import DataFilesDict, DataFilesList

_CAPTIONS = "flickr8kzhc.caption.txt"
_SPLITS = {
    datasets.Split.TRAIN: "flickr8ktrain.txt",
    datasets.Split.VALIDATION: "flickr8kval.txt",
    datasets.Split.TEST: "flickr8ktest.txt",
}
_TRANSLATED = "flickr8kzhmtest.captions.txt"
_MACHINE = {  # file -> system
    "flickr8kzhg.caption.txt": "google_icmr2016",
    "flickr8kzhb.caption.txt": "baidu_icmr2016",
    "flickr8kzhg.caption.txt.v20160816": "google_2016",
    "flickr8kzhb.caption.txt.v20160815": "baidu_2016",
}
_MACHINE_JSON = "captions.jsonl"
_REQUIRED = (_CAPTIONS, *_SPLITS.values())
_SENTENCE = re.compile(r"(?P<photo>[^#\s]+)#\w+#(?P<number>\d+)(?:[ \t](?P<sentence>.*))?")


class Flickr8kCN(datasets.GeneratorBasedBuilder):
    """One row per photo, splits train 6,000 / validation 1,000 / test 1,000. Photos are paths, decoded when read.

    `Flickr8kCN(data_dir=...)`, then `.download_and_prepare()` and `.as_dataset(split="train")`, or
    `.as_streaming_dataset(split="train")` without preparing. The dataset is built anew when a text file changes.

    Raises:
        FileNotFoundError: a required file or the folder of photos is missing.
        ValueError: names file and row of broken UTF-8, an empty sentence, a line of another form, a sentence number
            given twice, a sentence whose photo is not in the folder, or a split's photo that has no sentences or is
            in two splits. A byte order mark, CRLF and spaces around a sentence are removed.
    """

    VERSION = datasets.Version("1.0.0")

    def __init__(self, *args, data_dir, **kwargs):
        data_dir = os.path.abspath(data_dir)
        names = (*_REQUIRED, _TRANSLATED, *_MACHINE, _MACHINE_JSON)
        files = [path for name in names if (path := _find(data_dir, name))]
        if missing := set(_REQUIRED) - set(map(os.path.basename, files)):
            raise FileNotFoundError(
                f"{data_dir} (and data/ and original/ in it) has no {', '.join(sorted(missing))}: "
                "get them from https://github.com/li-xirong/flickr8kcn, folder data"
            )
        # `datasets` names the cache after data_files and what is known of them, but not after the content of data_dir.
        states = [(str(os.stat(path).st_mtime_ns), str(os.stat(path).st_size)) for path in files]
        data_files = DataFilesDict({"texts": DataFilesList(files, states)})
        super().__init__(*args, data_dir=data_dir, data_files=data_files, **kwargs)

    def _info(self):
        sentences = datasets.List(datasets.Value("string"))
        machine = {"system": datasets.Value("string"), "caption": datasets.Value("string")}
        return datasets.DatasetInfo(
            description=__doc__,
            features=datasets.Features(
                {
                    "image_id": datasets.Value("string"),
                    "image": datasets.Image(),
                    "captions": sentences,
                    "translated": sentences,  # empty outside the test split
                    "machine": datasets.List(machine),
                }
            ),
            homepage="https://github.com/li-xirong/flickr8kcn",
            license="Photos: research use only, rights with the Flickr users. Sentences: no licence stated.",
        )

    def _split_generators(self, dl_manager):
        files = {os.path.basename(path): path for path in dl_manager.download(self.config.data_files)["texts"]}
        folder, photos = _photos(self.config.data_dir)
        captions, _ = _read_sentences(files[_CAPTIONS], photos)
        translated, _ = _read_sentences(files[_TRANSLATED], captions) if _TRANSLATED in files else ({}, 0)
        machine, left = _read_machine(files, captions)
        splits = _read_splits(files, captions)

        systems = ", ".join(machine) or "none here"
        print(
            f"Flickr8k-CN: {len(captions):,} photos with {_count(captions):,} sentences, {_count(translated):,} "
            f"translated by people, {sum(map(_count, machine.values())):,} by machines ({systems}); "
            + ", ".join(f"{split} {len(image_ids):,}" for split, image_ids in splits.items())
            + f".\nLeft out: {len(captions) - _count(splits):,} photos in no split, {len(photos - captions.keys()):,} "
            f"photos without sentences, {left:,} machine translations of photos that are not here."
        )

        def row(image_id):
            return {
                "image_id": image_id,
                "image": os.path.join(folder, f"{image_id}.jpg"),
                "captions": captions[image_id],
                "translated": translated.get(image_id, []),
                "machine": [
                    {"system": system, "caption": caption}
                    for system, sentences in machine.items()
                    for caption in sentences.get(image_id, [])
                ],
            }

        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"rows": tuple(map(row, image_ids))})
            for split, image_ids in splits.items()
        ]

    def _generate_examples(self, rows):
        yield from enumerate(rows)


def _find(data_dir, name):
    """Path of `name` in one of the folders that hold the text files, or None."""
    paths = (os.path.join(data_dir, folder, name) for folder in ("", "data", "original"))
    return next((path for path in paths if os.path.isfile(path)), None)


def _photos(data_dir):
    """Folder of the photos and the set of their ids."""
    for name in ("images", "Flicker8k_Dataset"):
        folder = os.path.join(data_dir, name)
        if os.path.isdir(folder):
            return folder, {photo.removesuffix(".jpg") for photo in os.listdir(folder) if photo.endswith(".jpg")}
    raise FileNotFoundError(
        f"{data_dir} has no folder images/ or Flicker8k_Dataset/ with the photos of Flickr8k: "
        "get Flickr8k_Dataset.zip where its authors distribute it (docs/data.md)"
    )


def _lines(path):
    """("file, row n", text) of every line that is not blank, without byte order mark, line end and outer spaces."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, row {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: broken UTF-8 ({error.reason} at byte {error.start + 1})") from None
            if text:
                yield where, text


def _read_sentences(path, known, skip_unknown=False):
    """{image id: sentences in the order of their numbers}, and how many were skipped because the photo is unknown."""
    sentences, skipped = {}, 0
    for where, text in _lines(path):
        match = _SENTENCE.fullmatch(text)
        if match is None:
            raise ValueError(f"{where}: not of the form '<photo>.jpg#<kind>#<number> <sentence>': {text[:60]!r}")
        image_id, number = match["photo"].removesuffix(".jpg"), int(match["number"])
        if not (match["sentence"] or "").strip():
            raise ValueError(f"{where}: empty sentence")
        if image_id not in known:
            if not skip_unknown:
                raise ValueError(f"{where}: there is no photo or no sentence of {image_id!r} in this data")
            skipped += 1
            continue
        numbered = sentences.setdefault(image_id, {})
        if number in numbered:
            raise ValueError(f"{where}: sentence {number} of {image_id!r} is there twice")
        numbered[number] = match["sentence"].strip()
    return {image_id: [numbered[n] for n in sorted(numbered)] for image_id, numbered in sentences.items()}, skipped


def _read_machine(files, captions):
    """{system: {image id: sentences}} and how many sentences of photos without captions were skipped.

    The authors' machine translations cover one name more than their captions: 2258277193_586949ec62.jpg.1, an
    oddity of Flickr8k's own token file.
    """
    machine, skipped = {}, 0
    for name, system in _MACHINE.items():
        if name in files:
            machine[system], count = _read_sentences(files[name], captions, skip_unknown=True)
            skipped += count
    from_json = {}
    for where, text in _lines(files[_MACHINE_JSON]) if _MACHINE_JSON in files else ():
        try:
            record = json.loads(text)
            image_id, given = record["image_id"], record["machine"]
            empty = not all(sentence.strip() for sentences in given.values() for sentence in sentences)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: not a JSON object with image_id and machine translations ({error!r})") from None
        if empty:
            raise ValueError(f"{where}: empty sentence")
        for system in given.keys() - machine.keys():  # what the authors' files say goes first
            if image_id in captions:
                from_json.setdefault(system, {})[image_id] = given[system]
            else:
                skipped += len(given[system])
    return machine | dict(sorted(from_json.items())), skipped


def _read_splits(files, captions):
    """{split: image ids in the order of its file}; every id has captions and is in one split only."""
    splits, seen = {}, {}
    for split, name in _SPLITS.items():
        splits[split] = []
        for where, text in _lines(files[name]):
            image_id = text.removesuffix(".jpg")
            if image_id in seen:
                raise ValueError(f"{where}: {image_id!r} is already in {seen[image_id]}")
            if image_id not in captions:
                raise ValueError(f"{where}: {image_id!r} has no sentences in {files[_CAPTIONS]}")
            seen[image_id] = where
            splits[split].append(image_id)
    return splits


def _count(lists):
    return sum(map(len, lists.values()))
