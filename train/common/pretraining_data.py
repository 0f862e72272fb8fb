"""What Oscar+ pre-training sees: an image, a text, and behind it tags or an answer; half of the rows are made wrong.

The rules, and the order of the draws, are those of the original (`OscarTSVDataset` of microsoft/Oscar; Zhang et al.
2021, VinVL), so that its items come out again from its seeds. What differs: a row draws from (seed, epoch, row) and
not from one stream per worker, so that neither workers, processes nor an interruption change what is drawn.
"""

import random

import torch

from .collators import SeededRows

MATCHED, WRONG_TAGS = 0, 1  # wrong text is the last class of the contrast: 2 of three, 1 of two
TRIES = 10  # to find another image; then what was drawn is taken


def contrast_classes(texta_false_prob: float, use_b: bool = True) -> int:
    """Three when wrong texts and wrong tags both occur, or when there are no tags at all: the original's rule."""
    return 3 if texta_false_prob < 0.5 and (texta_false_prob > 0 or not use_b) else 2


class PretrainingRows(SeededRows):
    """One item per caption or question: image, text and tags, what was made wrong, and its source of random numbers.

    Args:
        rows: image_id, text, tags (words joined by spaces, may be empty), question_id (None for captions) and dataset:
            see `one_row_per_text`.
        stores: {dataset: region feature store}; under None the one of all other data sets.
        texta_false_prob: an item's text is wrong with this probability, its tags with 0.5 - this; else it is matched.
        textb_sample_mode: wrong tags are 0: the text or the tags of any row of another image; 1: its tags;
            2: the answer to another question, of the same image too.
        use_b: with tags. Without, only texts are made wrong.
    """

    def __init__(self, rows, stores, texta_false_prob=0.25, textb_sample_mode=1, use_b=True, seed=42):
        super().__init__(seed)
        self.rows, self.stores = rows, stores
        self.texta_false_prob, self.textb_sample_mode, self.use_b = texta_false_prob, textb_sample_mode, use_b
        self.wrong_text = contrast_classes(texta_false_prob, use_b) - 1
        if textb_sample_mode not in (0, 1, 2):
            raise ValueError(f"textb_sample_mode is 0, 1 or 2, not {textb_sample_mode}")
        self.questions = [i for i, question in enumerate(rows["question_id"]) if question is not None]
        if textb_sample_mode == 2 and use_b and not self.questions:
            raise ValueError("textb_sample_mode 2 draws wrong tags from answers, and there is no question in this data")

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.item(index, self.draws(index))

    def item(self, index, randomness):
        """The item of a row, as `randomness` decides; masking goes on drawing from it."""
        row = self.rows[index]
        text, tags, source, contrast = row["text"], (row["tags"] or "") if self.use_b else "", row, MATCHED
        #  0 ... wrong text ... texta_false_prob ... wrong tags ... 0.5 ........ matched ........ 1
        chance = randomness.random()
        if self.texta_false_prob < chance <= 0.5 and tags:
            source, tags = self._wrong_tags(index, row, randomness)
            contrast = WRONG_TAGS
        elif chance <= 0.5:  # without tags only the text can be wrong
            source = self._row_of_another_image(row, randomness)
            text, contrast = source["text"], self.wrong_text
        store = self.stores[row["dataset"] if row["dataset"] in self.stores else None]
        return {
            "text": text,
            "tags": tags,
            "region_features": store[row["image_id"]]["region_features"],
            "next_sentence_label": contrast,
            "foreign": image_of(source) != image_of(row),  # what was drawn is of another image
            "random": randomness,
        }

    def _wrong_tags(self, index, row, randomness):
        """Another row, and what of it stands in place of the tags."""
        if self.textb_sample_mode == 2:
            for _ in range(TRIES):
                other = self.questions[randomness.randrange(len(self.questions))]
                if other != index:
                    break
            source = self.rows[other]
            return source, source["tags"]
        source = self._row_of_another_image(row, randomness, needs_tags=True)
        if self.textb_sample_mode == 0:
            return source, source[("text", "tags")[randomness.randrange(2)]]
        return source, source["tags"]

    def _row_of_another_image(self, row, randomness, needs_tags=False):
        for _ in range(TRIES):
            other = self.rows[randomness.randrange(len(self.rows))]
            if image_of(other) != image_of(row) and (other["tags"] or not needs_tags):
                break
        return other


def image_of(row):
    return row["dataset"], row["image_id"]


