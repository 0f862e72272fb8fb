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

import datasets

from .reading import (
    SENTENCES,
    SplitsBuilder,
    count,
    find,
    find_photos,
    json_lines,
    read_sentences,
    read_splits,
    require,
)

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


class Flickr8kCN(SplitsBuilder):
    """One row per photo, splits train 6,000 / validation 1,000 / test 1,000. Photos are paths, decoded when read.

    `Flickr8kCN(data_dir=...)`, then `.download_and_prepare()` and `.as_dataset(split="train")`, or
    `.as_streaming_dataset(split="train")` without preparing. The dataset is built anew when a text file changes.

    Raises:
        FileNotFoundError: a required file or the folder of photos is missing.
        ValueError: names file and row of broken UTF-8, an empty sentence, a line of another form, a sentence number
            given twice, a sentence whose photo is not in the folder, or a split's photo that has no sentences or is
            in two splits. A byte order mark, CRLF and spaces around a sentence are removed.
    """

    def find_files(self, data_dir, config_name):
        names = (*_REQUIRED, _TRANSLATED, *_MACHINE, _MACHINE_JSON)
        paths = {name: find(data_dir, name, f"data/{name}", f"original/{name}") for name in names}
        files = {name: path for name, path in paths.items() if path}
        source = "get them from https://github.com/li-xirong/flickr8kcn, folder data"
        require(files, _REQUIRED, f"{data_dir} (and data/ and original/ in it)", source)
        return files

    def _info(self):
        machine = {"system": datasets.Value("string"), "caption": datasets.Value("string")}
        return datasets.DatasetInfo(
            description=__doc__,
            features=datasets.Features(
                {
                    "image_id": datasets.Value("string"),
                    "image": datasets.Image(),
                    "captions": SENTENCES,
                    "translated": SENTENCES,  # empty outside the test split
                    "machine": datasets.List(machine),
                }
            ),
            homepage="https://github.com/li-xirong/flickr8kcn",
            license="Photos: research use only, rights with the Flickr users. Sentences: no licence stated.",
        )

    def read(self):
        files = self.files
        photos = find_photos(self.config.data_dir, "images", "Flicker8k_Dataset")
        if photos is None:
            raise FileNotFoundError(
                f"{self.config.data_dir} has no folder images/ or Flicker8k_Dataset/ with the photos of Flickr8k: "
                "get Flickr8k_Dataset.zip where its authors distribute it (docs/data.md)"
            )
        captions, _ = read_sentences(files[_CAPTIONS], photos, row=self.row)
        translated, _ = read_sentences(files[_TRANSLATED], captions, row=self.row) if _TRANSLATED in files else ({}, 0)
        machine, left = _read_machine(files, captions, self.row)
        splits = read_splits({split: files[name] for split, name in _SPLITS.items()}, captions, row=self.row)

        systems = ", ".join(machine) or "none here"
        self.report(
            f"Flickr8k-CN: {len(captions):,} photos with {count(captions):,} sentences, {count(translated):,} "
            f"translated by people, {sum(map(count, machine.values())):,} by machines ({systems}); "
            + ", ".join(f"{split} {len(image_ids):,}" for split, image_ids in splits.items())
            + f".\nLeft out: {len(captions) - count(splits):,} photos in no split, "
            f"{len(photos.keys() - captions.keys()):,} photos without sentences, "
            f"{left:,} machine translations of photos that are not here"
            + (f"; {photos.say_unnamed()}." if photos.unnamed else ".")
        )

        def row(image_id):
            return {
                "image_id": image_id,
                "image": photos[image_id],
                "captions": captions[image_id],
                "translated": translated.get(image_id, []),
                "machine": [
                    {"system": system, "caption": caption}
                    for system, sentences in machine.items()
                    for caption in sentences.get(image_id, [])
                ],
            }

        return {split: map(row, image_ids) for split, image_ids in splits.items()}


def _read_machine(files, captions, row):
    """{system: {image id: sentences}} and how many sentences of photos without captions were skipped.

    The authors' machine translations cover one name more than their captions: 2258277193_586949ec62.jpg.1, an
    oddity of Flickr8k's own token file.
    """
    machine, skipped = {}, 0
    for name, system in _MACHINE.items():
        if name in files:
            machine[system], unknown = read_sentences(files[name], captions, skip_unknown=True, row=row)
            skipped += unknown
    from_json = {}
    for where, record in json_lines(files[_MACHINE_JSON], row) if _MACHINE_JSON in files else ():
        with row():
            try:
                image_id, given = record["image_id"], record["machine"]
                empty = not all(sentence.strip() for sentences in given.values() for sentence in sentences)
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{where}: not a JSON object with image_id and machine translations ({error!r})"
                ) from None
            if empty:
                raise ValueError(f"{where}: empty sentence")
            for system in given.keys() - machine.keys():  # what the authors' files say goes first
                if image_id in captions:
                    from_json.setdefault(system, {})[image_id] = given[system]
                else:
                    skipped += len(given[system])
    return machine | dict(sorted(from_json.items())), skipped
