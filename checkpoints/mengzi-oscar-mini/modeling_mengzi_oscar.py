"""Mengzi-Oscar: BERT that reads text, object tags and detected image regions in one sequence, with heads.

What differs from `BertModel` of transformers: region features go through one Linear (and a LayerNorm of their own)
and stand after the text; they get no position or type embedding; a mask may be given per query (B, S, S). Everything
else is imported from BERT. Parameter names are those of the released Oscar state dicts, so original folders load as
they are. Sources: Oscar (Li et al. 2020), VinVL (Zhang et al. 2021), Mengzi (Zhang et al. 2021).

Shapes: B images, T text slots (caption or question, then tags), R regions, S = T + R, H hidden, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForVisualQuestionAnswering,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertLayer,
    BertPooler,
    BertPredictionHeadTransform,
    BertSelfAttention,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_mengzi_oscar import MengziOscarConfig
from .generation_mengzi_oscar import MaskQueryGenerationMixin


@dataclass
class MengziOscarCaptioningOutput(ModelOutput):
    """`logits`: (n, V) of the labelled positions in row-major order when `labels` were given, else (B, T, V)."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class MengziOscarForPreTrainingOutput(ModelOutput):
    """`prediction_logits`: (B, T + R, V); in training with labels only the (n, V) of the labelled positions."""

    loss: torch.FloatTensor | None = None
    prediction_logits: torch.FloatTensor | None = None
    seq_relationship_logits: torch.FloatTensor | None = None  # (B, num_contrast_classes)
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    prediction_loss: torch.FloatTensor | None = None  # mean over the masked tokens
    relationship_loss: torch.FloatTensor | None = None  # mean over the rows; `loss` is the sum of both


class MengziOscarPreTrainedModel(PreTrainedModel):
    config: MengziOscarConfig
    config_class = MengziOscarConfig
    base_model_prefix = "bert"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # our losses are means: Trainer must not rescale them
    _no_split_modules = ["BertEmbeddings", "BertLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": BertLayer, "attentions": BertSelfAttention}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MengziOscarLMHead):
            init.zeros_(module.bias)
        elif isinstance(module, BertEmbeddings):
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1]).expand((1, -1)))
            init.zeros_(module.token_type_ids)


class MengziOscarModel(MengziOscarPreTrainedModel):
    """Text, tags and regions -> contextual states (B, T + R, H) and the pooled first position (B, H)."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config)
        self.img_embedding = nn.Linear(config.img_feature_dim, config.hidden_size)
        if config.use_img_layernorm:
            self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.img_layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        region_features: torch.FloatTensor | None = None,
        region_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        past_key_values=None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: (B, T); or `inputs_embeds` (B, T, H).
            attention_mask: (B, T) for the text, or for text and regions together (B, T + R), or per query
                (B, T + R, T + R) with rows = queries; 1 = may be seen. Missing = everything.
            token_type_ids: (B, T), 0 text, 1 tags. position_ids: (B, T), counted from 0 when missing.
            region_features: (B, R, D). region_attention_mask: (B, R); missing = all valid.
            past_key_values: a `PrefixCache`, which keeps one row per image: the mask is then (images, T x beams, slots)
                as its `begin_step` makes it, inputs and states are (images x beams, T, ...).

        Raises:
            ValueError: regions of another width than `img_feature_dim`, a mask that fits neither text nor S, or (on a
                CPU, where it is cheap to look) an id beyond the vocabulary.
        """
        if input_ids is not None and input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            check_ids(input_ids, self.config.vocab_size)
        hidden_states = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (B, T, H)
        if region_features is not None:
            attention_mask = join_masks(attention_mask, region_attention_mask, hidden_states, region_features)
            if not self.config.regions_read_text and attention_mask.dim() == 2:
                attention_mask = hide_text_from_regions(attention_mask, hidden_states.shape[1])
            hidden_states = torch.cat([hidden_states, self.embed_regions(region_features)], dim=1)  # (B, T + R, H)
        length = hidden_states.shape[1]
        if past_key_values is not None:
            hidden_states = past_key_values.by_image(hidden_states)
        attention_mask = self._attention_bias(attention_mask, hidden_states)
        hidden_states = self.encoder(hidden_states, attention_mask, past_key_values=past_key_values, **kwargs)[0]
        if past_key_values is not None:
            hidden_states = past_key_values.by_beam(hidden_states, length)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=self.pooler(hidden_states))

    def embed_regions(self, region_features: torch.FloatTensor) -> torch.FloatTensor:
        """(B, R, D) -> (B, R, H)"""
        if region_features.shape[-1] != self.config.img_feature_dim:
            raise ValueError(
                f"region features are {region_features.shape[-1]} wide, this model was trained on "
                f"{self.config.img_feature_dim}: use the region model of the checkpoint"
                + (f" ({self.config.region_model})" if self.config.region_model else "")
            )
        hidden_states = self.img_embedding(region_features.to(self.img_embedding.weight.dtype))
        if self.config.use_img_layernorm:
            hidden_states = self.LayerNorm(hidden_states)
        return self.dropout(hidden_states)

    def _attention_bias(self, attention_mask, hidden_states):
        if attention_mask is None or attention_mask.dim() == 2:
            return create_bidirectional_mask(
                config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
            )
        if "flash" in self.config._attn_implementation:
            raise ValueError("flash attention takes no mask per query (B, S, S): load with attn_implementation='sdpa'")
        allowed = attention_mask.bool()[:, None]  # (B, 1, Q, K)
        # A query that may see nothing (padding) sees everything, as under the original's -10000 shift: never NaN.
        allowed = allowed | ~allowed.any(dim=-1, keepdim=True)
        if self.config._attn_implementation == "sdpa":
            return allowed
        bias = torch.zeros(allowed.shape, dtype=hidden_states.dtype, device=allowed.device)
        return bias.masked_fill(~allowed, torch.finfo(hidden_states.dtype).min)