class PretrainingCollator:
    """Items of a `PretrainingRows` -> model inputs with masked tokens and both kinds of labels.

    Args:
        processor: makes [CLS] text [SEP] tags [SEP] and regions of them, in the "pair" layout and of its own lengths.
        mask_loss_for_unmatched: mask wrong tags too, and ask for them; else they are left as they are.
    """

    def __init__(self, processor, mask_loss_for_unmatched=True):
        self.processor, self.mask_loss_for_unmatched = processor, mask_loss_for_unmatched

    def __call__(self, items):
        text, tags, regions = ([item[name] for item in items] for name in ("text", "tags", "region_features"))
        batch = self.processor(text=text, tags=tags, regions=regions, layout="pair")
        batch["labels"] = torch.full_like(batch["input_ids"], -100)
        batch["next_sentence_label"] = torch.tensor([item["next_sentence_label"] for item in items])
        for row, item in enumerate(items):
            masks_tags = (
                self.mask_loss_for_unmatched or item["next_sentence_label"] != WRONG_TAGS or not item["foreign"]
            )
            ids, types = batch["input_ids"][row], batch["token_type_ids"][row]
            places = maskable(batch["attention_mask"][row].sum().item(), types.tolist(), masks_tags)
            ids[places], batch["labels"][row, places] = self._masked(ids[places], item["random"])
        return dict(batch)

    def _masked(self, ids, randomness):
        """Token ids (n,) -> the same with some masked or replaced, and the labels (n,) of those, -100 elsewhere.

        15 % are asked for: of these 80 % become [MASK], 10 % any token of the vocabulary, 10 % stay.
        """
        tokenizer = self.processor.tokenizer
        inputs, labels = ids.clone(), torch.full_like(ids, -100)
        for place, token in enumerate(ids.tolist()):
            chance = randomness.random()
            if chance >= 0.15:
                continue
            labels[place] = token
            chance /= 0.15  # in [0, 1) again
            if chance < 0.8:
                inputs[place] = tokenizer.mask_token_id
            elif chance < 0.9:
                inputs[place] = randomness.randrange(len(tokenizer))
        return inputs, labels


def maskable(length, token_type_ids, tags=True):
    """Places of [CLS] text [SEP] tags [SEP] that are neither [CLS] nor [SEP]; those of the tags only if asked for.

    place      0   1   2      3   4   5      6    7
           [CLS]  草  地  [SEP]  狗  猫  [SEP]  pad      length 7, first_tag 4
    type       0   0   0      0   1   1      1    0      -> 1 2 and, of the tags, 4 5
    """
    first_tag = token_type_ids.index(1) if 1 in token_type_ids else length
    return [*range(1, first_tag - 1), *(range(first_tag, length - 1) if tags else ())]


def one_row_per_text(rows, tags=None):
    """What any builder gives -> dataset, image_id, question_id, text, tags; a row per caption or question.

    Rows that have a text pass as they are. Elsewhere the tags of a caption are the row's `tags`, or what `tags`, a
    function of the image id, gives; behind a question stand its answers, as in the corpus of Oscar+.
    """
    columns = ("dataset", "image_id", "question_id", "text", "tags")
    if "text" in rows.column_names:
        for name in set(columns) - set(rows.column_names):
            rows = rows.add_column(name, [None] * len(rows))
        return rows
    answers = rows.features.get("labels")

    def texts(row):
        dataset, image_id = row.get("dataset"), row["image_id"]  # a line has a value for each of `columns`
        if "question" in row:
            answer = row["answer"] if "answer" in row else " ".join(answers.feature.int2str(row["labels"]))
            return [(dataset, image_id, row["question_id"], row["question"], answer or "")]
        tag_words = row.get("tags") or (tags(image_id) if tags else [])
        return [(dataset, image_id, None, caption, " ".join(tag_words)) for caption in row["captions"]]

    def expand(batch):
        rows_of_batch = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
        lines = [line for row in rows_of_batch for line in texts(row)]
        return {name: [line[place] for line in lines] for place, name in enumerate(columns)}

    rows = rows.remove_columns([name for name in ("image", "machine") if name in rows.column_names])
    return rows.map(expand, batched=True, remove_columns=rows.column_names, desc="texts")


def hold_out(rows, images, seed):
    """(rows of the other images, rows of so many images drawn at random): for validation."""
    image_ids = rows["image_id"][:]
    names = sorted(set(image_ids))
    held_out = set(random.Random(seed).sample(names, min(images, len(names) - 2)))  # wrong ones need two others
    training = [index for index, name in enumerate(image_ids) if name not in held_out]
    validation = [index for index, name in enumerate(image_ids) if name in held_out]
    return rows.select(training), rows.select(validation)
