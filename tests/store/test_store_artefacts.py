"""The artefact store: whole or not at all, and nothing lost or kept for ever."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from acdc.errors import StorageError
from acdc.store import Artefacts

DAY = 24 * 3600


@pytest.fixture(params=["file", "memory"])
def artefacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artefacts:
    """A directory, and a store of objects that has neither rename nor fsync."""
    return Artefacts.open(f"file://{tmp_path}/a" if request.param == "file" else f"memory://{tmp_path}/a")


def file_of(root: Path, digest: str) -> Path:
    return root / "a" / digest[:2] / digest


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_bytes_come_back_by_their_sha256(artefacts: Artefacts) -> None:
    for data in (b"", b"scores" * 1000):
        digest = artefacts.put(data)
        assert digest == hashlib.sha256(data).hexdigest()
        assert artefacts.exists(digest)
        assert artefacts.get(digest) == data
        assert artefacts.put(data) == digest


def test_missing_artefact_is_named(artefacts: Artefacts) -> None:
    assert not artefacts.exists("0" * 64)
    with pytest.raises(StorageError, match=r"0{64} is missing"):
        artefacts.get("0" * 64)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_only_digests_become_paths(artefacts: Artefacts, digest: str) -> None:
    for ask in (artefacts.get, artefacts.exists):
        with pytest.raises(StorageError, match="is no digest"):
            ask(digest)


def test_plain_directory_is_a_place_too(tmp_path: Path) -> None:
    digest = Artefacts.open(str(tmp_path / "a")).put(b"x")
    assert Artefacts.open(f"file:{tmp_path}/a").get(digest) == b"x"
    assert file_of(tmp_path, digest).read_bytes() == b"x"


@pytest.mark.parametrize("content", [b"score", b"scorez"])
def test_torn_artefact_is_refused_and_mended_by_the_next_put(tmp_path: Path, content: bytes) -> None:
    artefacts = Artefacts.open(str(tmp_path / "a"))
    digest = artefacts.put(b"scores")
    file_of(tmp_path, digest).write_bytes(content)
    with pytest.raises(StorageError, match=f"{digest} .* is damaged"):
        artefacts.get(digest)
    artefacts.put(b"scores")
    assert artefacts.get(digest) == b"scores"


def test_write_that_is_cut_short_leaves_no_artefact(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from acdc.store import Artefacts; from acdc.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: Artefacts.open(sys.argv[1]).put(b'x' * 10000)\n"
        "except StorageError: sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 7
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_full_disk_is_a_retryable_storage_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artefacts = Artefacts.open(str(tmp_path / "a"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left") as caught:
        artefacts.put(b"scores")
    assert caught.value.is_retryable
    assert caught.value.job_code == "storage"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_place_that_cannot_be_used_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file"):
        Artefacts.open(str(tmp_path / "file"))
    with pytest.raises(StorageError, match="nowhere"):
        Artefacts.open("nowhere://x")


def test_many_writers_of_the_same_bytes_agree(artefacts: Artefacts) -> None:
    data = os.urandom(200_000)
    with ThreadPoolExecutor(8) as threads:
        digests = set(threads.map(lambda _: artefacts.put(data), range(16)))
    assert {artefacts.get(digest) for digest in digests} == {data}


def test_collection_takes_what_is_old_and_unnamed(tmp_path: Path) -> None:
    artefacts = Artefacts.open(str(tmp_path / "a"))
    named, old, young, renewed = (artefacts.put(name) for name in (b"named", b"old", b"young", b"renewed"))
    for digest in (named, old, renewed):
        age(file_of(tmp_path, digest), DAY + 60)
    artefacts.put(b"renewed")  # somebody is about to name it again
    part = file_of(tmp_path, old).with_name(f"{old}.0123.part")
    stranger = tmp_path / "a" / "README"
    for path in (part, stranger):
        path.write_text("x")
        age(path, DAY + 60)
    assert artefacts.collect(lambda: {named}) == (old,)
    assert [artefacts.exists(digest) for digest in (named, old, young, renewed)] == [True, False, True, True]
    assert (part.exists(), stranger.exists()) == (False, True)


class Interrupted(LocalFileSystem):  # type: ignore[misc]
    """Runs `meanwhile` once, just after the first file was removed."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        super().__init__(skip_instance_cache=True)
        self.meanwhile: Callable[[], object] | None = meanwhile

    def rm_file(self, path: str) -> None:
        super().rm_file(path)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()


