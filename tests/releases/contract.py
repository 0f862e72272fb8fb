"""What a Hub repo of ours must do under any release of transformers, where our package is not installed.

    python contract.py MINI VINVL RESULT

MINI is a copy of checkpoints/mengzi-oscar-mini, VINVL a folder of a tiny detector, RESULT the JSON file to write: per
check, in the order of this file, whether it held, why not, its seconds, and its digits, which are the same under every
release. Where it can, a check computes a number in two ways: above all the decoder, against a search written out here
that calls the model on everything, at every step, without a cache.
"""

import json
import logging
import os
import sys
import time
import traceback
import warnings


class Nowhere:
    """The package may be installed here; where the repo is used it is not."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_mengzi_oscar":
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, Nowhere())

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

MINI, VINVL, RESULT = sys.argv[1:]
REMOTE = {"trust_remote_code": True}
GREEDY = {"num_beams": 1, "do_sample": False, "early_stopping": False}  # "never", of the folder, is for beams
SAMPLING = {**GREEDY, "do_sample": True, "top_k": 20, "top_p": 1.0, "temperature": 1.0}
BEAMS = {"num_beams": 5, "num_return_sequences": 5, "do_sample": False}
WITH_SCORES = {"return_dict_in_generate": True, "output_scores": True}
CHECKS, SAID = [], []


def check(function):
    CHECKS.append(function)
    return function


def same(ours, other, tolerance=1e-4):
    torch.testing.assert_close(ours, other, atol=tolerance, rtol=tolerance)


def digits(tensor):
    """A few numbers that any change of a tensor changes."""
    values = tensor.detach().double().flatten()
    assert values.isfinite().all(), "not finite"
    count = torch.arange(1, len(values) + 1, dtype=torch.float64)
    numbers = [(values * weights).sum() / len(values) ** 0.5 for weights in (count.sin(), count.cos(), values)]
    numbers += values[:: len(values) // 4 + 1]
    return [list(tensor.shape), *(round(number.item(), 5) for number in numbers)]


def photos():
    """Two drawn photos: a dog-brown ellipse on grass under a sky, and a figure on a beach."""
    drawn = []
    for sky, ground, thing, box in (
        ((130, 180, 235), (70, 140, 50), (120, 80, 40), (90, 110, 200, 200)),
        ((220, 200, 170), (230, 210, 150), (200, 40, 50), (140, 60, 175, 220)),
    ):
        image = Image.new("RGB", (320, 240), sky)
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 130, 320, 240), fill=ground)
        draw.ellipse(box, fill=thing)
        noise = np.random.default_rng(0).integers(-12, 13, (240, 320, 3))
        drawn.append(Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)))
    return drawn


def load(auto_class, folder=MINI, **options):
    """A model in evaluation, and the names of the weights that its folder lacks, filled with fixed numbers."""
    auto = getattr(transformers, auto_class)
    model, info = auto.from_pretrained(folder, output_loading_info=True, **REMOTE, **options)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    assert not info["mismatched_keys"], info["mismatched_keys"]
    missing = sorted(info["missing_keys"])
    with torch.no_grad():
        for name in missing:
            values = model.get_parameter(name)
            values.copy_(torch.sin(torch.arange(values.numel()) + 1.0).view_as(values) / 20)
    return model.float().eval(), missing


def generated(model, inputs, **options):
    torch.manual_seed(0)
    return model.generate(**inputs, **options)


def logits_of_next(model, inputs, captions):
    """(rows, V) from everything that there is: captions so far, a [MASK] behind them, tags, regions."""
    rows, length = captions.shape
    repeats = rows // len(inputs["region_features"])
    tags, tag_mask, regions, region_mask = (
        inputs[name].repeat_interleave(repeats, dim=0)
        for name in ("tag_input_ids", "tag_attention_mask", "region_features", "region_attention_mask")
    )
    text = torch.cat([captions, torch.full((rows, 1), model.config.mask_token_id)], dim=1)
    positions = torch.cat([torch.arange(length + 1), 40 + torch.arange(tags.shape[1])])
    with torch.no_grad():
        output = model(
            input_ids=torch.cat([text, tags], dim=1),
            token_type_ids=torch.cat([torch.zeros_like(text), torch.ones_like(tags)], dim=1),
            position_ids=positions.expand(rows, -1),
            attention_mask=torch.cat([torch.ones_like(text), tag_mask], dim=1),
            region_features=regions,
            region_attention_mask=region_mask,
        )
    return output.logits[:, length].float()


def without_padding(model, sequences):
    """Lists of ids, cut behind the first [SEP]: transformers fills beams with either of two ids."""
    end = model.config.eos_token_id
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in sequences.tolist()]


def plain_search(model, inputs, choose, max_length=20):
    """Greedy or sampled captions, token by token; `choose` takes the logits (B, V)."""
    end, padding = model.config.eos_token_id, model.config.pad_token_id
    captions = torch.full((len(inputs["region_features"]), 1), model.config.bos_token_id)
    finished = torch.zeros(len(captions), dtype=torch.bool)
    while captions.shape[1] < max_length and not finished.all():
        chosen = choose(logits_of_next(model, inputs, captions)).masked_fill(finished, padding)
        captions, finished = torch.cat([captions, chosen[:, None]], dim=1), finished | (chosen == end)
    return captions


def sample(logits):
    best = logits.topk(SAMPLING["top_k"]).values[:, -1:]
    return torch.multinomial(logits.masked_fill(logits < best, -torch.inf).softmax(dim=-1), 1)[:, 0]


def plain_beams(model, inputs, beams=5, max_length=20):
    """[(score, ids)], best first, of one image: a beam search that goes on to the last length."""
    end, vocabulary = model.config.eos_token_id, model.config.vocab_size
    captions, sums, finished = torch.tensor([[model.config.bos_token_id]]), torch.zeros(1), []
    for length in range(2, max_length + 1):
        scores = sums[:, None] + logits_of_next(model, inputs, captions).log_softmax(dim=-1)
        best = scores.flatten().topk(2 * beams)
        captions = torch.cat([captions[best.indices // vocabulary], best.indices[:, None] % vocabulary], dim=1)
        ends = (captions[:, -1] == end) | (length == max_length)
        for rank in range(beams):
            if ends[rank]:
                finished.append((best.values[rank].item() / (length - 1), captions[rank].tolist()))
        captions, sums = captions[~ends][:beams], best.values[~ends][:beams]
    return sorted(finished, reverse=True)[:beams]


@check
def config():
    loaded = transformers.AutoConfig.from_pretrained(MINI, **REMOTE)
    assert type(loaded).__module__.startswith("transformers_modules.")
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id", "bos_token_id", "eos_token_id")
    fields = ("model_type", *sizes, "mask_token_id", "img_feature_dim", "tie_weights", "region_model")
    return {name: getattr(loaded, name) for name in fields} | {"auto_map": sorted(loaded.auto_map)}


@check
def each_alone():
    """Every file with a class for an Auto class is the first to be loaded: transformers brings what it imports.

    The code of a folder goes to a place named after the folder, so each gets a name of its own.
    """
    for auto_class, options in (
        ("AutoProcessor", {}),
        ("AutoModel", {}),
        ("AutoModelForImageTextToText", {}),
        ("AutoModelForVisualQuestionAnswering", {"subfolder": "ask"}),
        ("AutoProcessor", {"subfolder": "match"}),
        ("AutoModel", {"subfolder": "region_model"}),
        ("AutoImageProcessor", {"subfolder": "region_model"}),
        ("pipeline", {}),
    ):
        folder = "_".join(["alone", auto_class, *options.values()])
        os.symlink(MINI, folder)
        if auto_class == "pipeline":
            transformers.pipeline("mengzi-oscar-captioning", model=folder, **REMOTE)
        else:
            getattr(transformers, auto_class).from_pretrained(folder, **REMOTE, **options)


@check
def processor():
    global PROCESSOR
    PROCESSOR = transformers.AutoProcessor.from_pretrained(MINI, **REMOTE)
    regions = [np.ones((3, 1286), dtype=np.float32), np.zeros((2, 1286), dtype=np.float32)]
    text, tags = ["一只狗在草地上跑。", "两个人"], [["狗", "草地"], "海滩"]
    encoded = PROCESSOR(text=text, tags=tags, regions=regions)
    pair = transformers.AutoProcessor.from_pretrained(MINI, subfolder="match", **REMOTE)(text=text, tags=tags)
    found = {name: tensor.tolist() for name, tensor in encoded.items() if name != "region_features"}
    return found | {"pair": pair["input_ids"].tolist(), "decoded": PROCESSOR.batch_decode(encoded["input_ids"])}


@check
def regions():
    """The region model of the repo and its image processor; a batch whose second photo has fewer regions."""
    global PROMPT, TEXT
    model, _ = load("AutoModel", subfolder="region_model")
    images = transformers.AutoImageProcessor.from_pretrained(MINI, subfolder="region_model", **REMOTE)
    pixels = images(photos(), return_tensors="pt")
    with torch.inference_mode():
        found = model(**pixels)
    features, tags = found.region_features.clone(), model.tags(found)
    rows = [features[0, ::3].numpy(), features[1, ::5].numpy()]  # fewer: the searches below compute everything anew
    words = [["狗", "草地"], []]
    PROMPT = PROCESSOR(tags=words, regions=rows)
    TEXT = PROCESSOR(text=["一只狗在草地上跑", "一个男人"], tags=words, regions=rows)
    return {"pixels": digits(pixels["pixel_values"]), "features": digits(features), "tags": tags}


@check
def forward():
    model, missing = load("AutoModel")
    with torch.no_grad():
        output = model(**TEXT)
    alone = {name: tensor[1:] for name, tensor in TEXT.items()}
    alone["region_features"] = alone["region_features"][:, TEXT["region_attention_mask"][1].bool()]
    del alone["region_attention_mask"]
    with torch.no_grad():
        same(model(**alone).last_hidden_state[:, :5], output.last_hidden_state[1:, :5])  # padding changes nothing
    states, pooled = digits(output.last_hidden_state[:, :6]), digits(output.pooler_output)
    return {"states": states, "pooled": pooled, "missing": missing}


@check
def heads():
    """Every head, with and without labels; from the folder that was trained for it where there is one."""
    twice = {name: torch.stack([tensor, tensor.flip(0)], dim=1) for name, tensor in TEXT.items()}
    tokens = TEXT["input_ids"].masked_fill(TEXT["attention_mask"] == 0, -100)
    found = {}
    for auto_class, options, inputs, labels in (
        ("AutoModelForPreTraining", {}, TEXT, {"labels": tokens, "next_sentence_label": torch.tensor([0, 1])}),
        ("AutoModelForImageTextToText", {}, TEXT, {"labels": tokens}),
        ("AutoModelForSequenceClassification", {"subfolder": "match"}, TEXT, {"labels": torch.tensor([1, 0])}),
        ("AutoModelForVisualQuestionAnswering", {"subfolder": "ask"}, TEXT, {"labels": torch.tensor([1, 0])}),
        ("AutoModelForMultipleChoice", {}, twice, {"labels": torch.tensor([1, 0])}),
    ):
        model, missing = load(auto_class, **options)
        if model.config.loss_type == "bce":
            labels = {"labels": torch.eye(model.config.num_labels)[:2]}
        with torch.no_grad():
            output = model(**inputs)
            loss = model(**inputs, **labels).loss
        outputs = {name: digits(value) for name, value in output.items() if name.endswith("logits")}
        found[auto_class] = {"loss": round(loss.item(), 5), "missing": missing, **outputs}
    return found


@check
def greedy():
    global CAPTIONER
    CAPTIONER, _ = load("AutoModelForImageTextToText")
    ids = generated(CAPTIONER, PROMPT, **GREEDY)
    return {"ids": ids.tolist(), "captions": PROCESSOR.batch_decode(ids)}


@check
def beam_5():
    global BEST
    found = generated(CAPTIONER, PROMPT, **BEAMS, **WITH_SCORES)
    ids, BEST = (without_padding(CAPTIONER, ids) for ids in (found.sequences, generated(CAPTIONER, PROMPT)))
    assert ids[::5] == BEST, "the folder's own settings of generation are not beam 5"
    captions = PROCESSOR.batch_decode(found.sequences)
    return {"ids": ids, "captions": captions, "scores": found.sequences_scores.tolist()}


@check
def sampling():
    ids = generated(CAPTIONER, PROMPT, **SAMPLING, num_return_sequences=3)
    return {"ids": ids.tolist(), "captions": PROCESSOR.batch_decode(ids)}


@check
def begun_captions():
    """Another start (the detailed style), fewer tokens, and transformers' own processors of logits."""
    start = PROCESSOR.begin("detailed", 2)
    options = {"input_ids": start, "max_length": 12, "no_repeat_ngram_size": 2, "length_penalty": 2.0}
    ids = generated(CAPTIONER, PROMPT, **options)
    assert ids.tolist() == generated(CAPTIONER, PROMPT, **options, use_cache=False).tolist()
    assert ids.shape[1] <= 12, ids.shape
    return {"ids": ids.tolist()}


