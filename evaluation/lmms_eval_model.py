"""Our captioners as a model of lmms-eval."""

from lmms_eval.api.model import lmms
from tqdm import tqdm

from modeling_mengzi_oscar import MengziOscarPipeline


class MengziOscar(lmms):
    """`--model mengzi_oscar --model_args pretrained=FOLDER_OR_ID,revision=COMMIT,num_beams=5`.

    Writes captions only: it reads neither the instruction of a task nor its settings of generation, which are made for
    models that chat. Length, beams and style are the checkpoint's where `model_args` do not say others.

    Args:
        pretrained, revision, dtype: as `MengziOscarPipeline.from_pretrained` takes them.
        num_beams, style: as its `caption` takes them.
        batch_size, device, max_batch_size: of the command line; the last is not used.
    """

    def __init__(
        self,
        pretrained,
        revision=None,
        dtype="auto",
        num_beams=None,
        style=None,
        batch_size=1,
        device=None,
        max_batch_size=None,
    ):
        super().__init__()
        self.pipe = MengziOscarPipeline.from_pretrained(pretrained, revision, device or "cpu", dtype)
        self.settings = {"num_beams": num_beams, "style": style, "batch_size": int(batch_size)}
        self.pipe.caption([], **self.settings)  # raises where they cannot work

    def generate_until(self, requests) -> list[str]:
        """A caption for each request's photo.

        Raises:
            ValueError: a request with several photos, or none. PhotoError: a photo that cannot be read.
        """
        captions, size = [], self.settings["batch_size"]
        for start in tqdm(range(0, len(requests), size), desc="captions", disable=self.rank != 0):
            photos = [self.photo_of(*request.args) for request in requests[start : start + size]]
            for request, result in zip(requests[start:], self.pipe.caption(photos, **self.settings), strict=False):
                if "error" in result:
                    raise ValueError(f"{request.task_name}, row {request.doc_id}: {result['error']}")
                captions.append(result["caption"])
                self.cache_hook.add_partial("generate_until", request.args[:2], result["caption"])
        return captions

    def photo_of(self, instruction, settings, doc_to_visual, row, task, split):
        photos = doc_to_visual(self.task_dict[task][split][row])
        if len(photos) != 1:
            raise ValueError(f"{task}, row {row}: {len(photos)} photos, where a caption is written of one")
        return photos[0]

    def loglikelihood(self, requests):
        raise NotImplementedError("mengzi_oscar writes captions; tasks that compare likelihoods need another model")

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("mengzi_oscar writes captions; tasks of several rounds need another model")
