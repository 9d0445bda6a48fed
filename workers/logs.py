"""What a running job printed, on its way into the store."""

from __future__ import annotations

from pathlib import Path

_MOST_AT_ONCE = 64 * 1024  # bytes; more than that between two looks is a program gone wild


class LogTail:
    """New lines of a growing file. Where too much came at once the older part is left out, never the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def lines(self, *, is_over: bool = False) -> list[str]:
        """The lines since the last call. A last line without an end waits for it, unless the file is over."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            size = file.seek(0, 2)
            left_out = max(size - self._read - _MOST_AT_ONCE, 0)
            file.seek(self._read + left_out)
            data = file.read(_MOST_AT_ONCE)
        if not is_over and len(data) < _MOST_AT_ONCE:
            data = data[: data.rfind(b"\n") + 1]
        self._read += left_out + len(data)
        lines = data.decode(errors="replace").splitlines()
        return [f"[{left_out} bytes of output left out]", *lines] if left_out else lines
