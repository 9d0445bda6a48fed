"""The built-in tasks, by name."""

from __future__ import annotations

from acdc.tasks.country_capital import COUNTRY_CAPITAL
from acdc.tasks.description import TaskDescription
from acdc.tasks.docstring import DOCSTRING
from acdc.tasks.gendered_pronoun import GENDERED_PRONOUN
from acdc.tasks.greater_than import GREATER_THAN
from acdc.tasks.induction import INDUCTION
from acdc.tasks.ioi import IOI
from acdc.tasks.subject_verb_agreement import SUBJECT_VERB_AGREEMENT
from acdc.tasks.successor import SUCCESSOR

TASKS: dict[str, TaskDescription] = {
    task.name: task
    for task in (
        IOI,
        GREATER_THAN,
        GENDERED_PRONOUN,
        SUBJECT_VERB_AGREEMENT,
        COUNTRY_CAPITAL,
        SUCCESSOR,
        DOCSTRING,
        INDUCTION,
    )
}
