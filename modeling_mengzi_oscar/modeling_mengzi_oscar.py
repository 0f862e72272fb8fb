"""Mengzi-Oscar: BERT over text, object tags and detected image regions in one sequence, with heads.

What differs from BERT: region features go through one Linear (and a LayerNorm of their own) and stand after the text;
they get no position or type embedding; a mask may be given per query (B, S, S); a layer can read keys and values that
it has seen before (`memory`: decoding, matching) and be asked for some positions only (`context`). Parameter names are
those of the released Oscar state dicts, so original folders load as they are. Sources: BERT (Devlin et al. 2018), Oscar
(Li et al. 2020), VinVL (Zhang et al. 2021), Mengzi (Zhang et al. 2021).

Shapes: B images, T text slots (caption or question, then tags), R regions, S = T + R, H hidden, V vocabulary; Q queries
read K keys, each of d = H / heads numbers per head.
"""

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForVisualQuestionAnswering,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from .checksums import share_weights
from .configuration_mengzi_oscar import MengziOscarConfig
from .generation_mengzi_oscar import MaskQueryGenerationMixin

if TYPE_CHECKING:  # transformers before 5.10 brings only the files that the file of a class names itself
    from .confidence import MARK  # noqa: F401
    from .fields import Rule  # noqa: F401
    from .processing_mengzi_oscar import MengziOscarProcessor  # noqa: F401
    from .supported_transformers import OLDEST  # noqa: F401

ACTIVATIONS = {  # `hidden_act`: those that Oscar's code knows, and torch's names for them
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "silu": nn.functional.silu,
    "swish": nn.functional.silu,
    "tanh": torch.tanh,
}


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


def activation(name: str):
    if name not in ACTIVATIONS:
        raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, not {name!r}")
    return ACTIVATIONS[name]


class MengziOscarEmbeddings(nn.Module):
    """Word + position + type, LayerNorm, dropout: (B, T) -> (B, T, H)."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids=None, token_type_ids=None, position_ids=None, inputs_embeds=None) -> torch.FloatTensor:
        """Types are 0 and positions count from 0 when missing."""
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        embeddings = inputs_embeds + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(embeddings + self.position_embeddings(position_ids)))


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention written out, which also returns its weights; in the form of transformers' attention functions.

    Args:
        query: (B, heads, Q, d). key, value: (B, heads, K, d). attention_mask: bool, broadcast to (B, heads, Q, K).

    Returns:
        (B, Q, heads, d) and the weights (B, heads, Q, K).
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = nn.functional.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class MengziOscarSelfAttention(nn.Module):
    """Multi-head attention of some positions to all of them."""

    is_causal = False  # who sees whom is always said by the mask; sdpa would take "no mask" for causal

    def __init__(self, config: MengziOscarConfig):
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
                f"{config.num_attention_heads}"
            )
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden_states, attention_mask=None, context=None, memory=None, output_attentions=False):
        """As `MengziOscarLayer`; returns (B, Q, H) and the weights (B, heads, Q, K), None if they were not made."""
        query = self.split_heads(self.query(hidden_states))
        key, value = self.keys_values(hidden_states if context is None else context)
        arguments = (query, key, value, attention_mask, output_attentions)
        attended, weights = self.attend(*arguments) if memory is None else memory.attend(self, *arguments)
        return attended.flatten(2), weights

    def keys_values(self, context) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        """(B, K, H) -> twice (B, heads, K, d)"""
        return self.split_heads(self.key(context)), self.split_heads(self.value(context))

    def split_heads(self, states):
        """(B, N, H) -> (B, heads, N, d)"""
        return states.unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)

    def attend(self, query, key, value, attention_mask, output_attentions=False):
        """-> (B, Q, heads, d), weights. Weights exist in eager attention only: who asks for them gets it."""
        if not query.shape[2] and not output_attentions:  # nobody asks (no region): the kernels take no empty rows
            return query.transpose(1, 2), None
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        return attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.head_size**-0.5,
        )


class MengziOscarAddAndNorm(nn.Module):
    """Linear, dropout, the residual, LayerNorm: the end of both halves of a layer."""

    def __init__(self, config: MengziOscarConfig, in_features: int):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, residual):
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual)


class MengziOscarAttention(nn.Module):
    """The first half of a layer."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__()
        self.self = MengziOscarSelfAttention(config)
        self.output = MengziOscarAddAndNorm(config, config.hidden_size)

    def forward(self, hidden_states, *arguments):
        attended, weights = self.self(hidden_states, *arguments)
        return self.output(attended, hidden_states), weights