def check_ids(input_ids, vocab_size):
    if input_ids.numel() and input_ids.max() >= vocab_size:
        raise ValueError(
            f"input_ids holds {input_ids.max().item()}, the vocabulary has {vocab_size} tokens: tokenizer and "
            "checkpoint do not belong together"
        )


def join_masks(attention_mask, region_attention_mask, text, regions):
    """Masks of the text (B, T) and the regions (B, R) -> one of (B, T + R); joint ones pass as they are.

    `text` (B, T, ...) and `regions` (B, R, ...) give the sizes.
    """
    text_length, length = text.shape[1], text.shape[1] + regions.shape[1]
    joint = attention_mask is not None and attention_mask.shape[1] == length
    if joint and (attention_mask.dim() == 3 or length != text_length):
        return attention_mask
    if attention_mask is not None and attention_mask.shape[1] != text_length:
        raise ValueError(
            f"attention_mask has {attention_mask.shape[1]} slots; {text_length} text slots and "
            f"{regions.shape[1]} regions need {text_length} or {length}"
        )
    if attention_mask is None:
        attention_mask = torch.ones(text.shape[:2], dtype=torch.long, device=regions.device)
    if region_attention_mask is None:
        region_attention_mask = torch.ones(regions.shape[:2], dtype=torch.long, device=regions.device)
    return torch.cat([attention_mask, region_attention_mask.to(attention_mask)], dim=1)


def hide_text_from_regions(attention_mask, text_length: int) -> torch.BoolTensor:
    """Joint mask (B, S) -> who sees whom (B, S, S), rows = queries: text sees everything, regions see regions."""
    is_text = torch.arange(attention_mask.shape[1], device=attention_mask.device) < text_length
    return attention_mask.bool()[:, None, :] & (is_text[:, None] | ~is_text[None, :])


class MengziOscarLMHead(nn.Module):
    """Transform, then a decoder without bias and a bias vector of its own (the original's keys)."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: torch.FloatTensor) -> torch.FloatTensor:
        return self.decoder(self.transform(hidden_states)) + self.bias


class MengziOscarHeads(nn.Module):
    """A level of the original's parameter names: `cls.predictions`, and `cls.seq_relationship` in pre-training."""

    def __init__(self, config: MengziOscarConfig, contrast: bool):
        super().__init__()
        self.predictions = MengziOscarLMHead(config)
        if contrast:
            self.seq_relationship = nn.Linear(config.hidden_size, config.num_contrast_classes)


