"""Photos -> region features on disk, with any region model.

    accelerate launch train/extract_features.py PHOTOS --model FOLDER_OR_ID --output STORE

The same as `mengzi-oscar extract` (docs/extraction.md), for several processes and machines: each takes the photos whose
ids hash to it (`accelerate launch --multi_gpu --num_processes 4 ...`; on CPUs `accelerate launch --cpu
--num_processes 2 ... --use_cpu`). Run again after an interruption: what the store holds is left out.
"""

import argparse
import sys
from datetime import timedelta

import common  # noqa: F401  (before torch)
from accelerate import PartialState

from modeling_mengzi_oscar.cli.extract import add_extract_arguments
from modeling_mengzi_oscar.cli.output import fail
from modeling_mengzi_oscar.features.extraction import extract, is_store


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_extract_arguments(parser)
    parser.add_argument(
        "--model",
        help="region model, or a checkpoint that names one: folder or Hub id (required, but for a store)",
    )
    parser.add_argument("--use_cpu", action="store_true", help="run on the CPU, where there is a GPU, too")
    options = parser.parse_args(arguments)
    if options.model is None and not is_store(options.source):
        parser.error("the following arguments are required: --model")
    settings = vars(options)

    # The processes wait for each other once, at the end, and one may have many more large photos than another.
    state = PartialState(cpu=settings.pop("use_cpu"), timeout=timedelta(days=7))

    def wait_for_everyone():
        try:
            state.wait_for_everyone()
        except RuntimeError:  # the connection broke off
            raise ValueError(
                "another process of this extraction ended early; start again, what is done is kept"
            ) from None

    try:
        line, _ = extract(
            **settings,
            device=state.device,
            process_index=state.process_index,
            num_processes=state.num_processes,
            wait_for_everyone=wait_for_everyone,
        )
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt as stopped:
        if str(stopped):  # process 0 speaks for all
            fail(stopped)
        return 130
    state.print(line)
    state.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
