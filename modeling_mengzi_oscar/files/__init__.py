"""Files that are whole or not there, that know when they were damaged, and folders that one process at a time writes.

A file is written to `<name>.tmp`, or `<name>.<who>.tmp` where several processes write it, brought to the disk and
renamed. A JSON file of ours may begin with `"crc32"`, the CRC-32 of its bytes with zeros in the place of that number;
the shards of a feature store and the weights of a checkpoint carry theirs in the same way (checksums.py).
"""

import errno
import json
import os
import re
import socket
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

from ..checksums import NO_CHECKSUM, checksums

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and nothing of other processes is cleared
    fcntl = None

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HINT = "; free some space, then start again"


@contextmanager
def naming(path):
    """Around what is done with a file: an error of the disk becomes one that names a file and says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in NO_ROOM and HINT not in reason:
            reason += HINT
        raise OSError(error.errno, reason, str(error.filename or path)) from None


@contextmanager
def open_whole(path, who=None):
    """A binary file to write, which gets its name when the block ends well; what was there before stays until then.

    Args:
        who: of several processes that may write this file at once.

    Raises:
        OSError: names the file.
    """
    path = Path(path)
    temporary = path.with_name(".".join(filter(None, (path.name, who, "tmp"))))
    with naming(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # also where the user stops the program
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        if hasattr(os, "O_DIRECTORY"):  # so that the name survives a power cut
            folder = os.open(path.parent, os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)


def write_whole(path, content: bytes, who=None):
    """A file of these bytes, whole or not there; see `open_whole`."""
    with open_whole(path, who) as file:
        file.write(content)


def with_checksum(content: dict) -> bytes:
    """JSON that begins with its checksum."""
    data = json.dumps({"crc32": NO_CHECKSUM} | content, indent=2, ensure_ascii=False).encode() + b"\n"
    return data.replace(NO_CHECKSUM.encode(), b"%08x" % zlib.crc32(data), 1)


def state_checksum(path):
    """Writes a safetensors file anew, with a checksum at its beginning. Its tensors and their order stay."""
    with open(path, "rb") as old, open_whole(path) as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        metadata = header.pop("__metadata__", {}) | {"crc32": NO_CHECKSUM}
        header = {"__metadata__": {"crc32": NO_CHECKSUM} | metadata} | header
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        start = len(text).to_bytes(8, "little") + text
        new.write(start)
        found = zlib.crc32(start)
        while block := old.read(1 << 20):
            new.write(block)
            found = zlib.crc32(block, found)
        new.seek(start.index(NO_CHECKSUM.encode()))
        new.write(b"%08x" % found)


def read_json(path, whole=True, names=None) -> dict:
    """A JSON object, without its checksum.

    Args:
        whole: the checksum, if there is one, has to be right.
        names: that the object may have, where others can only be damage.

    Raises:
        ValueError: one line that names the file: not JSON, no object, or not what its checksum belongs to.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON ({' '.join(str(error).split()):.100}); copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: damaged, {content!r:.60} instead of a JSON object; copy it again")
    if whole and "crc32" in content:
        with open(path, "rb") as file:
            stated, found = checksums(file)
        if content.pop("crc32") != found or stated != found:
            raise ValueError(
                f"{path}: damaged, its bytes do not match the checksum it states; copy it again, or take the line "
                "crc32 out if you changed it yourself"
            )
    if names is not None and (others := content.keys() - names):
        raise ValueError(f"{path}: damaged, {min(others)!r:.60} is none of {', '.join(names)}; copy it again")
    return content


class Lock:
    """A file that at most one process holds, until `release()` or the end of the `with` block or of the process.

    Args:
        path: made if it is not there, deleted when it is released.
        what: is written meanwhile, for the message.
        wait: until another process releases it, instead of raising an error.

    Raises:
        ValueError: another process holds it; names the process and what it writes.
    """

    def __init__(self, path, what, wait=False):
        self.path = Path(path)
        while True:
            self.file = open(self.path, "ab+", buffering=0)  # noqa: SIM115, closed by `release`
            try:
                if fcntl:
                    fcntl.flock(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                self.file.seek(0)
                owner = self.file.read().decode(errors="replace")
                self.file.close()
                raise ValueError(f"another process ({owner}) is writing {what}: wait for it, or end it") from None
            except OSError:  # a file system without locks: as without them
                break
            try:
                if os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno())):
                    break
            except FileNotFoundError:
                pass
            self.file.close()  # of a process that has released it just now
        with suppress(OSError):  # where the disk is full, the work says so
            self.file.truncate(0)
            self.file.write(f"pid {os.getpid()} on {socket.gethostname()}".encode())

    def release(self):
        if self.file.closed:
            return
        if not fcntl:  # Windows deletes no open file
            self.file.close()
        self.path.unlink(missing_ok=True)
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.release()


def clear_leftovers(folder, locks, leftovers, what):
    """Deletes what killed processes left in a folder.

    Args:
        locks: pattern (`Path.glob`) of the files that the processes hold while they live.
        leftovers: regular expression for the names of their temporary files.
        what: they write, for the message.

    Raises:
        ValueError: one of them lives.
    """
    for path in Path(folder).glob(locks):
        Lock(path, what).release()
    for path in Path(folder).iterdir() if fcntl else ():
        if re.fullmatch(leftovers, path.name):
            path.unlink(missing_ok=True)
