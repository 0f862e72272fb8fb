"""Sentences without photos that teach a captioner to name what its tags say.

A row belongs to one tag word: a sentence that contains it, or that contains a word of its group with the tag word put
in its place ("在草地上奔跑的狗" -> "在草地上奔跑的狐狸"). So every word of the tags is learnt alike, also those that no
sentence has. Its tags are the word, half the time low-confidence ("狐狸？"), and some other nouns of the sentence. What
is learnt is to copy tags, in both registers. Where tags say whether a person was found (人, 无人), they say it of these
sentences, too: nobody is named whom they do not name. A row has no regions, or those of a photo that has nothing to do
with it: on photos unlike the training photos the regions mislead, and the tag must win.
"""

from dataclasses import dataclass

import jieba.posseg

from datasets_scripts.reading import raw_lines
from modeling_mengzi_oscar.labels.coco import object_words
from modeling_mengzi_oscar.labels.imagenet import DOUBT, GROUP_OF_WORD
from modeling_mengzi_oscar.labels.people import names_people

from .arguments import flag
from .collators import SeededRows

PERSON, NOBODY = "人", "无人"
# The words of tags; those of a group can stand for each other. What only COCO has stands for itself.
GROUPS = GROUP_OF_WORD | {word: GROUP_OF_WORD.get(word, word) for word in object_words().values() if word != PERSON}
KINDS = "小大黑白花老"  # before a noun of one character: 小狗 is a 狗
OTHER_NOUN = 0.4  # how often each other noun of the sentence is a tag, too
DOUBTED = 0.5  # how often the word is a low-confidence one
WRONG_TAG = 0.15  # how often there is a low-confidence tag that the sentence does not mention
OWN_SENTENCE = 0.5  # how often a word's own sentences are drawn from, if it has any, and not its group's


@dataclass
class TagSentenceArguments:
    """Flags of caption.py for tags, and sentences without photos that teach them."""

    sentences: str | None = flag(
        "Text file of sentences without photos, a line `<photo>#<number><TAB><sentence>` (COCO-CN's extension): rows "
        "that teach the captioner to name its tags. Needs --objective dense and --features.",
        default=None,
    )
    sentence_rounds: int = flag("Number of rows made from --sentences per tag word and epoch.", default=4)
    foreign_regions: float = flag(
        "Fraction of the rows of --sentences that get the regions of a random, unrelated photo; the others have none.",
        default=0.6,
    )
    tag_dropout: float = flag("Probability that a training photo comes without its tags.", default=0.0)
    sentences_per_photo: int | None = flag(
        "dense: number of a photo's sentences that are drawn per epoch. If not given, all.", default=None
    )


def read_sentences(path) -> list[str]:
    """COCO-CN's file: `<photo>#<number><TAB><sentence>` a line.

    Raises:
        ValueError: names the file that has no such line, or the row that is no UTF-8.
    """
    sentences = [text.split("\t", 1)[1].strip().rstrip("。") for _, text in raw_lines(path) if "\t" in text]
    if not any(sentences):
        raise ValueError(f"--sentences {path}: no line is <photo>#<number>, a tab, and a sentence")
    return sentences


def find_tag_words(sentence) -> tuple[list[tuple[int, int, str]], list[str]]:
    """Where the words of the tags stand, (start, end, word), kinds included (小狗), and its nouns, as jieba cuts."""
    tag_words, nouns, start = [], [], 0
    for token, kind in jieba.posseg.cut(sentence):
        end = start + len(token)
        word = token[1:] if len(token) == 2 and token[0] in KINDS and token not in GROUPS else token
        if word in GROUPS:
            tag_words.append((end - len(word), end, word))
        elif kind.startswith("n"):
            nouns.append(token)
        start = end
    return tag_words, nouns