class MengziOscarIntermediate(nn.Module):
    """Linear and activation: (..., H) -> (..., intermediate_size)."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.hidden_act)

    def forward(self, hidden_states):
        return self.activation(self.dense(hidden_states))


class MengziOscarLayer(nn.Module):
    gradient_checkpointing = False  # set by `gradient_checkpointing_enable`, with the function below

    def __init__(self, config: MengziOscarConfig):
        super().__init__()
        self.attention = MengziOscarAttention(config)
        self.intermediate = MengziOscarIntermediate(config)
        self.output = MengziOscarAddAndNorm(config, config.intermediate_size)

    def forward(self, hidden_states, attention_mask=None, context=None, memory=None, output_attentions=False):
        """
        Args:
            hidden_states: (B, Q, H) of the positions that are wanted.
            attention_mask: of `MengziOscarModel.who_sees_whom`.
            context: (B, K, H) that they read; missing = themselves.
            memory: keys and values from elsewhere. Its `attend(attention, query, key, value, attention_mask,
                output_attentions)` stands in for `MengziOscarSelfAttention.attend`.

        Returns:
            (B, Q, H) and the attention weights (B, heads, Q, K) or None.
        """
        arguments = (hidden_states, attention_mask, context, memory, output_attentions)
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self.compute, *arguments)
        return self.compute(*arguments)

    def compute(self, hidden_states, *arguments):
        attended, weights = self.attention(hidden_states, *arguments)
        return self.output(self.intermediate(attended), attended), weights


class MengziOscarEncoder(nn.Module):
    def __init__(self, config: MengziOscarConfig):
        super().__init__()
        self.layer = nn.ModuleList(MengziOscarLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        memories=None,
        output_attentions=False,
        output_hidden_states=False,
    ):
        """(B, S, H) -> (B, S, H); the states before and after every layer, and its attention weights, or None.

        `memories`: a memory per layer, see `MengziOscarLayer`.
        """
        states, attentions = (hidden_states,), ()
        for number, layer in enumerate(self.layer):
            memory = None if memories is None else memories[number]
            hidden_states, weights = layer(hidden_states, attention_mask, None, memory, output_attentions)
            if output_hidden_states:  # else each is freed as soon as the next one is there
                states += (hidden_states,)
            attentions += (weights,)
        return hidden_states, states if output_hidden_states else None, attentions if output_attentions else None


class MengziOscarPooler(nn.Module):
    """The first position, Linear, tanh: (B, S, H) -> (B, H)."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states):
        return torch.tanh(self.dense(hidden_states[:, 0]))


class MengziOscarPreTrainedModel(PreTrainedModel):
    config: MengziOscarConfig
    config_class = MengziOscarConfig
    base_model_prefix = "bert"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # our losses are means: Trainer must not rescale them
    _no_split_modules = ["MengziOscarEmbeddings", "MengziOscarLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, MengziOscarLMHead):
            nn.init.zeros_(module.bias)  # transformers sees to it that this spares what was loaded

    def save_pretrained(self, save_directory, *args, save_original_format=False, **kwargs):
        """As in transformers, with today's names: by itself it writes those that a file had (`LayerNorm.gamma`).

        The region model that the config names comes along, so that the folder can be loaded: a copy where it is a
        subfolder of the folder that this model came from, its name and commit where that was a repo of the Hub. So does
        the code that runs, where the config has an `auto_map`. Neither where a `state_dict` is passed, as a training
        does for the checkpoints that it resumes from.
        """
        named = self.config.region_model
        came_from, commit = str(self.config.name_or_path), getattr(self.config, "_commit_hash", None)
        alone = kwargs.get("state_dict") is None
        if alone and named and not os.path.isdir(os.path.join(save_directory, named)):
            if os.path.isdir(came_from):
                copy_files(came_from, named, save_directory, (".json", ".safetensors"))
            elif commit and "@" not in named:
                self.config.region_model = f"{came_from}@{commit}"
        if alone and getattr(self.config, "auto_map", None):
            code = os.path.dirname(__file__)
            if not os.path.isfile(os.path.join(code, "pipeline_mengzi_oscar.py")):
                code = came_from  # the Auto classes brought from there what a model needs, and no pipeline
            copy_files(code, "", save_directory, (".py",))
        try:
            super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)
        finally:
            self.config.region_model = named
        share_weights(save_directory)

    def as_asked(self, output: ModelOutput, return_dict: bool | None):
        """A tuple for `return_dict=False`, in the call or in the config."""
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


