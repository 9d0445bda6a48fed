"""Chat messages as the text that a model sees: the tokenizer's own chat template, BOS included where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from acdc.tasks.pair_rows import ChatMessage
from acdc.tasks.prompts import Tokenizer


class _ChatTokenizer(Protocol):
    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> str: ...


def render_chat(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> str:
    """The conversation up to where the model speaks. A last message of the assistant is continued, not answered.

    Raises ValueError where the tokenizer has no template or its template refuses the messages.
    """
    from jinja2 import TemplateError  # here: templates are rare, and the table of tasks has to load quickly

    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("this model's tokenizer has no chat template; write the prompt as plain text")
    is_begun = messages[-1].role == "assistant"
    try:
        return cast(_ChatTokenizer, tokenizer).apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            tokenize=False,
            add_generation_prompt=not is_begun,
            continue_final_message=is_begun,
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses these messages: {error}") from None
