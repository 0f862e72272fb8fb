"""Decoding with a [MASK] query, on top of transformers' GenerationMixin: no search algorithm of our own.

Oscar predicts the next token at a [MASK] put after the caption so far; tags and regions never attend to the
caption, so their states do not change from step to step. They are encoded once per image, their keys and values are
kept once per image, whatever the number of beams, and a step runs two queries: the last token and the [MASK].
The numbers are those of the original's exact mode (full recomputation), which `use_cache=False` still does.
"""

import copy
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, GenerationMixin

from .processing_mengzi_oscar import pack_captions

# The published inference: what neither the call nor a file says. A search with early_stopping="never" stops when
# nothing can improve any more, as the original's does.
PUBLISHED = {"num_beams": 5, "max_length": 20, "early_stopping": "never"}
MAX_CAPTIONS = 100  # beams or captions of an image: the memory of a search grows with them
DECIMALS = ("temperature", "repetition_penalty", "length_penalty", "diversity_penalty", "top_p", "min_p")
NUMBERS = (*DECIMALS, "top_k", "min_length", "min_new_tokens", "no_repeat_ngram_size")


def check_whole(name: str, value, low: int, high: int | None = None) -> None:
    """
    Raises:
        ValueError: not a whole number from `low` to `high`.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        to = "on" if high is None else f"to {high}"
        raise ValueError(f"{name} must be a whole number from {low} {to}, not {value!r}")


def check_shapes(region_features, **others) -> None:
    """What `generate` takes: region_features (B, R, D), the others (B, ...) or None.

    Raises:
        ValueError: names the one that does not fit.
    """
    found = {"region_features": region_features, **others}
    for name, tensor in found.items():
        if tensor is not None and not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}: generate takes tensors (return_tensors='pt')")
    if region_features is None or region_features.ndim != 3:
        shape = "none" if region_features is None else f"the shape {tuple(region_features.shape)}"
        raise ValueError(f"generate needs region_features (B, R, D), got {shape}")
    for name, tensor in others.items():
        if tensor is not None and (tensor.ndim != 2 or len(tensor) != len(region_features)):
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)}: {len(region_features)} images need as many rows"
            )
    for name, of in (("region_attention_mask", "region_features"), ("tag_attention_mask", "tag_input_ids")):
        if found[name] is not None and found[of] is not None and found[name].shape[1] != found[of].shape[1]:
            raise ValueError(f"{name} has {found[name].shape[1]} columns, {of} has {found[of].shape[1]}")


class PrefixCache:
    """What the steps of a caption read: one row of keys and values per image, which all of its beams share.

    A row holds the P slots of the encoded tags and regions, then a slot per beam for each position of the captions. A
    slot is written once and never moves. Two beams after the first step, which wrote [CLS] and asked at a [MASK]:

              prefix   | position 0 | position 1 | position 2 | ...
        slot  0 .. P-1 | b0  b1     | b0  b1     | b0  b1     |
                 P     |[CLS][CLS]  |[MASK][MASK]|            |     the next step writes its tokens over the [MASK]s

    `history` says which slots the caption of a beam went through. transformers' searches move captions between beams;
    whose caption a beam continues is read from its tokens, so that nothing depends on how, or under what name, a
    release of transformers reorders its own caches.

    Args:
        num_layers: of the encoder. prefix_mask: (B, P), 1 = may be seen. max_length: positions of the captions.
        mask_token_id: asks for a token.
    """

    def __init__(self, num_layers: int, prefix_mask: torch.Tensor, max_length: int, mask_token_id: int):
        self.layers = [PrefixCacheLayer(self) for _ in range(num_layers)]
        self.prefix_mask, self.max_length, self.mask_token_id = prefix_mask.bool(), max_length, mask_token_id
        self.captions = None  # (B, beams, C) as they were in the last step
        self.history = None  # (B, beams, slots behind the prefix)
        self.start = None  # the slot from which on this step writes; None while the prefix is encoded

    def begin_step(self, input_ids: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor, torch.BoolTensor]:
        """Captions so far (B x beams, C) -> what is new of them, with a [MASK] behind, and whom the new ones see.

        Returns:
            Ids (B x beams, N) and positions (N,) of the new tokens and the [MASK], and (B, N x beams, P + slots).
        """
        images = len(self.prefix_mask)
        captions = input_ids.unflatten(0, (images, -1))  # (B, beams, C)
        beams, length = captions.shape[1:]
        if self.captions is None:
            written = 0
            self.history = self.prefix_mask.new_zeros((images, beams, beams * self.max_length))
            for layer in self.layers:
                layer.make_room(beams * self.max_length)
        else:
            written = self.captions.shape[2]
            earlier = self.beams_continued(captions[..., :written])
            self.history = self.history.take_along_dim(earlier[:, :, None], dim=1)
        self.captions, self.start = captions, self.prefix_mask.shape[1] + beams * written

        slots = torch.arange(beams * self.max_length, device=input_ids.device)
        positions = torch.arange(written, length + 1, device=input_ids.device)  # (N,), the last is the [MASK]'s
        slot_position, slot_beam = slots // beams, slots % beams
        new = (slot_position >= written) & (slot_position <= positions[:, None])  # (N, slots)
        own = slot_beam == torch.arange(beams, device=input_ids.device)[:, None]  # (beams, slots)
        sees = new[:, None] & own  # (N, beams, slots)
        seen = (self.history[:, None] | sees).flatten(1, 2)  # (B, N x beams, slots)
        last_token = sees[-2]  # it sees all that is new but the [MASK]
        self.history = self.history | last_token
        mask_token = input_ids.new_full((len(input_ids), 1), self.mask_token_id)
        asked = torch.cat([input_ids[:, written:], mask_token], dim=1)
        return asked, positions, torch.cat([self.prefix_mask[:, None].expand(-1, seen.shape[1], -1), seen], dim=2)

    def beams_continued(self, captions: torch.LongTensor) -> torch.LongTensor:
        """For the captions (B, beams, C) of this step the beams (B, beams) of the last step that had the same ones."""
        same = (captions[:, :, None] == self.captions[:, None]).all(dim=-1)  # (B, beams now, beams then)
        if not same.any(dim=-1).all():
            raise ValueError("a caption continues none of the last step: this kind of search needs use_cache=False")
        stays = torch.eye(same.shape[1], dtype=torch.int, device=same.device)
        return (2 * same.int() + same * stays).argmax(dim=-1)  # of equal captions its own

    def by_image(self, states: torch.Tensor) -> torch.Tensor:
        """(B x beams, N, H) -> (B, N x beams, H): the queries of an image together, position by position."""
        return states.unflatten(0, (len(self.prefix_mask), -1)).transpose(1, 2).flatten(1, 2)

    def by_beam(self, states: torch.Tensor, length: int) -> torch.Tensor:
        """(B, N x beams, H) -> (B x beams, N, H), N = `length`."""
        return states.unflatten(1, (length, -1)).transpose(1, 2).flatten(0, 1)


class PrefixCacheLayer:
    """The keys and values of one layer, each (B, heads, P + slots, d): the `memory` of `MengziOscarLayer`."""

    def __init__(self, cache: PrefixCache):
        self.cache, self.keys, self.values = cache, None, None

    def make_room(self, slots: int):
        self.keys, self.values = (F.pad(states, (0, 0, 0, slots)) for states in (self.keys, self.values))

    def attend(self, attention, query, key, value, attention_mask, output_attentions):
        start = self.cache.start
        if start is None:
            self.keys, self.values = key, value
        else:
            self.keys[:, :, start : start + key.shape[2]] = key
            self.values[:, :, start : start + key.shape[2]] = value
        return attention.attend(query, self.keys, self.values, attention_mask, output_attentions)


def published_generation_config(config, max_length=PUBLISHED["max_length"], num_beams=PUBLISHED["num_beams"]):
    """The published inference as a `GenerationConfig`, for a checkpoint that shall say it in a file."""
    return GenerationConfig(
        max_length=max_length,
        num_beams=num_beams,
        early_stopping=PUBLISHED["early_stopping"],
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )


class MaskQueryGenerationMixin(GenerationMixin):
    """`generate` for a head whose `forward` reads the next token at a [MASK] after the caption."""

    @torch.no_grad()
    def generate(
        self,
        region_features=None,
        region_attention_mask=None,
        tag_input_ids=None,
        tag_attention_mask=None,
        input_ids=None,
        mask_token_id=None,
        generation_config=None,
        **kwargs,
    ):
        """Captions of a batch of images; transformers' own arguments and return values.

        Args:
            region_features: (B, R, D) float.
            region_attention_mask: (B, R), 1 = a region; missing = all.
            tag_input_ids: (B, L) ids of the tags, each row ending with its own [SEP], then padding.
            tag_attention_mask: (B, L); missing = all.
            input_ids: (B, C) beginnings of the captions, [CLS] first, the same length in every row; missing = [CLS].
            mask_token_id: overrides the config's.
            generation_config, **kwargs: as in `GenerationMixin.generate` (`num_beams`, `max_length`, ...). `max_length`
                counts [CLS] and the final [SEP]. Tags start at position max(`tag_position_offset`, `max_length`), as
                in the original's inference. What neither the call nor the checkpoint's generation_config.json says is
                the published inference: 5 beams (1 when sampling; always 1 when streaming), 20 tokens, a search that
                stops when nothing can improve.

        Raises:
            ValueError: no regions, or regions of another width than the model's `img_feature_dim`; shapes that do not
                fit one another; a number of captions or a length that cannot be.
        """
        check_shapes(
            region_features=region_features,
            region_attention_mask=region_attention_mask,
            tag_input_ids=tag_input_ids,
            tag_attention_mask=tag_attention_mask,
            input_ids=input_ids,
        )
        batch_size, device = region_features.shape[0], region_features.device
        settings = self.open_settings(generation_config, kwargs)
        self.check_settings(
            settings | {name: value for name, value in kwargs.items() if value is not None},
            generation_config,
            begun=1 if input_ids is None else input_ids.shape[1],
        )
        if input_ids is None:
            bos_token_id = self.generation_setting("bos_token_id", generation_config, settings | kwargs)
            input_ids = torch.full((batch_size, 1), bos_token_id, device=device)
        if tag_input_ids is None:
            tag_input_ids = torch.empty((batch_size, 0), dtype=torch.long, device=device)
        if tag_attention_mask is None:
            tag_attention_mask = torch.ones_like(tag_input_ids)
        if region_attention_mask is None:
            region_attention_mask = torch.ones(region_features.shape[:2], dtype=torch.long, device=device)
        if mask_token_id is None:
            mask_token_id = self.config.mask_token_id
        length = self.caption_length(input_ids.shape[1], generation_config, kwargs)
        prefix = {
            "input_ids": tag_input_ids,
            "attention_mask": tag_attention_mask,
            "position_ids": self.tag_positions(tag_input_ids, length),
            "region_features": region_features,
            "region_attention_mask": region_attention_mask,
        }
        if kwargs.get("use_cache", getattr(generation_config, "use_cache", None)) is not False:
            # Our cache travels as a model input. The library's own is switched off: its name, form and place in the
            # bookkeeping change from release to release.
            settings["use_cache"] = False
            inputs = {"prefix_cache": self.encode_prefix(**prefix, max_length=length, mask_token_id=mask_token_id)}
        else:
            names = ("input_ids", "attention_mask", "position_ids")
            inputs = {f"tag_{name}" if name in names else name: tensor for name, tensor in prefix.items()}
            inputs["mask_token_id"] = mask_token_id
        if self.generation_setting("max_new_tokens", generation_config, kwargs) is not None:
            # Said one way: transformers warns of a file's max_length beside it, and takes a file's max_new_tokens
            # for more than the length that a call says.
            kwargs.pop("max_new_tokens", None)
            settings |= {"max_length": length, "max_new_tokens": None}
            if generation_config is not None and self.generation_config.max_new_tokens is not None:
                settings |= {"max_length": None, "max_new_tokens": length - input_ids.shape[1]}
        for name in DECIMALS:  # transformers takes 2.0 for a temperature, not 2
            value = self.generation_setting(name, generation_config, kwargs)
            if isinstance(value, Real) and not isinstance(value, (bool, float)):
                settings[name] = float(value)
        if generation_config is None:
            kwargs |= settings
        else:  # transformers warns when settings come both ways
            generation_config = copy.deepcopy(generation_config)
            for name, value in settings.items():
                setattr(generation_config, name, value)
                kwargs.pop(name, None)
        return super().generate(input_ids=input_ids, generation_config=generation_config, **inputs, **kwargs)

    def generation_setting(self, name, generation_config, kwargs):
        """What the call says, else its `generation_config`, else the checkpoint's; None where nobody says anything."""
        value = kwargs.get(name)
        for settings in (generation_config, self.generation_config):
            value = getattr(settings, name, None) if value is None else value
        return value

    def open_settings(self, generation_config, kwargs) -> dict:
        """The published inference, and the config's tokens, as far as nobody says anything else."""

        def said(name):
            return self.generation_setting(name, generation_config, kwargs)

        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        settings = {name: getattr(self.config, name) for name in tokens if said(name) is None}
        if kwargs.get("streamer") is not None:
            if kwargs.get("num_beams", getattr(generation_config, "num_beams", None)) is None:
                settings["num_beams"] = 1  # whatever a file says: beams cannot be streamed
        elif said("num_beams") is None and not said("do_sample"):
            settings["num_beams"] = PUBLISHED["num_beams"]
        if said("max_length") is None and said("max_new_tokens") is None:
            settings["max_length"] = PUBLISHED["max_length"]
        if (settings.get("num_beams") or said("num_beams") or 1) == 1:
            # About beams only: transformers warns of it, so what the checkpoint says for beams is left out.
            if said("early_stopping") == self.generation_config.early_stopping:
                settings["early_stopping"] = False
        elif said("early_stopping") is None:
            settings["early_stopping"] = PUBLISHED["early_stopping"]
        return settings

    def caption_length(self, begun: int, generation_config, kwargs) -> int:
        """Tokens of a caption at the most, the `begun` ones included, however it is said.

        The call goes before its `generation_config`, that before the checkpoint's; who says both means new tokens.
        """
        said_by = [kwargs, *(vars(config) for config in (generation_config, self.generation_config) if config)]
        for said in said_by:
            if said.get("max_new_tokens") is not None:
                return begun + said["max_new_tokens"]
            if said.get("max_length") is not None:
                return said["max_length"]
        return PUBLISHED["max_length"]

    def check_settings(self, kwargs, generation_config=None, begun=1, tags=0) -> None:
        """What can be said of a search before anything is computed.

        Args:
            begun: tokens that stand already, [CLS] among them. tags: positions that their tags take.

        Raises:
            ValueError: names the setting, and what is allowed.
        """

        def said(name):
            return self.generation_setting(name, generation_config, kwargs)

        for name in NUMBERS:
            if said(name) is not None and not isinstance(said(name), Real):
                raise ValueError(f"{name} must be a number, not {said(name)!r}")
        counts = {name: 1 if said(name) is None else said(name) for name in ("num_beams", "num_return_sequences")}
        for name, value in counts.items():
            check_whole(name, value, 1, MAX_CAPTIONS)
        beams, returned = counts.values()
        if returned > beams and not (beams == 1 and said("do_sample")):
            raise ValueError(f"num_return_sequences is {returned}: at most num_beams, {beams}, unless it is sampled")
        if said("max_new_tokens") is not None:
            check_whole("max_new_tokens", said("max_new_tokens"), 1)
        length, longest = self.caption_length(begun, generation_config, kwargs), self.config.max_position_embeddings
        check_whole("max_length", length, begun + 1)
        if length > longest - tags:
            behind = f" {tags} of them for tags:" if tags else ""
            raise ValueError(
                f"max_length is {length}, but this model has {longest} positions,{behind} "
                f"at most {longest - tags} tokens with start and end are possible"
            )

    def tag_start(self, caption_length: int) -> int:
        """Position of the first tag beside captions of that length at the most."""
        return max(self.config.tag_position_offset, caption_length)

    def tag_positions(self, tag_input_ids, caption_length: int) -> torch.LongTensor:
        """(B, L)

        Raises:
            ValueError: the tags do not fit behind such captions.
        """
        start, number = self.tag_start(caption_length), tag_input_ids.shape[1]
        if start + number > self.config.max_position_embeddings:
            raise ValueError(
                f"{number} tag tokens from position {start} on do not fit into the "
                f"{self.config.max_position_embeddings} positions of this model: fewer tags or a smaller max_length do"
            )
        return torch.arange(start, start + number, device=tag_input_ids.device).expand_as(tag_input_ids)

    def encode_prefix(
        self,
        input_ids,
        attention_mask,
        position_ids,
        region_features,
        region_attention_mask,
        max_length,
        mask_token_id,
    ) -> PrefixCache:
        """Runs tags (B, L) and regions (B, R, D) once, for captions of `max_length` tokens at the most."""
        bert, mask = self.base_model, torch.cat([attention_mask, region_attention_mask], dim=1)
        cache = PrefixCache(self.config.num_hidden_layers, mask, max_length, mask_token_id)
        tags = bert.embeddings(input_ids, torch.ones_like(input_ids), position_ids)
        states = torch.cat([tags, bert.embed_regions(region_features)], dim=1)  # (B, P, H)
        bert.encoder(states, bert.who_sees_whom(mask), memories=cache.layers)
        return cache

    def next_tokens(self, input_ids, cache: PrefixCache, output_attentions=False, output_hidden_states=False):
        """Captions so far (B x beams, C) -> logits of the next token of each, (B x beams, 1, V).

        And the states and attention weights of the layers, as `MengziOscarEncoder` gives them: a row per image.
        """
        bert = self.base_model
        asked, positions, seen = cache.begin_step(input_ids)
        states = cache.by_image(bert.embeddings(asked, position_ids=positions[None]))
        seen = bert.who_sees_whom(seen, output_attentions)
        last, states, attentions = bert.encoder(states, seen, cache.layers, output_attentions, output_hidden_states)
        return self.get_logits(cache.by_beam(last, len(positions))[:, -1:]), states, attentions

    def prepare_inputs_for_generation(
        self,
        input_ids,
        prefix_cache=None,
        region_features=None,
        region_attention_mask=None,
        tag_input_ids=None,
        tag_attention_mask=None,
        tag_position_ids=None,
        mask_token_id=None,
        output_attentions=None,
        output_hidden_states=None,
        **of_the_library,  # attention_mask, position_ids, use_cache, ...: nothing here depends on them
    ):
        """Inputs of `forward` for one step: with the cache the caption so far, else everything and a [MASK]."""
        wanted = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        if prefix_cache is not None:
            return {"input_ids": input_ids, "prefix_cache": prefix_cache} | wanted
        caption = torch.cat([input_ids, input_ids.new_full((len(input_ids), 1), mask_token_id)], dim=1)
        positions = torch.arange(caption.shape[1], device=input_ids.device).expand_as(caption)
        # The [MASK] stands last among the text: attention follows positions and masks, not the order of the slots.
        return {
            "input_ids": torch.cat([tag_input_ids, caption], dim=1),
            "token_type_ids": torch.cat([torch.ones_like(tag_input_ids), torch.zeros_like(caption)], dim=1),
            "position_ids": torch.cat([tag_position_ids, positions], dim=1),
            "attention_mask": torch.cat([tag_attention_mask, torch.ones_like(caption)], dim=1),
            "region_features": region_features,
            "region_attention_mask": region_attention_mask,
            "logits_to_keep": 1,
        } | wanted

    @torch.no_grad()
    def score_captions(self, captions, region_features, region_attention_mask=None, tags=None, tag_position=None):
        """Finished captions read back in one pass: how likely each token was, and which regions it was read from.

        Args:
            captions: per image a list of token id lists, [CLS] first.
            region_features: (B, R, D). region_attention_mask: (B, R).
            tags: per image the token ids of the tags with their [SEP], or None; they start at `tag_position`, by
                default the config's `tag_position_offset`.

        Returns:
            Two lists in the order of `captions`, flattened: log-probabilities (n,) of the tokens after [CLS], and
            (n, R) attention of each token's [MASK] query to the regions, last layer, mean over the heads.
        """
        device = region_features.device
        if region_attention_mask is None:
            region_attention_mask = torch.ones(region_features.shape[:2], dtype=torch.long, device=device)
        packed = pack_captions(
            captions,
            region_attention_mask.cpu(),
            self.config.mask_token_id,
            self.config.pad_token_id,
            tags=tags,
            tag_position_offset=tag_position or self.config.tag_position_offset,
        )
        packed = {name: tensor.to(device) for name, tensor in packed.items()}
        labels = packed.pop("labels")
        output = self.base_model(**packed, region_features=region_features, output_hidden_states=True)
        asked = labels != -100  # (B, T)
        text = asked.shape[1]
        log_probs = self.get_logits(output.last_hidden_state[:, :text][asked]).float().log_softmax(dim=-1)
        log_probs = log_probs.gather(1, labels[asked][:, None]).squeeze(1)
        seen = self.base_model.who_sees_whom(packed["attention_mask"], output_attentions=True)
        attention = self.base_model.encoder.layer[-1].attention.self
        _, weights = attention(output.hidden_states[-2], seen, output_attentions=True)  # (B, heads, S, S)
        weights = weights.float().mean(dim=1)[:, :text, text:][asked]  # (all tokens, R)
        lengths = [len(ids) - 1 for row in captions for ids in row]
        return log_probs.split(lengths), weights.split(lengths)
