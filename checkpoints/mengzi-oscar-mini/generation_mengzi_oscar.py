"""Decoding with a [MASK] query, on top of transformers' GenerationMixin: no search algorithm of our own.

Oscar predicts the next token at a [MASK] put after the caption so far; tags and regions never see the caption (their
states do not change from step to step). So the tags and regions of an image are encoded once, their keys and values
are kept once per image, whatever the number of beams, and a step runs two queries: the last token and the [MASK].
The numbers are those of the original's exact mode (full recomputation), which `use_cache=False` still does.
"""

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache

from .processing_mengzi_oscar import pack_captions


class PrefixCache(Cache):
    """What the steps of a caption read: one row of keys and values per image, which all of its beams share.

    A row holds P slots of the encoded tags and regions, then a slot per beam for each position of the captions. A slot
    is written once and never moves: `history` says which slots a beam's caption went through, and choosing beams
    (`reorder_cache`) reorders only that table. The [MASK]s of a step stand where the tokens of the next step will be
    written.

    Args:
        prefix_mask: (B, P), 1 = may be seen. max_length: positions of the captions.
    """

    def __init__(self, num_layers: int, prefix_mask: torch.Tensor, max_length: int):
        super().__init__(layers=[])
        self.keys, self.values = [None] * num_layers, [None] * num_layers  # each (B, heads, P + slots, head size)
        self.prefix_mask, self.max_length = prefix_mask.bool(), max_length
        self.length = 0  # positions of the captions that are written, without the [MASK]
        self.history = None  # (B, beams, slots)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.history = self.history.flatten(0, 1)[beam_idx].view_as(self.history)

    def begin_step(self, rows: int, new: int) -> torch.BoolTensor:
        """Takes `new` positions per beam, the last one a [MASK]; returns (B, new x beams, slots), who sees what."""
        images, prefix = self.prefix_mask.shape
        beams = rows // images
        slots, device = beams * self.max_length, self.prefix_mask.device
        if self.history is None:
            self.history = torch.zeros((images, beams, slots), dtype=torch.bool, device=device)
            self.keys, self.values = (
                [F.pad(states, (0, 0, 0, slots)) for states in layers] for layers in (self.keys, self.values)
            )
        self.start = prefix + beams * self.length
        slot, beam = torch.arange(slots, device=device), torch.arange(beams, device=device)
        position = torch.arange(self.length, self.length + new, device=device)
        own = (slot // beams >= self.length) & (slot // beams <= position[:, None, None])  # (new, 1, slots)
        own = own & (slot % beams == beam[:, None])  # (new, beams, slots)
        seen = (self.history[:, None] | own).flatten(1, 2)
        self.history = self.history | own[-2]  # the tokens before the [MASK]
        self.length += new - 1
        return torch.cat([self.prefix_mask[:, None].expand(-1, seen.shape[1], -1), seen], dim=2)

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        if self.history is None:  # the prefix
            self.keys[layer_idx], self.values[layer_idx] = key_states, value_states
        else:
            end = self.start + key_states.shape[2]
            self.keys[layer_idx][:, :, self.start : end] = key_states
            self.values[layer_idx][:, :, self.start : end] = value_states
        return self.keys[layer_idx], self.values[layer_idx]

    def by_image(self, states: torch.Tensor) -> torch.Tensor:
        """(B x beams, T, H) -> (B, T x beams, H): the queries of an image together, position by position."""
        return states.unflatten(0, (len(self.prefix_mask), -1)).transpose(1, 2).flatten(1, 2)

    def by_beam(self, states: torch.Tensor, length: int) -> torch.Tensor:
        """(B, T x beams, H) -> (B x beams, T, H), T = `length`."""
        return states.unflatten(1, (length, -1)).transpose(1, 2).flatten(0, 1)


def published_generation_config(config, max_length=20, num_beams=5) -> GenerationConfig:
    """The published inference: beam 5, 20 tokens with [CLS] and [SEP], a search that stops when nothing can improve."""
    return GenerationConfig(
        max_length=max_length,
        num_beams=num_beams,
        early_stopping="never",
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
            input_ids: (B, C) captions begun already, [CLS] first, the same length in every row; missing = [CLS].
            mask_token_id: overrides the config's.
            generation_config, **kwargs: as in `GenerationMixin.generate` (`num_beams`, `max_length`, ...). `max_length`
                counts [CLS] and the final [SEP]. Tags start at position max(`tag_position_offset`, `max_length`), as
                in the original's inference.

        Raises:
            ValueError: no regions, or regions of another width than the model's `img_feature_dim`.
        """
        if region_features is None:
            raise ValueError("generate needs region_features (B, R, D)")
        batch_size, device = region_features.shape[0], region_features.device
        settings = generation_config if generation_config is not None else self.generation_config
        bos_token_id = next(
            i for i in (kwargs.get("bos_token_id"), settings.bos_token_id, self.config.bos_token_id) if i is not None
        )
        if input_ids is None:
            input_ids = torch.full((batch_size, 1), bos_token_id, device=device)
        if tag_input_ids is None:
            tag_input_ids = torch.empty((batch_size, 0), dtype=torch.long, device=device)
        if tag_attention_mask is None:
            tag_attention_mask = torch.ones_like(tag_input_ids)
        if region_attention_mask is None:
            region_attention_mask = torch.ones(region_features.shape[:2], dtype=torch.long, device=device)
        prefix = {
            "input_ids": tag_input_ids,
            "attention_mask": tag_attention_mask,
            "position_ids": self._tag_positions(tag_input_ids, input_ids, settings, kwargs),
            "region_features": region_features,
            "region_attention_mask": region_attention_mask,
        }
        use_cache = kwargs.get("use_cache", settings.use_cache)
        if use_cache is None or use_cache:
            max_length = self._length_limit(input_ids, settings, kwargs)
            inputs = {"past_key_values": self.encode_prefix(**prefix, max_length=max_length)}
        else:
            names = {"input_ids": "tag_input_ids", "attention_mask": "tag_attention_mask"}
            names["position_ids"] = "tag_position_ids"
            inputs = {names.get(name, name): tensor for name, tensor in prefix.items()}
        self._mask_token_id = mask_token_id if mask_token_id is not None else self.config.mask_token_id
        return super().generate(input_ids=input_ids, generation_config=generation_config, **inputs, **kwargs)

    @staticmethod
    def _length_limit(input_ids, settings, kwargs) -> int:
        """Tokens of a caption at the most, as transformers counts them (20 where nothing is said)."""
        max_new_tokens = kwargs.get("max_new_tokens", settings.max_new_tokens)
        if max_new_tokens is not None:
            return input_ids.shape[1] + max_new_tokens
        return kwargs.get("max_length", settings.max_length) or 20

    def _tag_positions(self, tag_input_ids, input_ids, settings, kwargs):
        start = max(self.config.tag_position_offset, self._length_limit(input_ids, settings, kwargs))
        if start + tag_input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"{tag_input_ids.shape[1]} tag tokens from position {start} on do not fit into the "
                f"{self.config.max_position_embeddings} positions of this model: pass fewer tags"
            )
        return torch.arange(start, start + tag_input_ids.shape[1], device=tag_input_ids.device).expand_as(tag_input_ids)

    def encode_prefix(
        self, input_ids, attention_mask, position_ids, region_features, region_attention_mask, max_length
    ):
        """Runs tags (B, L) and regions (B, R, D) once; returns the `PrefixCache` that the caption steps read."""
        mask = torch.cat([attention_mask, region_attention_mask], dim=1)
        cache = PrefixCache(self.config.num_hidden_layers, mask, max_length)
        self.base_model(
            input_ids=input_ids,
            attention_mask=mask,
            token_type_ids=torch.ones_like(input_ids),
            position_ids=position_ids,
            region_features=region_features,
            past_key_values=cache,
        )
        return cache

    def prepare_inputs_for_generation(
        self,
        input_ids,
        past_key_values=None,
        region_features=None,
        region_attention_mask=None,
        tag_input_ids=None,
        tag_attention_mask=None,
        tag_position_ids=None,
        attention_mask=None,
        position_ids=None,
        logits_to_keep=None,
        next_sequence_length=None,
        is_first_iteration=None,
        use_cache=None,
    ):
        """One step: the caption tokens that the cache has not seen (or all of them), then a [MASK]."""
        rows, length = input_ids.shape
        mask_token = input_ids.new_full((rows, 1), self._mask_token_id)
        if past_key_values is None:
            caption = torch.cat([input_ids, mask_token], dim=1)
            positions = torch.arange(length + 1, device=input_ids.device).expand(rows, -1)
            # The [MASK] stands last among the text: attention follows positions and masks, not the order of the slots.
            return {
                "input_ids": torch.cat([tag_input_ids, caption], dim=1),
                "token_type_ids": torch.cat([torch.ones_like(tag_input_ids), torch.zeros_like(caption)], dim=1),
                "position_ids": torch.cat([tag_position_ids, positions], dim=1),
                "attention_mask": torch.cat([tag_attention_mask, torch.ones_like(caption)], dim=1),
                "region_features": region_features,
                "region_attention_mask": region_attention_mask,
                "logits_to_keep": 1,
            }
        seen = past_key_values.get_seq_length()
        return {
            "input_ids": torch.cat([input_ids[:, seen:], mask_token], dim=1),
            "position_ids": torch.arange(seen, length + 1, device=input_ids.device).expand(rows, -1),
            "attention_mask": past_key_values.begin_step(rows, length + 1 - seen),
            "past_key_values": past_key_values,
            "logits_to_keep": 1,
        }

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
        states = output.last_hidden_state[:, : asked.shape[1]][asked]
        log_probs = self.get_logits(states).float().log_softmax(dim=-1)
        log_probs = log_probs.gather(1, labels[asked][:, None]).squeeze(1)
        weights = self._attention_of_last_layer(output.hidden_states[-2], packed["attention_mask"])
        weights = weights[:, : asked.shape[1], asked.shape[1] :][asked]  # (all tokens, R)
        lengths = [len(ids) - 1 for row in captions for ids in row]
        return log_probs.split(lengths), weights.split(lengths)

    def _attention_of_last_layer(self, hidden_states, attention_mask):
        """Attention (B, S, S), mean over the heads, of the last layer, from the states that enter it."""
        attention = self.base_model.encoder.layer[-1].attention.self
        query, key = (
            projection(hidden_states).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            for projection in (attention.query, attention.key)
        )
        scores = (query @ key.transpose(2, 3)).float() * attention.scaling
        return scores.masked_fill(~attention_mask[:, None], -torch.inf).softmax(dim=-1).mean(dim=1)
