"""How long the sentences of a captioner are: chosen from those it learns from, and noted in what is saved."""

from tqdm.auto import tqdm

from .report import say

SHARE = 0.99  # of the sentences fit into the length that is chosen
ENDS = 2  # [CLS] and [SEP]
TOKENIZED = 10_000  # sentences at a time


def set_lengths(options, captioner, processor, rows):
    """Chooses what of `--max_seq_a_length` and `--max_gen_length` was not given, and says which.

    The choice is the length that 99 % of the sentences have at the most, no less than the checkpoint writes, and no
    more than its positions leave beside the tags. Captioner and processor carry it from here on: as `max_length` of
    the generation config (or as the length of `--style`), and where the sentences reach so far as the position behind
    which the tags begin.

    Sentences that a column `style` says to begin otherwise than with [CLS] have a length of their own.

    Args:
        rows: training split with `captions`, and `style` if any.
    """
    longest = captioner.config.max_position_embeddings - processor.tag_room
    plain, own = lengths_of_styles(rows, processor)
    learnt = [plain, *own.values()]
    written = own.pop(options.style, plain)
    chosen = {
        "max_seq_a_length": (learnt, caption_length(captioner, processor)),
        "max_gen_length": ([written], caption_length(captioner, processor, options.style)),
    }
    said = []
    for name, (groups, least) in chosen.items():
        why, value = f"--{name}", getattr(options, name)
        if value is None:
            value = max(*map(length_of_most, groups), least)
            why = f"{'as before' if value == least else 'chosen'}: {SHARE:.0%} fit"
        if value > longest:
            value, why = longest, "the checkpoint has no more positions beside its tags"
        setattr(options, name, value)
        found = [length for group in groups for length in group]
        longer = sum(length > value for length in found)
        what = "sentences are cut at" if name == "max_seq_a_length" else "captions have at most"
        said.append(f"{what} {value} ({why}; {longer:,} of {len(found):,} training sentences are longer)")
    for style, found in own.items():
        least = caption_length(captioner, processor, style)
        value = min(max(length_of_most(found), least), options.max_seq_a_length)
        processor.style_lengths = (processor.style_lengths or {}) | {style: value}
        said.append(f"{style} ones at most {value}")
    say(f"lengths in tokens with [CLS] and [SEP]: {'; '.join(said)}")
    begin_new_positions(options.max_seq_a_length, captioner, processor)
    note_lengths(options, captioner, processor)


def lengths_of_styles(rows, processor):
    """Lengths of the sentences that begin with [CLS], and {style: lengths} of those that begin in another way."""
    styles = rows["style"] if "style" in rows.column_names else [None] * len(rows)
    plain, own = [], {}
    for style, sentences in zip(styles, rows["captions"], strict=True):
        begins = processor.begin(style, 1).item() if style else processor.tokenizer.cls_token_id
        (plain if begins == processor.tokenizer.cls_token_id else own.setdefault(style, [])).extend(sentences)
    return tokens_of(plain, processor), {style: tokens_of(found, processor) for style, found in own.items()}


def begin_new_positions(length, captioner, processor):
    """Position embeddings that no training has reached begin as the last one that one did.

        0 … 27     28        29         30 … 39       40 …
        learnt     the end of each      never         tags
                   sentence cut at 30   trained

    The last two of a checkpoint that cut its sentences say little but "[SEP] comes now", and the random ones behind
    them nothing: captions of 28 characters ended inside a word after 180 steps of training from there.
    """
    learnt = processor.learnt_length
    if learnt is not None and length > learnt:
        rows, last = captioner.bert.embeddings.position_embeddings.weight.data, learnt - ENDS
        rows[last : min(length, processor.tag_position_offset)] = rows[last - 1].clone()


def note_lengths(options, captioner, processor):
    """Writes the lengths into what is saved: `max_length`, those of the styles, where the tags begin."""
    length, room, own = options.max_gen_length, processor.tag_room, dict(processor.style_lengths or {})
    if options.style in own:
        own[options.style] = length
    else:
        captioner.generation_config.max_length, captioner.generation_config.max_new_tokens = length, None
        own = {style: max(length, other) for style, other in own.items()}  # it may write as long in the others
    processor.style_lengths = own or None
    processor.learnt_length = max(options.max_seq_a_length, processor.learnt_length or 0)
    begin = max(processor.tag_position_offset, options.max_seq_a_length, length, *own.values())
    processor.tag_position_offset = captioner.config.tag_position_offset = begin
    processor.max_length = max(processor.max_length, begin + room)


def set_search(options, captioner, processor):
    """Beams and length of the captions, where the command line says nothing: the checkpoint's."""
    if options.max_gen_length is None:
        options.max_gen_length = caption_length(captioner, processor, options.style)
    if options.num_beams is None:
        options.num_beams = captioner.generation_setting("num_beams", None, captioner.open_settings(None, {})) or 1


def caption_length(captioner, processor, style=None) -> int:
    """Tokens of a caption at the most as a checkpoint says it, of one of its styles where that has its own."""
    return (processor.style_lengths or {}).get(style) or captioner.caption_length(1, None, {})


def tokens_of(sentences, processor) -> list[int]:
    """Lengths in tokens with [CLS] and [SEP]."""
    lengths = []
    bar = tqdm(range(0, len(sentences), TOKENIZED), "lengths", leave=False, disable=len(sentences) <= TOKENIZED)
    for first in bar:
        ids = processor.tokenizer(sentences[first : first + TOKENIZED], add_special_tokens=False)["input_ids"]
        lengths += [len(row) + ENDS for row in ids]
    return lengths


def length_of_most(lengths) -> int:
    """The least length that `SHARE` of them do not exceed; 0 where there are none."""
    return sorted(lengths)[-(-len(lengths) * round(100 * SHARE) // 100) - 1] if lengths else 0
