"""A chat that is put together from smaller pieces than its messages, in time linear in their number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from serving.api.schemas import ChatMessage
from serving.api.schemas.tools import MessageFunction, MessageToolCall


@dataclass(slots=True)
class Turn:
    """A message so far."""

    role: str
    texts: list[str] = field(default_factory=list[str])
    reasoning: list[str] = field(default_factory=list[str])
    calls: list[MessageToolCall] = field(default_factory=list[MessageToolCall])
    result_of: str | None = None
    """The id of the call that this is the result of."""

    @property
    def is_said(self) -> bool:
        """Whether it has more than reasoning."""
        return bool(self.texts or self.calls)

    def message(self) -> ChatMessage:
        """The message: texts are joined by line breaks, those of the system by empty lines."""
        joint = "\n\n" if self.role == "system" else "\n"
        return ChatMessage(
            role=self.role,
            content=joint.join(self.texts) if self.texts else None,
            reasoning_content="\n".join(self.reasoning) if self.reasoning else None,
            tool_calls=self.calls or None,
            tool_call_id=self.result_of,
        )


class Turns:
    """The messages so far."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []
        self._call_ids: set[str] = set()

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def last(self) -> Turn | None:
        return self._turns[-1] if self._turns else None

    def turn(self, role: str, *, new: bool = False) -> Turn:
        """The last message if it is of this role, else a new one.

        Args:
          new: begin a new one anyway.
        """
        if new or not self._turns or self._turns[-1].role != role:
            self._turns.append(Turn(role))
        return self._turns[-1]

    def call(self, id: str, name: str, arguments: dict[str, Any]) -> None:
        """Add a call of a tool to what the assistant says."""
        function = MessageFunction(name=name, arguments=arguments)
        self.turn("assistant").calls.append(MessageToolCall(id=id, type="function", function=function))
        self._call_ids.add(id)

    def has_call(self, id: str) -> bool:
        """Whether there is a call with this id."""
        return id in self._call_ids

    def result(self, id: str, text: str) -> None:
        """Add the result of a call."""
        self._turns.append(Turn("tool", texts=[text], result_of=id))

    def messages(self) -> list[ChatMessage]:
        """The messages."""
        return [turn.message() for turn in self._turns]
