"""What somebody who mistyped a name probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean NAME? `, for the middle of a message, with the known name that is nearest, whatever its case.

    Empty where none is near.
    """
    by_folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), by_folded, n=1)
    return f"did you mean {by_folded[near[0]]}? " if near else ""