@check
def cache():
    """With the cache and without, the same; and the cache is used: a step computes two positions a caption."""
    widths = []
    embeddings = CAPTIONER.get_submodule("bert.embeddings.word_embeddings")
    hook = embeddings.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    for options in (GREEDY, BEAMS, SAMPLING):
        widths.clear()
        cached = generated(CAPTIONER, PROMPT, **options, **WITH_SCORES)
        assert max(widths[1:]) <= 2, f"{options}: tags and steps of {widths} tokens with a cache"
        widths.clear()
        plain = generated(CAPTIONER, PROMPT, **options, **WITH_SCORES, use_cache=False)
        assert min(widths) > 2, f"{options}: steps of {widths} tokens without a cache"
        assert cached.sequences.tolist() == plain.sequences.tolist(), f"{options}: other captions"
        if options is BEAMS:
            same(cached.sequences_scores, plain.sequences_scores)
    hook.remove()


@check
def plain_decoder():
    """The library's searches against those above."""
    for options, choose in ((GREEDY, lambda logits: logits.argmax(dim=-1)), (SAMPLING, sample)):
        ours = generated(CAPTIONER, PROMPT, **options)
        torch.manual_seed(0)
        assert plain_search(CAPTIONER, PROMPT, choose).tolist() == ours.tolist(), f"{options}: other captions"
    found = generated(CAPTIONER, PROMPT, **BEAMS, **WITH_SCORES)
    for image in range(2):
        plain = plain_beams(CAPTIONER, {name: tensor[image : image + 1] for name, tensor in PROMPT.items()})
        rows = slice(5 * image, 5 * image + 5)
        ours = without_padding(CAPTIONER, found.sequences[rows])
        assert ours == [ids for _, ids in plain], f"beams of photo {image}: {ours} instead of {plain}"
        same(found.sequences_scores[rows], torch.tensor([score for score, _ in plain]))