def copy_files(folder, subfolder, target, suffixes):
    """Of a folder or a subfolder in it; nothing where there is none."""
    source = os.path.realpath(os.path.join(folder, subfolder))
    if os.path.isdir(source) and os.path.commonpath([source, os.path.realpath(folder)]) == os.path.realpath(folder):
        os.makedirs(os.path.join(target, subfolder), exist_ok=True)
        for file in sorted(os.listdir(source)):
            if file.endswith(suffixes) and not file.startswith("__") and os.path.isfile(os.path.join(source, file)):
                shutil.copyfile(os.path.join(source, file), os.path.join(target, subfolder, file))


class MengziOscarModel(MengziOscarPreTrainedModel):
    """Text, tags and regions -> contextual states (B, T + R, H) and the pooled first position (B, H)."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__(config)
        self.embeddings = MengziOscarEmbeddings(config)
        self.encoder = MengziOscarEncoder(config)
        self.pooler = MengziOscarPooler(config)
        self.img_embedding = nn.Linear(config.img_feature_dim, config.hidden_size)
        if config.use_img_layernorm:
            self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.img_layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        region_features: torch.FloatTensor | None = None,
        region_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: (B, T); or `inputs_embeds` (B, T, H).
            attention_mask: (B, T) for the text, or for text and regions together (B, T + R), or per query
                (B, T + R, T + R) with rows = queries; 1 = may be seen. Missing = everything.
            token_type_ids: (B, T), 0 text, 1 tags. position_ids: (B, T), counted from 0 when missing.
            region_features: (B, R, D). region_attention_mask: (B, R); missing = all valid.
            output_attentions: weights of every layer (B, heads, S, S) as `attentions`; this call is computed eagerly.
            output_hidden_states: states (B, S, H) before and after every layer as `hidden_states`.

        Raises:
            ValueError: regions of another width than `img_feature_dim`, a mask that fits neither text nor S, or (on a
                CPU, where it is cheap to look) an id beyond the vocabulary.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if input_ids is not None and input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            check_ids(input_ids, self.config.vocab_size)
        hidden_states = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (B, T, H)
        if region_features is not None:
            attention_mask = join_masks(attention_mask, region_attention_mask, hidden_states, region_features)
            if not self.config.regions_read_text and attention_mask.dim() == 2:
                attention_mask = hide_text_from_regions(attention_mask, hidden_states.shape[1])
            hidden_states = torch.cat([hidden_states, self.embed_regions(region_features)], dim=1)  # (B, T + R, H)
        seen = self.who_sees_whom(attention_mask, output_attentions)
        hidden_states, states, attentions = self.encoder(
            hidden_states, seen, None, output_attentions, output_hidden_states
        )
        output = BaseModelOutputWithPooling(hidden_states, self.pooler(hidden_states), states, attentions)
        return self.as_asked(output, return_dict)

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

    def who_sees_whom(self, attention_mask, output_attentions=False) -> torch.Tensor | None:
        """A mask (B, K) or (B, Q, K), 1 = may be seen, as attention functions take it.

        Bool (B, 1, 1 or Q, K); None where all is seen; (B, K) as it is for flash attention.
        """
        flash = "flash" in (self.config._attn_implementation or "") and not output_attentions
        if attention_mask is None:
            return None
        if attention_mask.dim() == 2:
            traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # for other masks than this one
            if not traced and attention_mask.all():  # kernels are faster without
                return None
            if flash:
                return attention_mask
            allowed = attention_mask.bool()[:, None, None]  # (B, 1, 1, K)
        else:
            if flash:
                raise ValueError(
                    "flash attention takes no mask per query (B, S, S): load with attn_implementation='sdpa'"
                )
            allowed = attention_mask.bool()[:, None]  # (B, 1, Q, K)
        # A query that may attend to nothing (padding) attends to everything, as under the original's -10000: never NaN.
        return allowed | ~allowed.any(dim=-1, keepdim=True)


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
    """Joint mask (B, S) -> attention mask (B, S, S), rows = queries: text attends to everything, regions to regions.

    Two text tokens, two regions:     w1 w2 r1 r2   <- keys
                                 w1    1  1  1  1
                                 w2    1  1  1  1
                                 r1    .  .  1  1
                                 r2    .  .  1  1
    """
    is_text = torch.arange(attention_mask.shape[1], device=attention_mask.device) < text_length
    return attention_mask.bool()[:, None, :] & (is_text[:, None] | ~is_text[None, :])


class MengziOscarTransform(nn.Module):
    """Linear, activation, LayerNorm."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = activation(config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states):
        return self.LayerNorm(self.activation(self.dense(hidden_states)))


