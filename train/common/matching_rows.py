"""What retrieval learns from: sentences with their own image and a wrong one, or every image of a batch against every
sentence."""

from collections import Counter

import numpy as np
import torch
from torch import nn

from modeling_mengzi_oscar.matching import EncodedTexts, log_odds, match_logits, prepare_images
from modeling_mengzi_oscar.modeling_mengzi_oscar import MengziOscarPreTrainedModel
from modeling_mengzi_oscar.processing_mengzi_oscar import pad_regions

from .collators import DrawnOrder, PairCollator, SeededRows, StoresOfRows, tag_words


class ImageRows(SeededRows):
    """One item per image: `region_features` (R, D), and `tags` (words) where labels are given.

    Args:
        rows: a split with image_id and captions. captions: of an image, the first so many; 0 = all.
        stores: region stores, as `StoresOfRows` takes them; training draws one of them for every image, else the plain
            one is read.
        labels: texts of the stores' tag or class ids; None = no tags.
    """

    def __init__(self, rows, stores, labels=None, captions=0, training=False, seed=0):
        super().__init__(seed)
        self.image_ids, self.stores, self.labels = rows["image_id"][:], StoresOfRows(rows, stores), labels
        self.training = training
        self.captions = [texts[: captions or None] for texts in rows["captions"]]
        # The image of each text: 0 0 1 1 1 2 for images with 2, 3 and 1 of them
        self.owners = np.repeat(np.arange(len(self.captions)), [len(texts) for texts in self.captions])
        self.texts = [text for texts in self.captions for text in texts]

    def __len__(self):
        return len(self.image_ids)

    def __getitem__(self, index):
        return self.image(index)

    def image(self, index, draws=None):
        regions = self.stores.read(index, draws if self.training else None)
        item = {"region_features": regions["region_features"]}
        return item | ({"tags": tag_words(regions, self.labels)} if self.labels is not None else {})


class OwnAndWrongRows(ImageRows):
    """One item per sentence: with its image ("own", label 1), and a pair that does not belong together ("wrong", 0).

    As Oscar's RetrievalDataset: the wrong image is drawn evenly from all others; then the image keeps its place and one
    of the wrong image's sentences comes in, or the sentence stays and the image with its tags is replaced, each with
    probability 1/2. `hard_negatives` (images, texts) are scores of an earlier stage: the wrong text or image is then
    drawn from the `hard_top` that it likes best.
    """

    def __init__(self, *args, hard_negatives=None, hard_top=20, **kwargs):
        super().__init__(*args, **kwargs)
        self.hard_negatives, self.hard_top = hard_negatives, hard_top
        if hard_negatives is not None and hard_negatives.shape != (len(self.image_ids), len(self.texts)):
            raise ValueError(
                f"the hard negatives are scores of {hard_negatives.shape[0]} images and {hard_negatives.shape[1]} "
                f"texts, the training split has {len(self.image_ids)} and {len(self.texts)}"
            )

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        draws, image = self.draws(index), int(self.owners[index])
        wrong_image, wrong_text = image, self.texts[index]
        if len(self.image_ids) == 1:  # one validation image: there is no other to draw from
            return {"own": {"text": self.texts[index], "labels": 1} | self.image(image, draws)}
        if self.hard_negatives is not None:
            wrong_image, wrong_text = self.hard_pair(index, draws)
        else:
            other, number = draw_wrong(draws, image, [len(texts) for texts in self.captions])
            if number is None:
                wrong_image = other
            else:
                wrong_text = self.captions[other][number]
        return {
            "own": {"text": self.texts[index], "labels": 1} | self.image(image, draws),
            "wrong": {"text": wrong_text, "labels": 0} | self.image(wrong_image, draws),
        }

    def hard_pair(self, index, draws):
        image = int(self.owners[index])
        if draws.random() <= 0.5:
            scores, own = np.array(self.hard_negatives[image], np.float32), self.owners == image
            return image, self.texts[draws.choice(best_of_others(scores, own, self.hard_top))]
        scores, own = np.array(self.hard_negatives[:, index], np.float32), np.arange(len(self.image_ids)) == image
        return draws.choice(best_of_others(scores, own, self.hard_top)), self.texts[index]


def draw_wrong(draws, image, counts):
    """(wrong image, number of its caption, or None where the image itself is to be shown), in the original's order."""
    other = draws.randrange(len(counts) - 1)
    other += other >= image  # 0 .. image - 1, image + 1 ..: all but the image itself
    return other, draws.randint(0, counts[other] - 1) if draws.random() <= 0.5 else None


def best_of_others(scores, own, top) -> list[int]:
    scores[own] = -np.inf
    return np.argsort(-scores, kind="stable")[: min(top, len(scores) - int(own.sum()))].tolist()


class OwnAndWrongCollator(PairCollator):
    """Items of `OwnAndWrongRows` -> tensors of twice as many pairs, the own ones first, as Oscar's batches."""

    def __call__(self, items):
        wrong = [item["wrong"] for item in items if "wrong" in item]
        return super().__call__([item["own"] for item in items] + wrong)