@check
def pipeline():
    pipe = transformers.pipeline("mengzi-oscar-captioning", model=MINI, dtype="float32", **REMOTE)
    first, second = pipe(photos())
    weights = torch.tensor(first["captions"][0]["region_weights"])
    assert pipe(photos()[0], num_beams=2)["captions"][1]["caption"]
    rows = [[row["caption"], round(row["score"], 5)] for row in (first, second)]
    return {"captions": rows, "tags": first["tags"], "weights": digits(weights), "boxes": len(second["regions"])}


@check
def save_and_load():
    CAPTIONER.save_pretrained("saved")
    PROCESSOR.save_pretrained("saved")
    again, missing = load("AutoModelForImageTextToText", "saved")
    assert not missing, missing
    for (name, one), other in zip(CAPTIONER.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight, "untied"
    encoded = transformers.AutoProcessor.from_pretrained("saved", **REMOTE)(text=["一只狗"], tags=[["草地"]])
    assert encoded["input_ids"].tolist() == PROCESSOR(text=["一只狗"], tags=[["草地"]])["input_ids"].tolist()
    assert without_padding(again, generated(again, PROMPT)) == BEST, "the settings of generation were not saved"


@check
def resized_vocabulary():
    model, _ = load("AutoModelForImageTextToText")
    before, size = logits_of_next(model, PROMPT, torch.full((2, 1), 2)), model.config.vocab_size
    model.resize_token_embeddings(size + 3, mean_resizing=False)
    after = logits_of_next(model, PROMPT, torch.full((2, 1), 2))
    assert after.shape == (2, size + 3), after.shape
    same(after[:, :size], before)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight, "untied"


@check
def gradient_checkpointing():
    """The same gradients when layers are computed twice."""
    model, _ = load("AutoModelForImageTextToText")
    gradients, calls = [], []
    inside = model.get_submodule("bert.encoder.layer.0.attention.output.dense")
    inside.register_forward_pre_hook(lambda *_: calls.append(None))
    newer = getattr(model, "activation_checkpointing_enable", None)  # since 5.23
    enable = newer or model.gradient_checkpointing_enable
    for checkpointed in (False, True):
        if checkpointed:
            enable({"use_reentrant": False})
        model.train()
        torch.manual_seed(0)
        model.zero_grad()
        loss = model(**TEXT, labels=TEXT["input_ids"]).loss
        loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert len(calls) == 3, f"the first layer ran {len(calls)} times, not once and twice"
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        same(gradients[1][name], gradient)
    names = ("bert.img_embedding.weight", "bert.embeddings.word_embeddings.weight")
    return {"loss": round(loss.item(), 5)} | {name: digits(gradients[0][name]) for name in names}


@check
def attention():
    """eager = sdpa; what is asked for is returned."""
    eager, _ = load("AutoModel", attn_implementation="eager")
    with torch.no_grad():
        sdpa = load("AutoModel", attn_implementation="sdpa")[0](**TEXT, output_hidden_states=True)
        output = eager(**TEXT, output_hidden_states=True, output_attentions=True)
    same(output.last_hidden_state, sdpa.last_hidden_state)
    slots, layers = output.last_hidden_state.shape[1], eager.config.num_hidden_layers
    assert [tuple(states.shape) for states in output.attentions] == [(2, 4, slots, slots)] * layers
    assert [tuple(states.shape) for states in output.hidden_states] == [(2, slots, 256)] * (layers + 1)
    same(output.hidden_states[-1], output.last_hidden_state)
    for one, other in zip(output.hidden_states, sdpa.hidden_states, strict=True):
        same(one, other)
    same(torch.stack(output.attentions).sum(dim=-1), torch.ones(layers, 2, 4, slots))
    as_tuple = eager(**TEXT, return_dict=False)
    same(as_tuple[0], output.last_hidden_state)
    return {"attention": digits(output.attentions[-1][:, :, :5])}


@check
def vinvl():
    model, missing = load("AutoModel", VINVL)
    assert not missing, missing
    images = transformers.AutoImageProcessor.from_pretrained(VINVL, **REMOTE)
    pixels = images(photos(), return_tensors="pt")
    with torch.inference_mode():
        found = model(**pixels)
    values = {name: digits(found[name]) for name in ("boxes", "scores", "region_features")}
    return values | {"pixels": digits(pixels["pixel_values"]), "classes": found.class_ids.tolist()}


@check
def silence():
    """Nothing above made the library warn, but for the heads that their folder has no weights for.

    5.1 to 5.3 say of every image processor of a repo that it is "loaded as a fast processor", then that there is no
    "fast version" of it.
    """
    expected = ("newly initialized", "You should probably TRAIN", "LOAD REPORT", "a fast processor", "a fast version")
    said = sorted({text for text in SAID if not any(part in text for part in expected)})
    assert not said, f"{len(said)} warnings: {' / '.join(said)}"


class Ear(logging.Handler):
    def emit(self, record):
        SAID.append(" ".join(record.getMessage().split())[:300])


def main():
    transformers.logging.set_verbosity_warning()
    logging.getLogger("transformers").addHandler(Ear(logging.WARNING))
    warnings.simplefilter("always", FutureWarning)
    warnings.showwarning = lambda message, category, *_: SAID.append(f"{category.__name__}: {message}"[:300])
    results = {}
    for function in CHECKS:
        start, reason, found = time.perf_counter(), None, None
        try:
            found = function()
        except NameError as error:
            reason = f"needs {error.name}, which a check before it makes"
        except BaseException as error:  # also SystemExit of a library that gives up
            traceback.print_exc()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        seconds = round(time.perf_counter() - start, 1)
        results[function.__name__] = {"reason": reason, "seconds": seconds, "digits": found}
        with open(RESULT, "w", encoding="utf-8") as file:
            json.dump({"transformers": transformers.__version__, "checks": results}, file, ensure_ascii=False)


main()