class MengziOscarLMHead(nn.Module):
    """Transform, then a decoder without bias and a bias vector of its own (the original's keys)."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__()
        self.transform = MengziOscarTransform(config)
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

    def tie_weights(self, missing_keys=None, **kwargs):
        """As in transformers, which calls it once the weights that a file has are in their place."""
        if missing_keys is not None:  # 5.3 takes a decoder that is still to be tied for one that was loaded
            missing_keys |= {name for name in self._tied_weights_keys if self.get_parameter(name).is_meta}
        super().tie_weights(missing_keys=missing_keys, **kwargs)

    def get_output_embeddings(self):
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings):
        self.cls.predictions.decoder = new_embeddings

    def resize_token_embeddings(self, *args, **kwargs):
        """As in transformers; the bias, which stands beside the decoder here, follows: 0 for new tokens."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        head, size = self.cls.predictions, embeddings.num_embeddings
        bias = head.bias.data[:size]
        head.bias = nn.Parameter(torch.cat([bias, bias.new_zeros(size - len(bias))]))
        return embeddings


class MengziOscarForPreTraining(MengziOscarLanguageModel):
    """Oscar+ pre-training: masked tokens, and whether text, tags and image match. The two losses are added."""

    def __init__(self, config: MengziOscarConfig):
        super().__init__(config)
        self.bert = MengziOscarModel(config)
        self.cls = MengziOscarHeads(config, contrast=True)
        self.post_init()

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
        return_dict: bool | None = None,
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
            return_dict=True,
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
        output = MengziOscarForPreTrainingOutput(
            sum(losses) if losses else None,
            logits,
            relationship,
            outputs.hidden_states,
            outputs.attentions,
            prediction_loss,
            relationship_loss,
        )
        return self.as_asked(output, return_dict)