class InBatchRows(ImageRows):
    """One item per image, with one of its sentences drawn."""

    def __getitem__(self, index):
        draws = self.draws(index)
        return {"text": draws.choice(self.captions[index])} | self.image(index, draws)


class LikePhotos(DrawnOrder):
    """Batches of one data set each, of photos of which like things are said: what is hard to tell apart.

    Of each data set random chunks of `CHUNK` batches; in one of them a photo and those nearest to it are a batch, then
    another photo and the nearest of those left, and so on: the last ones are the least alike. What fills no batch is
    left out of an epoch. Sentences are alike by their characters, rare ones weigh more.
    """

    CHUNK = 16

    def __init__(self, rows, batch_size):
        super().__init__(rows)
        self.size, self.vectors = batch_size, character_vectors(rows.captions)
        self.groups = {}  # data set -> its photos
        for index, name in enumerate(rows.stores.datasets):
            self.groups.setdefault(name, []).append(index)

    def __len__(self):
        return sum(len(group) // self.size * self.size for group in self.groups.values())

    def draw_order(self, draws) -> list[int]:
        batches, chunk = [], self.CHUNK * self.size
        for group in self.groups.values():
            shuffled = draws.sample(group, len(group) // self.size * self.size)
            for first in range(0, len(shuffled), chunk):
                batches += self.neighbours(shuffled[first : first + chunk])
        return [index for batch in draws.sample(batches, len(batches)) for index in batch]

    def neighbours(self, photos) -> list[list[int]]:
        batches = []
        while photos:
            order = np.argsort(-self.vectors[photos] @ self.vectors[photos[0]], kind="stable")
            photos = [photos[place] for place in order]
            batches.append(photos[: self.size])
            photos = photos[self.size :]
        return batches


def character_vectors(captions) -> np.ndarray:
    """(photos, 512), of length 1: in how many sentences of a photo which characters are, by their rarity (TF-IDF)."""
    counts = [Counter(character for text in texts for character in set(text)) for texts in captions]
    frequency = Counter(character for found in counts for character in found)
    draws = np.random.default_rng(0)
    directions = {
        character: draws.standard_normal(512, np.float32) * np.log((1 + len(counts)) / frequency[character])
        for character in sorted(frequency)
    }
    vectors = np.zeros((len(counts), 512), np.float32)
    for vector, found in zip(vectors, counts, strict=True):
        for character, times in found.items():
            vector += times * directions[character]
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


class InBatchCollator:
    """Items of `InBatchRows` -> all images of the batch with all its sentences, for `InBatchMatcher`.

    Without tags the sentences are the same for every image: grouped by length, (1, n, T), hardly padded. With tags
    every image has rows of its own (I, n, T).
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, items):
        regions = pad_regions([item["region_features"] for item in items], self.processor.max_regions)
        batch = {name: torch.from_numpy(array) for name, array in regions.items()}
        if batch["region_attention_mask"].all():
            del batch["region_attention_mask"]
        texts = EncodedTexts(self.processor, [item["text"] for item in items])
        tags = [item["tags"] for item in items] if "tags" in items[0] else []
        tag_ids = [self.processor.token_ids(" ".join(self.processor._first_tags(words))) for words in tags]
        groups = [{"numbers": torch.from_numpy(n)} | group for n, group in texts.batches(tag_ids, len(items))]
        return batch | {"texts": groups, "labels": torch.arange(len(items))}


class InBatchMatcher(MengziOscarPreTrainedModel):
    """A matcher that learns from all I x I pairs of a batch: each image finds its sentence, each sentence its image.

    The loss: cross entropy over the log-odds of every row and of every column (halved), and the published loss of pairs
    (own ones and wrong ones weigh the same), which gives the probabilities their meaning.
    """

    def __init__(self, matcher):
        super().__init__(matcher.config)
        self.matcher = matcher
        self.post_init()

    def _init_weights(self, module):
        pass  # the matcher comes as it is

    def forward(self, region_features, texts, labels, region_attention_mask=None):
        images = prepare_images(self.matcher, region_features, region_attention_mask)
        scores, numbers = [], torch.cat([group["numbers"] for group in texts])
        for group in texts:
            tensors = {name: tensor for name, tensor in group.items() if name != "numbers"}
            scores.append(log_odds(match_logits(self.matcher, images, **tensors)))
        scores = torch.cat(scores, dim=1)[:, numbers.argsort()]  # (I, I): from sorted by length to the batch's order
        choice = nn.functional.cross_entropy(scores, labels) + nn.functional.cross_entropy(scores.T, labels)
        own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        wrong = nn.functional.softplus(scores[~own]).sum() / max(1, len(scores) ** 2 - len(scores))  # none in a last
        pairs = nn.functional.softplus(-scores[own]).mean() + wrong  # batch of one image
        return {"loss": (choice + pairs) / 2, "scores": scores}