class MengziOscarLanguageModel(MengziOscarPreTrainedModel):
    """What the heads with a vocabulary have in common: the decoder, tied to the word embedding, and its bias."""

    _tied_weights_keys = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}

    def get_output_embeddings(self):
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings):
        self.cls.predictions.decoder = new_embeddings

    def resize_token_embeddings(self, *args, **kwargs):
        """As in transformers; the bias, which stands beside the decoder here, follows: 0 for new tokens."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        head, size = self.cls.predictions, embeddings.num_embeddings
        kept = head.bias.data[:size]
        head.bias = nn.Parameter(torch.cat([kept, kept.new_zeros(size - len(kept))]))
        return embeddings


class MengziOscarForPreTraining(MengziOscarLanguageModel):
    """Masked tokens, and whether text, tags and image belong together (Oscar+): two losses, added."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__(config)
        self.bert = MengziOscarModel(config)
        self.cls = MengziOscarHeads(config, contrast=True)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        region_features: torch.FloatTensor | None = None,
        region_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        next_sentence_label: torch.LongTensor | None = None,
        **kwargs,
    ) -> MengziOscarForPreTrainingOutput:
        """
        Args:
            labels: (B, T) or (B, T + R), the token at each masked position, -100 elsewhere.
            next_sentence_label: (B,), 0 matched, 1 wrong tags (or answer), 2 wrong text; with two classes 1 = wrong.
            The others as in `MengziOscarModel`.

        The loss is the sum of the mean cross entropies of the labels given. A batch without a masked token adds 0,
        where the original gives NaN.
        """
        outputs = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            region_features=region_features,
            region_attention_mask=region_attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        states = outputs.last_hidden_state
        relationship = self.cls.seq_relationship(outputs.pooler_output)
        prediction_loss = relationship_loss = None
        if labels is not None:
            labelled = labels != -100
            masked_logits = self.cls.predictions(states[:, : labels.shape[1]][labelled])  # (n, V)
            summed = nn.functional.cross_entropy(masked_logits.float(), labels[labelled], reduction="sum")
            prediction_loss = summed / labelled.sum().clamp(min=1)
        if next_sentence_label is not None:
            relationship_loss = nn.functional.cross_entropy(relationship.float(), next_sentence_label)
        losses = [loss for loss in (prediction_loss, relationship_loss) if loss is not None]
        logits = masked_logits if labels is not None and self.training else self.cls.predictions(states)
        return MengziOscarForPreTrainingOutput(
            sum(losses) if losses else None,
            logits,
            relationship,
            outputs.hidden_states,
            outputs.attentions,
            prediction_loss,
            relationship_loss,
        )


class MengziOscarForImageCaptioning(MengziOscarLanguageModel, MaskQueryGenerationMixin):
    """Writes a caption token by token, each asked for by a [MASK]; `generate` makes captions from regions and tags.

    The caption sees tags, regions and its own past; tags and regions see one another and never the caption.
    """

    def __init__(self, config: MengziOscarConfig):
        super().__init__(config)
        self.bert = MengziOscarModel(config)
        self.cls = MengziOscarHeads(config, contrast=False)
        self.loss_calls = 0  # micro-batches of this process, as the original counts for `drop_worst_after`
        if not config.tie_weights:
            self._tied_weights_keys = {}
        self.post_init()

    def tie_weights(self, *args, **kwargs):
        """Ties, then freezes what the config says: transformers calls this once the weights are in their place."""
        super().tie_weights(*args, **kwargs)
        if self.config.freeze_embedding:
            self.get_input_embeddings().weight.requires_grad_(False)

    def get_logits(self, hidden_states: torch.FloatTensor) -> torch.FloatTensor:
        """(..., H) -> (..., V)"""
        return self.cls.predictions(hidden_states)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        region_features: torch.FloatTensor | None = None,
        region_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        past_key_values=None,
        logits_to_keep: int = 0,
        **kwargs,
    ) -> MengziOscarCaptioningOutput:
        """
        Args:
            labels: (B, T), the token at each labelled position, -100 elsewhere.
            logits_to_keep: without labels, logits of the last so many text slots only; 0 = all.
            The others as in `MengziOscarModel`; a mask (B, T) or (B, T + R) becomes the caption's attention by
            `caption_attention`, a 3-D one is taken as it is.
        """
        text = input_ids if input_ids is not None else inputs_embeds
        if attention_mask is None or attention_mask.dim() == 2:
            if region_features is not None:
                attention_mask = join_masks(attention_mask, region_attention_mask, text, region_features)
            elif attention_mask is None:
                attention_mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
            attention_mask = caption_attention(attention_mask, token_type_ids, text.shape[1])
        outputs = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            region_features=region_features,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            **kwargs,
        )
        states = outputs.last_hidden_state[:, : text.shape[1]]  # (B, T, H)
        loss = None
        if labels is not None:
            labelled = labels != -100
            logits = self.get_logits(states[labelled])  # (n, V)
            loss = self.caption_loss(logits, labels[labelled])
        else:
            logits = self.get_logits(states[:, -logits_to_keep:])
        return MengziOscarCaptioningOutput(loss, logits, outputs.hidden_states, outputs.attentions)

    def caption_loss(self, logits: torch.FloatTensor, targets: torch.LongTensor) -> torch.FloatTensor:
        """Mean over the labelled tokens, without the worst ones after `drop_worst_after` calls; (n, V), (n,) -> ().

        As the original: the counter counts micro-batches of this process and starts at 0 on resume; a batch that
        keeps no token gives NaN there and 0 here. Evaluation (no gradients) neither counts nor drops.
        """
        losses = smoothed_token_loss(logits.float(), targets, self.config.label_smoothing)
        if torch.is_grad_enabled():
            self.loss_calls += 1
            if self.config.drop_worst_ratio > 0 and self.loss_calls > self.config.drop_worst_after:
                keep = int(losses.numel() * (1 - self.config.drop_worst_ratio))
                losses = losses.topk(keep, largest=False).values
        return losses.mean() if losses.numel() else logits.sum() * 0.0


