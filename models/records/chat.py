"""Records that are whole conversations: one cell holds turns of any number, and the assistant's are learned.

A cell is a JSON list of turns, `[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]`: a
system's turn first if the study allows one, then user and assistant in turn, to the end. The checkpoint's own chat
template writes around them. It is run when the model is loaded, once for every number of turns, so that no record is
ever an input of it: what a turn says is plain text (`templates`).

Of a conversation that is too long, the oldest turns of user and assistant go first, as pairs; a system's turn and the
last pair stay. If they alone are too long, what is shown is cut, the longest first, and the answer last.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import date as Day
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import InvalidPrompt
from ..strict import FieldName, SparseModel
from .chat_template import MAX_TURNS, ChatTemplate, Role, is_conversation
from .compared import EQUALITY, ComparedCompletions, Comparison, Equality
from .kind import Column
from .templates import PlainTokenizer, Row, TokenTemplate, padded

if TYPE_CHECKING:
    import pyarrow as pa

    from .cells import Cells

Turns = list[tuple[Role, str]]

_HARMLESS = '[{"role": "user", "content": ""}, {"role": "assistant", "content": "?"}]'  # in a misfit's place


class ChatTerms(SparseModel):
    """Terms of records that are conversations: the column that holds them, and how long they may be."""

    column: FieldName = Field(
        examples=['"conversation"'], description="of JSON lists of turns, each with a role and its content"
    )
    max_turns: int = Field(
        default=16, ge=2, le=MAX_TURNS, description="of user and assistant together; of more, the oldest are left out"
    )
    system: bool = Field(default=True, description="whether a conversation may begin with a system's turn")
    date: Day | None = Field(
        default=None,
        examples=["2026-01-31"],
        description="the day that the chat template writes, if it writes one; otherwise left out",
    )
    equality: Equality | None = Field(
        default=None,
        examples=['"mathematics"'],
        description=EQUALITY,
    )


class ConversationEncoder:
    """Encodes conversations as token ids; no row is longer than `max_tokens`."""

    def __init__(self, terms: ChatTerms, tokenizer: Any, max_tokens: int) -> None:
        """Runs the chat template of `tokenizer`, a transformers tokenizer in Rust, and prepares its core.

        Raises:
            InvalidPrompt: there is none, it does not fit, or by itself it leaves no room for a pair of turns.
        """
        self._terms = terms
        self._tokenizer = PlainTokenizer(tokenizer)
        self.comparison = Comparison(tokenizer, max_tokens)
        chat = ChatTemplate(tokenizer, self._tokenizer, terms.date)
        self._templates: dict[tuple[Role, ...], TokenTemplate] = {}
        for has_system in (False, True) if terms.system else (False,):
            for pairs in range(1, terms.max_turns // 2 + 1):
                roles = _roles(pairs, has_system)
                try:
                    parts = chat.parts(roles, [f"{{{turn}}}" for turn in range(len(roles))])
                except InvalidPrompt as err:
                    if not has_system:  # those without one came first, and passed
                        raise
                    raise InvalidPrompt(f"{err}; conversations without a system's turn do: system = false") from None
                # More pairs than a row can hold are left out of a conversation; one pair has to fit.
                self._templates[roles] = TokenTemplate(parts, self._tokenizer, max_tokens, must_fit=pairs == 1)

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""
        return self._tokenizer.words

    def examples(
        self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]:
        """Returns ids and the mask of the assistant's turns, both [rows, longest]; there are no labels."""
        return self.encode(columns[self._terms.column])

    def encode(
        self, cells: Sequence[str] | npt.NDArray[np.object_]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Encodes cells as (ids, is_completion), both [rows, longest row], padded on the right with 0 and False."""
        return padded([self._row(cell) for cell in cells])

    def _row(self, record: str) -> Row:
        turns = conversation(record, system=self._terms.system)
        assert turns is not None, "a cell that passed its check"
        has_system = turns[0][0] == "system"
        said = turns[has_system:][-(self._terms.max_turns // 2 * 2) :]
        known: dict[str, list[int]] = {}
        while True:
            kept = [*turns[:has_system], *said]
            template = self._templates[tuple(role for role, _ in kept)]
            texts = [cell.lead + kept[int(cell.column)][1] for cell in template.cells]
            new = [text for text in texts if text not in known]
            known |= zip(new, self._tokenizer.of_records(new), strict=True)
            found = [known[text] for text in texts]
            if template.fits(found) or len(said) == 2:
                return template.row(found)
            said = said[2:]


class Conversations(ComparedCompletions):
    """Records that are conversations, continued by the model's own output matrix."""

    name = "chat"
    terms = ChatTerms
    whole = "a conversation is one column"

    def problems(self, terms: ChatTerms, *, max_tokens: int) -> list[str]:
        """Lists nothing: what a conversation may be is in the types."""
        return []

    def columns(self, terms: ChatTerms) -> tuple[Column, ...]:
        """Returns the column of conversations."""
        first = "a system's turn if any, then " if terms.system else ""
        expected = (
            f"a JSON list of turns, each with role and content: {first}user and assistant in turn, the last one an "
            "assistant's that is not empty"
        )
        return (Column(terms.column, "conversation to learn", expected, partial(_read, system=terms.system)),)

    def facts(self, terms: ChatTerms) -> dict[str, Any]:
        """Describes what is read of a conversation."""
        found: dict[str, Any] = {"turns": f"the last {terms.max_turns}, the assistant's learned"}
        found["system's turn"] = "allowed" if terms.system else "refused"
        if terms.date is not None:
            found["date"] = terms.date.isoformat()
        return {**found, "columns": [f"{terms.column} (conversation, the assistant's turns learned)"]}

    def reader(self, terms: ChatTerms, vocabulary: Any, *, max_tokens: int) -> ConversationEncoder:
        """Returns the encoder of conversations for a tokenizer.

        Raises:
            InvalidPrompt: the checkpoint's chat template refuses such conversations, or leaves no room for one.
        """
        return ConversationEncoder(terms, vocabulary, max_tokens)


def conversation(cell: str, *, system: bool) -> Turns | None:
    """Reads a cell as turns, trimmed as all cells are; None if it is no conversation.

    Args:
        system: whether a system's turn may come first.
    """
    try:
        listed = json.loads(cell, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    if not isinstance(listed, list) or not all(_is_turn(turn) for turn in listed):
        return None
    turns: Turns = [(turn["role"], turn["content"].strip()) for turn in listed]
    roles = [role for role, _ in turns]
    if not is_conversation(roles) or (roles[0] == "system" and not system):
        return None
    return turns if all(text for role, text in turns if role == "assistant") else None


def _read(text: "pa.Array", *, system: bool) -> "Cells":
    """Reads cells as conversations, which stay text; counts what is none."""
    from . import cells

    plain = cells.free_text(text, may_be_missing=False)
    is_none = [conversation(cell, system=system) is None for cell in plain.values]
    misfit = plain.misfit | np.array(is_none, dtype=np.bool_)
    return cells.Cells(np.where(misfit, _HARMLESS, plain.values), plain.missing, misfit)


def _roles(pairs: int, has_system: bool) -> tuple[Role, ...]:
    said: tuple[Role, ...] = ("user", "assistant") * pairs
    return ("system", *said) if has_system else said


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses a name that an object has twice: readers differ in which one counts."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)


def _is_turn(turn: Any) -> bool:
    if not isinstance(turn, dict) or turn.keys() != {"role", "content"} or not isinstance(turn["content"], str):
        return False
    return isinstance(turn["role"], str) and _is_unicode(turn["content"])


def _is_unicode(text: str) -> bool:
    """False for half a character, as JSON can spell one: no tokenizer reads it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
