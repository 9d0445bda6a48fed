"""The Hugging Face hub: what a revision is, how much it weighs, and its files. Torch-free.

Only configuration, tokenizer and safetensors are taken (`.bin` weights where there are no safetensors); code never.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from acdc.errors import Forbidden, ServiceError, UnknownModel
from acdc.models.child import run_child, work_as_child
from acdc.progress import Progress

_PLAIN = (".json", ".txt", ".model", ".jinja")
_COMMIT = re.compile(r"[0-9a-f]{40}")
T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """The files of one commit that make up the model, and their size."""

    commit: str
    files: tuple[str, ...]
    size_bytes: int


class Hub(Protocol):
    """What fetching needs of a hub."""

    def snapshot(self, name: str, revision: str | None) -> Snapshot:
        """Raises UnknownModel, Forbidden, ServiceError."""

    def download(self, name: str, snapshot: Snapshot, directory: Path, progress: Progress) -> None:
        """Bring the files into `directory`; those that are there already stay. Raises as `snapshot`, and Cancelled."""


class HuggingFaceHub:
    """endpoint: None for the one that huggingface_hub is set to."""

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = endpoint

    def snapshot(self, name: str, revision: str | None) -> Snapshot:
        from huggingface_hub import HfApi

        info = _ask(
            name, revision, lambda: HfApi(self.endpoint).model_info(name, revision=revision, files_metadata=True)
        )
        sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or []}
        files = choose_files(sizes)
        if not files:
            raise UnknownModel(f"hub:{name} holds no safetensors and no pytorch_model.bin in its main directory")
        return Snapshot(str(info.sha), files, sum(sizes[file] for file in files))

    def download(self, name: str, snapshot: Snapshot, directory: Path, progress: Progress) -> None:
        run_child(
            "acdc.models.hub",
            [self.endpoint or "", name, snapshot.commit, str(directory), *snapshot.files],
            progress=progress,
            phase=f"downloading {name}",
            watched=directory,
            total_bytes=snapshot.size_bytes,
        )


def choose_files(names: Sequence[str] | dict[str, int]) -> tuple[str, ...]:
    """Configuration, tokenizer and weights among a repository's files; nothing where there are no weights."""
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name)]
    weights = weights or [name for name in top if re.fullmatch(r"pytorch_model(-\d+-of-\d+)?\.bin", name)]
    if not weights:
        return ()
    return tuple(sorted([*weights, *(name for name in top if name.endswith(_PLAIN))]))


def is_commit(revision: str | None) -> bool:
    """Whether a revision names one commit for ever; a branch or a tag does not."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def _ask(name: str, revision: str | None, question: Callable[[], T]) -> T:
    """Put a question to the hub; its errors become ours."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # HTTP libraries differ by version of huggingface_hub; the root of their errors is what its own error derives from.
    transport = (base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))
    no_answer: tuple[type[Exception], ...] = (*transport, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError)

    reference = f"hub:{name}" + (f"@{revision}" if revision else "")
    try:
        return question()
    except GatedRepoError:
        raise Forbidden(f"{reference} is gated: accept its terms on the hub and log in with `hf auth login`") from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UnknownModel(f"{reference} is not on the hub, or not public: {_first_line(error)}") from None
    except no_answer as error:
        raise ServiceError(
            f"the hub cannot be reached for {reference} ({_first_line(error)}); with no network, use a model that is "
            "in the cache already (`acdc models`), a path: or a gguf: reference"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _main(arguments: Sequence[str]) -> None:
    from huggingface_hub import snapshot_download

    endpoint, name, commit, directory, *files = arguments
    options: dict[str, Any] = {"local_dir": directory, "allow_patterns": files, "endpoint": endpoint or None}
    _ask(name, commit, lambda: snapshot_download(name, revision=commit, **options))


if __name__ == "__main__":
    work_as_child(_main)
