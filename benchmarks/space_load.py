"""Many people at the demo at once: waiting times, throughput, and whether its memory stays flat.

    python benchmarks/space_load.py
    python benchmarks/space_load.py --people 20 --requests 500 --threads 2 --model path/to/checkpoint

Starts space/app.py in a process of its own, on the given number of cores, and asks it as browsers do, over HTTP: every
person uploads a photo, waits for its captions (beam 5, as the page asks) and continues with the next. Then the same
by one person alone. Memory is the resident size of the app, read after every tenth request; its slope is a straight
line through the second half of the run.
"""

import argparse
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil
from tqdm import tqdm

from modeling_mengzi_oscar.cli.checkpoint import BUNDLED
from modeling_mengzi_oscar.demo.samples import MORE_SAMPLES, SAMPLES, sample_photos
from modeling_mengzi_oscar.photos import open_photo

SPACE = Path(__file__).resolve().parents[1] / "space" / "app.py"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUNDLED), help="checkpoint folder or Hub id")
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--requests", type=int, default=500, help="in all, shared by the people")
    parser.add_argument("--threads", type=int, default=2, help="cores that the app may use")
    parser.add_argument("--num-beams", type=int, default=5)
    parser.add_argument("--side", type=int, help="scale the photos to so many pixels (a phone: 4000)")
    options = parser.parse_args(arguments)

    photos = [jpeg(open_photo(path), options.side) for path, _ in sample_photos(MORE_SAMPLES | SAMPLES).values()]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process, url = start_app(options, folder)
        started = time.perf_counter() - start
        try:
            ask(url, photos[0], options.num_beams)
            alone = [ask(url, photo, options.num_beams) for photo in photos * 2]
            before, computed = resident(process), computing(process)
            begin = time.perf_counter()
            waited, memory = crowd(process, url, photos, options)
            seconds, computed = time.perf_counter() - begin, computing(process) - computed
        finally:
            process.terminate()
            process.wait(20)
    quarter, half = len(memory) // 4, len(memory) // 2
    second, last = statistics.mean(memory[quarter:half]), statistics.mean(memory[-quarter:])
    slope = statistics.linear_regression(range(0, 10 * len(memory[half:]), 10), memory[half:]).slope
    row = {
        "start_s": started,
        "alone_p50_s": statistics.median(alone),
        "p50_s": statistics.median(waited),
        "p95_s": sorted(waited)[int(0.95 * len(waited))],
        "requests_per_s": len(waited) / seconds,
        "cpu_s_per_request": computed / len(waited),  # holds on a busy machine too
        "memory_before_mib": before,
        "memory_second_quarter_mib": second,
        "memory_last_quarter_mib": last,
        "memory_slope_kib_per_request": 1024 * slope,
        "memory_peak_mib": max(memory),
    }
    for name, value in row.items():
        print(f"{name:<28} {value:>9.2f}")
    print(json.dumps({"people": options.people, "requests": len(waited), "threads": options.threads} | row))


def start_app(options, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": str(options.threads)}
    environment |= {"MODEL_ID": options.model, "GRADIO_TEMP_DIR": folder}
    process = psutil.Popen([sys.executable, str(SPACE)], env=environment, stdout=subprocess.DEVNULL)
    if hasattr(process, "cpu_affinity"):  # not on macOS
        process.cpu_affinity(process.cpu_affinity()[-options.threads :])
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            httpx.get(url, timeout=5)
            return process, url
        except httpx.TransportError:
            if process.poll() is not None:
                raise SystemExit("space/app.py did not start") from None
            time.sleep(0.1)


def crowd(process, url, photos, options):
    """Seconds that each request waited, and the app's memory (MiB) as it went."""
    waited, memory, left = [], [], list(range(options.requests))
    bar = tqdm(total=options.requests, unit="caption")

    def person():
        while True:
            try:
                number = left.pop()
            except IndexError:
                return
            waited.append(ask(url, photos[number % len(photos)], options.num_beams))
            bar.update()
            if number % 10 == 0:
                memory.append(resident(process))

    people = [threading.Thread(target=person) for _ in range(options.people)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    bar.close()
    if len(waited) != options.requests:
        raise SystemExit(f"only {len(waited)} of {options.requests} requests were answered")
    return waited, memory


def ask(url, photo: bytes, num_beams) -> float:
    """Uploads a photo, waits for its captions; the seconds that took."""
    start = time.perf_counter()
    with httpx.Client(base_url=f"{url}/gradio_api", timeout=300) as client:
        [path] = client.post("/upload", files={"files": ("photo.jpg", photo)}).json()
        upload = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event = client.post("/call/caption", json={"data": [upload, num_beams, 20, 0]}).json()["event_id"]
        answer = client.get(f"/call/caption/{event}").text
    if "event: complete" not in answer:
        raise RuntimeError(f"no caption: {answer[:300]}")
    return time.perf_counter() - start


def jpeg(photo, side=None) -> bytes:
    if side:
        share = side / max(photo.size)
        photo = photo.resize((round(share * photo.width), round(share * photo.height)))
    content = io.BytesIO()
    photo.save(content, format="JPEG", quality=90)
    return content.getvalue()


def computing(process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def resident(process) -> float:
    return process.memory_info().rss / 2**20


if __name__ == "__main__":
    main()