class MengziOscarForImageCaptioning(MengziOscarLanguageModel, MaskQueryGenerationMixin):
    """Writes a caption token by token, each predicted at a [MASK]; `generate` makes captions from regions and tags.

    The caption attends to tags, regions and its own past; tags and regions attend to one another, never to the caption.
    """

    def __init__(self, config: MengziOscarConfig):
        super().__init__(config)
        self.bert = MengziOscarModel(config)
        self.cls = MengziOscarHeads(config, contrast=False)
        self.loss_calls = 0  # micro-batches of this process, as the original counts for `drop_worst_after`
        if not config.tie_weights:
            self._tied_weights_keys = {}
        self.post_init()
        # transformers makes one of all that the config says, in some releases of settings of trainings, too.
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
        self.generation_config = GenerationConfig(**{name: getattr(config, name) for name in tokens})

    def tie_weights(self, *args, **kwargs):
        """Ties, then freezes what the config says."""
        super().tie_weights(*args, **kwargs)
        if self.config.freeze_embedding:
            self.get_input_embeddings().weight.requires_grad_(False)

    def get_logits(self, hidden_states: torch.FloatTensor) -> torch.FloatTensor:
        """(..., H) -> (..., V)"""
        return self.cls.predictions(hidden_states)

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
        logits_to_keep: int = 0,
        prefix_cache=None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> MengziOscarCaptioningOutput:
        """
        Args:
            labels: (B, T), the token at each labelled position, -100 elsewhere.
            logits_to_keep: without labels, logits of the last so many text slots only; 0 = all.
            prefix_cache: of `encode_prefix`, in `generate`: `input_ids` are then the captions so far (B x beams, C),
                and `logits` (B x beams, 1, V) those of their next token. Other inputs are ignored.
            The others as in `MengziOscarModel`; a mask (B, T) or (B, T + R) becomes the caption's attention by
            `caption_attention`, a 3-D one is taken as it is.
        """
        if prefix_cache is not None:
            output = MengziOscarCaptioningOutput(None, *self.next_tokens(input_ids, prefix_cache, **kwargs))
            return self.as_asked(output, return_dict)
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
            return_dict=True,
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
        output = MengziOscarCaptioningOutput(loss, logits, outputs.hidden_states, outputs.attentions)
        return self.as_asked(output, return_dict)

    def caption_loss(self, logits: torch.FloatTensor, targets: torch.LongTensor) -> torch.FloatTensor:
        """Mean over the labelled tokens, without the worst ones after `drop_worst_after` calls; (n, V), (n,) -> ().

        As the original: the counter counts micro-batches of this process and starts at 0 on resume; a batch that
        keeps no token gives NaN there and 0 here. Evaluation (no gradients) neither counts nor drops. With
        `drop_worst_after` 2 and a ratio of 0.4, five tokens:

            call    1           2           3 and later
            mean of all five    all five    the three with the smallest loss
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
    """Attention mask of captioning: (B, S) joint mask and (B, T) types -> (B, S, S), rows = queries.

    Caption (type 0) attends to its past and itself, tags and regions; tags and regions to one another.
    Every slot attends to itself, padding too, so that no row of the softmax is empty. Three caption tokens, one slot of
    padding, a tag, a region:

                 c1 c2 c3  .  t  r   <- keys
             c1   1  .  .  .  1  1
             c2   1  1  .  .  1  1
             c3   1  1  1  .  1  1
        padding   .  .  .  1  1  1   (nobody reads its state)
            tag   .  .  .  .  1  1
         region   .  .  .  .  1  1
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
        return_dict: bool | None = None,
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
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = classification_loss(logits, labels, self.config.loss_type) if labels is not None else None
        output = SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)
        return self.as_asked(output, return_dict)


class MengziOscarForImageTextRetrieval(MengziOscarClassifier):
    """Image-text matching (ITM): does this text match this image? `logits` (B, 2), class 1 = match."""

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
        return_dict: bool | None = None,
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
        outputs = self.bert(**inputs, return_dict=True, **kwargs)
        pooled = self.dropout(outputs.pooler_output).view(-1, self.config.num_choice * self.config.hidden_size)
        logits = self.classifier(pooled)
        loss = classification_loss(logits, labels, self.config.loss_type) if labels is not None else None
        output = SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)
        return self.as_asked(output, return_dict)


if not __name__.startswith("transformers_modules"):  # as code of a Hub repo it must not stand in for other repos
    AutoModel.register(MengziOscarConfig, MengziOscarModel, exist_ok=True)
    AutoModelForPreTraining.register(MengziOscarConfig, MengziOscarForPreTraining, exist_ok=True)
    AutoModelForImageTextToText.register(MengziOscarConfig, MengziOscarForImageCaptioning, exist_ok=True)
    AutoModelForSequenceClassification.register(MengziOscarConfig, MengziOscarForImageTextRetrieval, exist_ok=True)
    AutoModelForVisualQuestionAnswering.register(
        MengziOscarConfig, MengziOscarForVisualQuestionAnswering, exist_ok=True
    )
    AutoModelForMultipleChoice.register(MengziOscarConfig, MengziOscarForVisualReasoning, exist_ok=True)
