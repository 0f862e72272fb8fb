"""A piece of a test in a process of its own, which may be killed, without the seconds that an import takes."""

import io
import multiprocessing
import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout

import torch

FORK = multiprocessing.get_context("fork")


def start(run, *arguments):
    """A child that calls `run` and hands over (what it returned or its exit status, its stderr); see `result_of`."""
    reader, writer = FORK.Pipe(duplex=False)

    def child():
        torch.set_num_threads(1)  # the threads of the parent are not here
        said = io.StringIO()
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            try:
                value = run(*arguments)
            except SystemExit as end:
                value = end.code
            except BaseException as error:
                value = error
        writer.send((value, said.getvalue()))
        sys.exit(isinstance(value, BaseException))

    process = FORK.Process(target=child)
    process.start()
    writer.close()
    process.reader = reader
    return process


def result_of(process):
    """(value or exception, lines of stderr without the progress); ("killed", []) of a child that was."""
    try:
        value, said = process.reader.recv()
    except EOFError:
        value, said = "killed", ""
    process.join(60)
    assert not process.is_alive()
    return value, [line for line in said.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]


def call(run, *arguments):
    return result_of(start(run, *arguments))


def die():
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
