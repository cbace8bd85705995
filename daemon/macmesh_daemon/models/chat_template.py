"""Render a model's chat template."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError

from macmesh_daemon.models.template_sandbox import (
    METER,
    MessagesRefusedError,
    Meter,
    TemplateEnvironment,
    plain_data,
)
from macmesh_daemon.models.tokenizer_errors import LocalChatTemplateError, RemoteMessagesError

#: More text than any context holds.
MAX_RENDERED_CHARS = 8_000_000
#: Loop iterations and calls of one rendering: a second or two at most.
MAX_WORK = 50_000
#: And as many more for each message, so that a long conversation is never refused.
WORK_PER_MESSAGE = 200


def _local_now() -> datetime:
    return datetime.now(UTC).astimezone()


class ChatTemplate:
    """One compiled template. Safe to share between threads."""

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        origin: str = "the chat template",
        now: Callable[[], datetime] = _local_now,
        max_rendered_chars: int = MAX_RENDERED_CHARS,
        max_work: int = MAX_WORK,
    ) -> None:
        """Compile.

        Args:
            source: The jinja2 text.
            special_tokens: Variables such as `bos_token`, as strings.
            origin: Where the template came from, for messages.
            now: Local time for `strftime_now`.
            max_rendered_chars: Longest rendering, and longest text made on the way.
            max_work: Most loop iterations and calls, besides `WORK_PER_MESSAGE`.

        Raises:
            LocalChatTemplateError: It is not a valid template.
        """
        self._origin = origin
        self._special_tokens = dict(special_tokens or {})
        self._limits = (max_work, max_rendered_chars)
        try:
            self._template = TemplateEnvironment(now).compile_template(source)
        except TemplateSyntaxError as error:
            raise LocalChatTemplateError(
                f"{origin} is not valid at line {error.lineno}: {error.message}; replace the model's template"
            ) from error
        except (TemplateError, ArithmeticError, RecursionError, TypeError, ValueError) as error:
            raise LocalChatTemplateError(
                f"{origin} cannot be compiled: {error}; replace the model's template"
            ) from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text for a conversation.

        Args:
            messages: `role` and `content` of each turn, oldest first; more keys as the template knows them.
                None values are left out.
            add_generation_prompt: End with the beginning of the assistant's turn.
            **variables: More variables for the template, such as `tools` or `enable_thinking`.

        Raises:
            RemoteMessagesError: There is no message, a message holds something else than JSON data, or the
                template refused them.
            LocalChatTemplateError: The template failed, did what the sandbox forbids, or went over its
                bounds.
        """
        if not messages:
            raise RemoteMessagesError("the conversation is empty; send at least one message")
        try:
            values = {
                "tools": None,
                "documents": None,
                **self._special_tokens,
                **plain_data(variables),
                "messages": [
                    {key: value for key, value in plain_data(message).items() if value is not None}
                    for message in messages
                ],
                "add_generation_prompt": add_generation_prompt,
            }
        except (TypeError, RecursionError) as error:
            raise RemoteMessagesError(str(error)) from error
        return self._render(values)

    def _render(self, values: dict[str, Any]) -> str:
        max_work, max_chars = self._limits
        meter = Meter(work=max_work + WORK_PER_MESSAGE * len(values["messages"]), max_chars=max_chars)
        token = METER.set(meter)
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(values):
                size += len(piece)
                meter.check_size(size)
                pieces.append(piece)
        except MessagesRefusedError as error:
            raise RemoteMessagesError(f"the model's chat template refuses these messages: {error}") from error
        except SecurityError as error:
            raise LocalChatTemplateError(
                f"{self._origin} was stopped: {error}; replace the model's template if you trust the model"
            ) from error
        except Exception as error:
            # Untrusted code: whatever it raises is its own failure, and says which.
            raise LocalChatTemplateError(
                f"{self._origin} failed on these messages: {type(error).__name__}: {error}"
            ) from error
        finally:
            METER.reset(token)
        return "".join(pieces)