def smoothed_token_loss(logits, targets, label_smoothing: float) -> torch.FloatTensor:
    """KL divergence per token from (1 - eps on the target, eps / (V - 1) on every other); (n, V), (n,) -> (n,).

    This is Oscar's label smoothing: torch's own spreads eps over all V tokens and keeps the entropy of the target.
    """
    log_probs = logits.log_softmax(dim=-1)
    on_target = log_probs.gather(1, targets[:, None]).squeeze(1)
    if label_smoothing == 0:
        return -on_target
    others = log_probs.sum(dim=-1) - on_target
    spread = label_smoothing / (logits.shape[-1] - 1)
    confidence = 1 - label_smoothing
    negative_entropy = confidence * torch.tensor(confidence).log() + label_smoothing * torch.tensor(spread).log()
    return negative_entropy.to(logits.device) - confidence * on_target - spread * others


def caption_attention(attention_mask, token_type_ids, text_length: int) -> torch.BoolTensor:
    """Who sees whom in captioning: (B, S) joint mask and (B, T) types -> (B, S, S), rows = queries.

    Caption (type 0) sees its past and itself, tags and regions; tags and regions see tags and regions. Every slot sees
    itself, padding too, so that no row of the softmax is empty.
    """
    valid = attention_mask.bool()
    is_caption = torch.zeros_like(valid)
    is_caption[:, :text_length] = True if token_type_ids is None else token_type_ids == 0
    caption, context = valid & is_caption, valid & ~is_caption
    slots = torch.arange(valid.shape[1], device=valid.device)
    past = slots[None, :] <= slots[:, None]  # (S, S)
    sees_caption = caption[:, :, None] & caption[:, None, :] & past
    return sees_caption | context[:, None, :] | torch.eye(len(slots), dtype=torch.bool, device=valid.device)


def build_classifier(config: MengziOscarConfig, in_features: int, norm: bool = False) -> nn.Module:
    """ "linear", or "mlp": Linear, ReLU, (LayerNorm with BERT's epsilon,) Linear."""
    if config.classifier == "linear":
        return nn.Linear(in_features, config.num_labels)
    if config.classifier != "mlp":
        raise ValueError(f'classifier must be "linear" or "mlp", not {config.classifier!r}')
    width = config.hidden_size * config.cls_hidden_scale
    middle = [nn.LayerNorm(width, eps=config.layer_norm_eps)] if norm else []
    return nn.Sequential(nn.Linear(in_features, width), nn.ReLU(), *middle, nn.Linear(width, config.num_labels))


