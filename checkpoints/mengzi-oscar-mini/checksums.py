"""What safetensors files lack by themselves: a checksum, and the access that other files have.

Checksums stand in the files that they are of: `"crc32"`, with zeros in its place while it is computed.

JSON files of ours and the metadata of safetensors files may begin with one. safetensors has none of its own: without
it a flipped bit of a weight is another weight.
"""

import re
import shutil
import zlib
from pathlib import Path

CHECKSUM = re.compile(rb'"crc32": ?"([^"]*)"')
NO_CHECKSUM = "00000000"
FIRST_BYTES = 128  # the checksum is the first thing that a file says


def checksums(file) -> tuple[str | None, str]:
    """The checksum that a file begins with, None where it has none, and the one of its bytes.

    Args:
        file: binary, read to its end.
    """
    first = file.read(FIRST_BYTES)
    stated = CHECKSUM.search(first)
    if stated:
        first = first[: stated.start(1)] + NO_CHECKSUM.encode() + first[stated.end(1) :]
    found = zlib.crc32(first)
    while block := file.read(1 << 20):
        found = zlib.crc32(block, found)
    return stated and stated[1].decode("utf-8", "replace"), f"{found:08x}"


def check_bytes(path) -> None:
    """
    Raises:
        ValueError: the file begins with a checksum, and its bytes have another one.
    """
    with open(path, "rb") as file:
        stated, found = checksums(file)
        file.seek(0)
        first = file.read(FIRST_BYTES)
    if stated != found and (stated or re.search(rb'{"[^"]{5}": ?"[0-9a-f]{8}"', first)):  # or its name is damaged
        raise ValueError("its bytes do not match the checksum it states; copy it again")


def share_weights(folder) -> None:
    """safetensors writes files that only their owner may read; here they get the mode of config.json beside them."""
    folder = Path(folder)
    if (folder / "config.json").is_file():
        for path in folder.glob("*.safetensors"):
            shutil.copymode(folder / "config.json", path)
