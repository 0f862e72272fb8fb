"""What the benchmarks share: options, medians of runs, the machine's own speed, peak memory, the results file.

Variants take turns run by run, so that other work on the machine hits all of them. The floor of a job is its
floating-point operations over the measured rate of one large matrix product, or its bytes over the measured copy
bandwidth, whichever takes longer: what fraction of it a variant reaches says how much is left to win.
"""

import argparse
import copy
import datetime
import gc
import json
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from modeling_mengzi_oscar.precision import compute_in

RESULTS = Path(__file__).resolve().parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def benchmark_parser(description: str, runs: int = 5, int8: bool = False) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    dtypes = [*DTYPES, "int8"] if int8 else [*DTYPES]
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="of the fast path; naive paths are float32")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, each on a core of its own")
    parser.add_argument("--runs", type=int, default=runs, help="measured runs of each variant, after one to warm up")
    parser.add_argument("--save", action="store_true", help="append the result to benchmarks/results/")
    return parser


def copy_in(dtype: str, model):
    """A copy of a model in another type of numbers, "int8" among them."""
    return compute_in(dtype, copy.deepcopy(model), model.device)


def prepare(options) -> None:
    """Pins the process to as many cores as threads, before torch has started any; seeds."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.threads :])
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)


@dataclass
class Measured:
    seconds: float  # median
    fastest: float
    peak_mib: float  # of the process on a CPU, allocated on the device on a GPU


def in_turn(variants: dict, runs: int, device: str = "cpu") -> dict[str, Measured]:
    """Calls every variant once to warm up, then `runs` times in turn; name -> Measured."""
    times, peaks = {name: [] for name in variants}, {}
    for run in range(runs + 1):
        for name, function in variants.items():
            gc.collect()
            forget_peak(device)
            start = now(device)
            function()
            if run > 0:
                times[name].append(now(device) - start)
            peaks[name] = max(peaks.get(name, 0), peak_memory(device))
            print(
                f"\r{name[:60]:<60} {f'run {run} of {runs}' if run else 'warm-up'}", end="", file=sys.stderr, flush=True
            )
    print(file=sys.stderr)
    return {name: Measured(statistics.median(t), min(t), peaks[name]) for name, t in times.items()}


class Clock:
    """Seconds per stage; waits for the device at both ends of every stage."""

    def __init__(self, device: str):
        self.device, self.seconds = device, defaultdict(float)

    @contextmanager
    def stage(self, name: str):
        start = now(self.device)
        yield
        self.seconds[name] += now(self.device) - start

    def around(self, name: str, function):
        def timed(*args, **kwargs):
            with self.stage(name):
                return function(*args, **kwargs)

        return timed

    @contextmanager
    def around_methods(self, stages: dict):
        """Inside, methods report to the clock: {stage: (object, name of its method)}."""
        for stage, (part, method) in stages.items():
            setattr(part, method, self.around(stage, getattr(part, method)))
        yield
        for part, method in stages.values():
            delattr(part, method)


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> float:
    """MiB since `forget_peak`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if Path("/proc/self/status").exists():
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes, of the whole run


def count_flops(function) -> int:
    """Floating-point operations of the matrix products in a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@dataclass
class Machine:
    matrix_rate: float  # FLOP/s of one large product
    copy_bandwidth: float  # bytes read and written per second by a copy

    def floor(self, flops: float, traffic: float = 0) -> float:
        """Seconds that so many operations and bytes take at the least."""
        return max(flops / self.matrix_rate, traffic / self.copy_bandwidth)

    def __str__(self):
        return f"matrix rate {self.matrix_rate / 1e9:,.0f} GFLOP/s, copies {self.copy_bandwidth / 1e9:,.1f} GB/s"


def measure_machine(device: str, dtype: str) -> Machine:
    """The best of seven matrix products and of seven copies, with the threads that are set."""
    n = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(rows, n, device=device, dtype=DTYPES[dtype]) for rows in (2 * n, n))
    source = torch.ones(2**27, device=device)  # 512 MiB, beyond any cache
    target = torch.empty_like(source)

    def best(function):
        seconds = []
        for _ in range(7):
            start = now(device)
            function()
            seconds.append(now(device) - start)
        return min(seconds)

    product = best(lambda: torch.nn.functional.linear(a, b))
    copy = best(lambda: target.copy_(source))
    return Machine(2 * a.shape[0] * n * n / product, 2 * source.nbytes / copy)


def hardware(device: str) -> str:
    """Short enough for a file's name: "xeon-avx512", "nvidia-h200"."""
    if device == "cuda":
        return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower())
    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"model name\s*:(.*)", information)
    names = re.findall("xeon|epyc|core|ryzen", model[1].lower() if model else "") or [platform.machine()]
    kind = next((kind for flag, kind in (("amx_bf16", "-amx"), ("avx512f", "-avx512")) if flag in information), "")
    return names[0] + kind


def table(header: list[str], rows: list[list]) -> str:
    """Markdown; the first column is text, the others are numbers or already written."""

    def cell(value):
        if isinstance(value, float):
            return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
        return f"{value:,}" if type(value) is int else str(value)

    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *[[cell(value) for value in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(job: str, options, text: str, result: dict) -> None:
    """Prints the text (tables) and one JSON line; with --save appends both to results/<job>_<hardware>_<date>.md."""
    date = datetime.date.today().isoformat()
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]).replace(" --save", "")
    command = re.sub(r"(?<= )/\S+/", "PATH/", command)  # where things lie here is nobody's business
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {options.threads} threads"
    name = torch.cuda.get_device_name() if options.device == "cuda" else hardware("cpu")
    load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    settings = {"job": job, "hardware": name, "date": date, "command": command}
    body = f"    {command}\n\n{name}, {versions}, {load}\n\n{text}\n\n    {json.dumps(settings | result)}\n"
    print(body)
    if options.save:
        path = RESULTS / f"{job}_{hardware(options.device)}_{date}.md"
        title = "" if path.exists() else f"# {job}, {hardware(options.device)}, {date}\n"
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{title}\n{body}")