def classification_loss(logits, labels, loss_type: str) -> torch.FloatTensor:
    """As Oscar chooses: one label: squared error; "bce": binary cross entropy x number of labels; "kl"; else CE.

    Args:
        logits: (B, N). labels: (B, N) soft targets for "bce" and "kl"; (B,) or (B, 1) ids, -100 ignored, for cross
        entropy; (B,) numbers for one label.
    """
    logits, num_labels = logits.float(), logits.shape[-1]
    if num_labels == 1:
        return nn.functional.mse_loss(logits.view(-1), labels.view(-1).float())
    if loss_type == "bce":
        targets = labels.view(-1, num_labels).float()
        return nn.functional.binary_cross_entropy_with_logits(logits, targets) * num_labels
    if loss_type == "kl":
        targets = labels.view(-1, num_labels).float()
        return nn.functional.kl_div(logits.log_softmax(dim=-1), targets, reduction="batchmean")
    return nn.functional.cross_entropy(logits, labels.view(-1))


class MengziOscarClassifier(MengziOscarPreTrainedModel):
    """The pooled first position, dropout, a classifier: what retrieval and question answering have in common."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__(config)
        self.bert = MengziOscarModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = build_classifier(config, config.hidden_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        region_features: torch.FloatTensor | None = None,
        region_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """`labels` as `classification_loss` takes them, the others as in `MengziOscarModel`; `logits` (B, N)."""
        outputs = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            region_features=region_features,
            region_attention_mask=region_attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = classification_loss(logits, labels, self.config.loss_type) if labels is not None else None
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class MengziOscarForImageTextRetrieval(MengziOscarClassifier):
    """Do this image and this text belong together? `logits` (B, 2), class 1 = match."""

    @torch.inference_mode()
    def score(self, inputs, batch_size: int = 64) -> torch.FloatTensor:
        """Probabilities of a match (B,), on the CPU, for what the processor made of B pairs.

        With one label (the original's regression) the raw output.
        """
        scores = []
        for start in range(0, len(next(iter(inputs.values()))), batch_size):
            batch = {name: tensor[start : start + batch_size].to(self.device) for name, tensor in inputs.items()}
            logits = self(**batch).logits.float()
            scores.append(logits.softmax(dim=-1)[:, 1] if logits.shape[-1] == 2 else logits[:, 0])
        return torch.cat(scores).cpu()


class MengziOscarForVisualQuestionAnswering(MengziOscarClassifier):
    """One of N known answers: `logits` (B, N), answers in `config.id2label`."""


class MengziOscarForVisualReasoning(MengziOscarPreTrainedModel):
    """A statement about several images (NLVR2: two): inputs (B, num_choice, ...), `logits` (B, num_labels)."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__(config)
        self.bert = MengziOscarModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        in_features = config.num_choice * config.hidden_size
        self.classifier = build_classifier(config, in_features, norm=bool(config.use_img_layernorm))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        region_features: torch.FloatTensor | None = None,
        region_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Every tensor as in `MengziOscarModel` with a dimension for the images behind the first; `labels` (B,)."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "region_features": region_features,
            "region_attention_mask": region_attention_mask,
            "inputs_embeds": inputs_embeds,
        }
        inputs = {name: tensor.flatten(0, 1) for name, tensor in inputs.items() if tensor is not None}
        outputs = self.bert(**inputs, **kwargs)
        pooled = self.dropout(outputs.pooler_output).view(-1, self.config.num_choice * self.config.hidden_size)
        logits = self.classifier(pooled)
        loss = classification_loss(logits, labels, self.config.loss_type) if labels is not None else None
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


if not __name__.startswith("transformers_modules"):  # as code of a Hub repo it must not stand in for other repos
    AutoModel.register(MengziOscarConfig, MengziOscarModel, exist_ok=True)
    AutoModelForPreTraining.register(MengziOscarConfig, MengziOscarForPreTraining, exist_ok=True)
    AutoModelForImageTextToText.register(MengziOscarConfig, MengziOscarForImageCaptioning, exist_ok=True)
    AutoModelForSequenceClassification.register(MengziOscarConfig, MengziOscarForImageTextRetrieval, exist_ok=True)
    AutoModelForVisualQuestionAnswering.register(
        MengziOscarConfig, MengziOscarForVisualQuestionAnswering, exist_ok=True
    )
    AutoModelForMultipleChoice.register(MengziOscarConfig, MengziOscarForVisualReasoning, exist_ok=True)
