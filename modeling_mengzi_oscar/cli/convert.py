"""`mengzi-oscar convert`: an original checkpoint becomes a folder that is a Hub repo."""

from .output import fail, meanwhile, printable, quiet

TASKS = ("caption", "retrieval", "vqa", "gqa", "nlvr2", "pretrain")


def add_arguments(parser):
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, .bin or Hub id (@REVISION); .pth of the VinVL detector")
    add("output", metavar="OUTPUT", help="new folder; DIR/match or DIR/ask: a head of the checkpoint in DIR")
    add("--task", default="auto", choices=["auto", *TASKS], help="default: detected from the weights")
    add("--region-model", metavar="ID@REV", help="region model it was trained with: Hub id or folder")
    add("--answers", metavar="FILE", help="answers of VQA or GQA: ans2label, JSON or pickle")
    add("--labelmap", metavar="FILE", help="detector: VG-SGG-dicts-vgoi6-clipped.json")
    add("--labels", metavar="FILE", help="detector: JSON {English: Chinese} that the captioner learnt")
    add("--vocab", metavar="FILE", help="vocab.txt, if there is none next to the weights")
    add("--allow-missing", action="store_true", help="initialise heads that the source lacks")
    add("--base-model", metavar="ID", help="for the model card: what this was fine-tuned from")
    add("--dataset", metavar="ID", action="append", dest="datasets", help="for the model card: trained on")
    add("--scores", metavar="FILE", help="for the model card: scores.json of an evaluation")


def run(options) -> int:
    with meanwhile("converting …"):
        quiet()
        from ..convert.oscar import convert as convert_checkpoint
        from ..convert.oscar import convert_detector
        from ..hub.repo import read_json

        try:
            if options.source.endswith(".pth"):
                said = [convert_detector(options.source, options.output, options.labelmap, options.labels)]
            else:
                names = ("task", "region_model", "answers", "vocab", "allow_missing", "base_model", "datasets")
                arguments = {name: getattr(options, name) for name in names}
                arguments["scores"] = read_json(options.scores) if options.scores else None
                task, notes = convert_checkpoint(options.source, options.output, **arguments)
                said = [f"task {task}.", *notes]
        except ValueError as error:
            return fail(str(error))
    print(printable(f"{options.output}: {' '.join(said)}"))
    return 0
