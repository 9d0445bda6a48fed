"""Every error this package raises on purpose, in one tree.

    AcdcError
    ├── SpecError             invalid_spec         a job spec breaks the schema; carries every fault
    ├── TaskError             invalid_task         prompts, answers or metric do not work with this model
    ├── ModelError
    │   ├── UnknownModel      unknown_model        the reference names nothing that can be found
    │   ├── UnsupportedModel  unsupported_model    no description for this architecture, or a feature of it
    │   ├── ParityFailed      parity_failed        our forward differs from the model's own
    │   └── BadWeights        bad_weights          file truncated, not a number in it, wrong format
    ├── GraphMismatch         graph_mismatch       circuit, nodes or edges belong to another graph
    ├── CircuitFileError      bad_circuit_file     file damaged, foreign, or of an unknown version
    ├── MapFileError          bad_map_file         the same of a patching map's file
    ├── OutOfMemory           out_of_memory        the device has too little memory for the smallest batch
    ├── StorageError          storage              disk full, artefact missing or torn      (retryable)
    ├── Cancelled             cancelled            someone asked the search to stop
    ├── NotFound              not_found            no such job, circuit, model, task or method
    ├── Conflict              invalid_state        the state table forbids this move
    ├── IdempotencyConflict   idempotency_conflict same key, another body
    ├── Unauthorized          unauthorized         no key, or a wrong one
    ├── Forbidden             forbidden            the server's allow-list or limits say no
    ├── DatabaseError         database             unreachable                          (retryable)
    │   ├── SchemaMismatch    schema_mismatch      migrated by another version of this program
    │   └── BadDatabase       bad_database         no database at all, a damaged one, or another program's
    └── ServiceError          service              the client could not get an answer      (retryable)

`code` is stable: it is what HTTP bodies, job rows and tests name. Nobody reads the message to decide anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where (a dotted path or a row), and what, with the way out."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class AcdcError(Exception):
    """Root of the tree. `message` names the offending value and the way out."""

    code: ClassVar[str] = "internal"
    is_retryable: ClassVar[bool] = False
    job_code: ClassVar[str] = "internal"  # what a failed job's row carries, see the state table

    def __init__(self, message: str, faults: Iterable[Fault] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  - {fault}" for fault in self.faults)])

    def to_dict(self) -> dict[str, object]:
        """What crosses a process border: no traceback, no type name."""
        return {"code": self.code, "message": self.message, "faults": [asdict(fault) for fault in self.faults]}


class SpecError(AcdcError):
    code = "invalid_spec"
    job_code = "invalid_task"


class TaskError(AcdcError):
    code = "invalid_task"
    job_code = "invalid_task"


class ModelError(AcdcError):
    code = "model"
    job_code = "invalid_task"


class UnknownModel(ModelError):
    code = "unknown_model"


class UnsupportedModel(ModelError):
    code = "unsupported_model"


class ParityFailed(ModelError):
    code = "parity_failed"


class BadWeights(ModelError):
    code = "bad_weights"


class GraphMismatch(AcdcError):
    code = "graph_mismatch"
    job_code = "invalid_task"


class CircuitFileError(AcdcError):
    code = "bad_circuit_file"
    job_code = "invalid_task"


class MapFileError(AcdcError):
    code = "bad_map_file"
    job_code = "invalid_task"


class OutOfMemory(AcdcError):
    code = "out_of_memory"
    job_code = "out_of_memory"


_NO_MEMORY = ("OutOfMemoryError", "MemoryError")  # types, those of torch among them
_NO_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "cublas_status_alloc_failed")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine had no more memory to give: some say so by type, others in words only."""
    if type(error).__name__ in _NO_MEMORY:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY_WORDS)


class StorageError(AcdcError):
    code = "storage"
    job_code = "storage"
    is_retryable = True


class Cancelled(AcdcError):
    code = "cancelled"


class NotFound(AcdcError):
    code = "not_found"
    job_code = "invalid_task"


class Conflict(AcdcError):
    code = "invalid_state"


class IdempotencyConflict(AcdcError):
    code = "idempotency_conflict"


class Unauthorized(AcdcError):
    code = "unauthorized"


class Forbidden(AcdcError):
    code = "forbidden"
    job_code = "invalid_task"


class DatabaseError(AcdcError):
    code = "database"
    is_retryable = True


class SchemaMismatch(DatabaseError):
    code = "schema_mismatch"
    is_retryable = False


class BadDatabase(DatabaseError):
    code = "bad_database"
    is_retryable = False


class ServiceError(AcdcError):
    code = "service"
    job_code = "storage"  # of a job: what holds the model's files gave no answer, and may tomorrow
    is_retryable = True
