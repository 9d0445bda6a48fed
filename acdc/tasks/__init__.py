"""The built-in tasks, by name."""

from __future__ import annotations

from acdc.tasks.description import TaskDescription

TASKS: dict[str, TaskDescription] = {}