def aged(tmp_path: Path, n: int = 8) -> set[str]:
    digests = {Artefacts.open(str(tmp_path / "a")).put(bytes([i])) for i in range(n)}
    for digest in digests:
        age(file_of(tmp_path, digest), DAY + 60)
    return digests


def test_what_is_put_again_while_others_are_removed_stays(tmp_path: Path) -> None:
    aged(tmp_path)
    again = Artefacts.open(str(tmp_path / "a"))
    kept: set[str] = set()

    def put_again() -> None:
        kept.update(digest for i in range(8) if again.exists(digest := hashlib.sha256(bytes([i])).hexdigest()))
        for i in range(8):
            if hashlib.sha256(bytes([i])).hexdigest() in kept:
                again.put(bytes([i]))

    removed = Artefacts(Interrupted(put_again), str(tmp_path / "a")).collect(set)
    assert len(removed) == 1
    assert len(kept) == 7
    assert all(again.exists(digest) for digest in kept)


def test_two_collectors_at_once_take_everything_between_them(tmp_path: Path) -> None:
    digests = aged(tmp_path)
    other = Artefacts.open(str(tmp_path / "a"))
    by_other: list[str] = []
    interrupted = Interrupted(lambda: by_other.extend(other.collect(set)))
    removed = Artefacts(interrupted, str(tmp_path / "a")).collect(set)
    assert (len(removed), len(by_other)) == (1, 7)
    assert {*removed, *by_other} == digests
    assert not any(other.exists(digest) for digest in digests)


def test_collector_that_comes_second_goes_on(artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one removes each file between our look at its age and our removal."""
    digest = artefacts.put(b"x")
    files = artefacts._files
    remove = files.rm_file

    def twice(path: str) -> None:
        remove(path)
        remove(path)

    monkeypatch.setattr(type(files), "rm_file", lambda _self, path: twice(path))
    assert artefacts.collect(set, min_age_s=-60) == ()
    assert not artefacts.exists(digest)


def test_collection_sees_what_is_named_while_it_looks(tmp_path: Path) -> None:
    artefacts = Artefacts.open(str(tmp_path / "a"))
    digest = artefacts.put(b"x")
    age(file_of(tmp_path, digest), DAY + 60)
    named: set[str] = set()

    def commit_late() -> set[str]:
        named.add(digest)
        return named

    assert artefacts.collect(commit_late) == ()
    assert artefacts.exists(digest)


def test_collection_works_on_object_stores(artefacts: Artefacts) -> None:
    kept, gone = artefacts.put(b"kept"), artefacts.put(b"gone")
    assert artefacts.collect(lambda: {kept}) == ()
    assert artefacts.collect(lambda: {kept}, min_age_s=-60) == (gone,)
    assert (artefacts.exists(kept), artefacts.exists(gone)) == (True, False)


def test_fsck_tells_missing_and_torn_from_good(tmp_path: Path) -> None:
    artefacts = Artefacts.open(str(tmp_path / "a"))
    good, torn, missing = artefacts.put(b"good"), artefacts.put(b"torn"), "0" * 64
    file_of(tmp_path, torn).write_bytes(b"tor")
    findings = artefacts.fsck({good, torn, missing})
    assert (findings.missing, findings.torn, findings.n_good) == ((missing,), (torn,), 1)