class PhotosAndTagSentences(SeededRows):
    """The rows of a `CaptionRows`, then `rounds` rows for each tag word; of P photos and W words:

        index    0 .. P - 1      P .. P + W - 1             P + W .. P + 2W - 1        ..
        row      of photo 0 ..   a sentence of word 0 ..    another of word 0 ..       `rounds` times

    The photos' sentences begin as they do with their photos, the others as the detailed style does, where there is one.
    `foreign_regions`: share of the sentences that get regions, of a random photo.
    """

    def __init__(self, photos, sentences, rounds, foreign_regions=0.6):
        super().__init__(photos.seed)
        self.photos, self.rounds, self.foreign_regions = photos, rounds, foreign_regions
        styles = {}  # start token -> sentences
        for start, captions in zip(photos.starts, photos.references, strict=True):
            styles.setdefault(start, []).extend(captions)
        opens = (photos.processor.styles or {}).get("detailed", photos.tokenizer.cls_token)
        styles.setdefault(photos.tokenizer.convert_tokens_to_ids(opens), []).extend(sentences)
        self.says_nobody = NOBODY in (photos.labels or ())
        jieba.setLogLevel("WARNING")
        # start token -> word or group -> [(text, begin, end, nouns)]: text[begin:end] is the word, or one of its group
        self.sentences = {start: {} for start in styles}
        for start, texts in styles.items():
            for text in dict.fromkeys(texts):
                tag_words, nouns = find_tag_words(text)
                for begin, end, word in tag_words:
                    for key in (word, GROUPS[word]):
                        self.sentences[start].setdefault(key, []).append((text, begin, end, nouns))
        with_sentences = {key for sentences in self.sentences.values() for key in sentences}
        self.words = [word for word, group in GROUPS.items() if group in with_sentences]

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        self.photos.set_epoch(epoch)

    def __len__(self):
        return len(self.photos) + self.rounds * len(self.words)

    def __getitem__(self, index):
        if index < len(self.photos):
            return self.photos[index]
        draws, word = self.draws(index), self.words[(index - len(self.photos)) % len(self.words)]
        group = GROUPS[word]
        start = draws.choice([start for start, sentences in self.sentences.items() if group in sentences])
        sentence, nouns = self.sentence(word, start, draws)
        [ids] = self.photos.encode([sentence], start)
        tags = [word + DOUBT * (draws.random() < DOUBTED), *(noun for noun in nouns if draws.random() < OTHER_NOUN)]
        tags += [wrong + DOUBT for wrong in draws.sample(self.words, draws.random() < WRONG_TAG)]
        if self.says_nobody:
            tags = [*(tag for tag in tags if tag != PERSON), PERSON if names_people(sentence) else NOBODY]
        regions = self.photos.regions(draws.randrange(len(self.photos)), draws)["region_features"]
        return {
            "captions": [ids],
            "inputs": [self.photos.corrupt(ids, draws)],
            "tags": self.photos.processor.tag_ids(draws.sample(tags, len(tags))),
            "region_features": regions if draws.random() < self.foreign_regions else regions[:0],
        }

    def sentence(self, word, start, draws) -> tuple[str, list[str]]:
        """A sentence of a style with the word in it, and its other nouns."""
        sentences = self.sentences[start]
        own = word in sentences and draws.random() < OWN_SENTENCE
        text, begin, end, nouns = draws.choice(sentences[word if own else GROUPS[word]])
        sentence = text[:begin] + word + text[end:]
        return f"{sentence.rstrip('。')}。", nouns


def rows_with_tag_sentences(rows, options, caption_rows):
    """Training rows of a split as `options` (`TagSentenceArguments`) has them.

    `caption_rows` makes the `CaptionRows` of a split; it takes further settings of theirs as keywords.
    """
    sentences = read_sentences(options.sentences) if options.sentences else []
    photos = caption_rows(rows, tag_dropout=options.tag_dropout, sentences_per_photo=options.sentences_per_photo)
    if not sentences:
        return photos
    return PhotosAndTagSentences(photos, sentences, options.sentence_rounds, options.foreign_regions)
