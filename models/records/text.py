"""Records of free text: a published template makes a prompt of each record, and the completion to learn.

A template is a prompt and a completion as they stand, or turns of a conversation around which the checkpoint's own chat
template writes. `templates` says how they become token ids; only the study and the checkpoint can say control words.

A study may have several templates, its prompt styles. Each record takes one, by the SHA-256 of its cells alone: no
other record moves it, and a site that computes it again finds the same.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date as Day
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from ..errors import InvalidPrompt, ModelError
from ..strict import FIELD_NAME, FIELD_NAME_RULE, StrictModel, rule
from .chat_template import MAX_TURNS, ChatTemplate, Role, is_conversation
from .compared import EQUALITY, ComparedCompletions, Comparison, Equality
from .kind import Column
from .requests import Request, Writing
from .templates import Part, PlainTokenizer, Row, TokenTemplate, columns_of, padded, said, shown_of

_STYLE = b"confide prompt style 1\0"
MAX_STYLES = 16


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A template for the prompt that a model is shown of a record, and for the completion that it must write."""

    prompt: str
    completion: str

    def __post_init__(self) -> None:
        if not self.prompt_columns or not self.completion_columns:
            raise InvalidPrompt("prompt and completion must each hold a column's name in braces, such as {review}")
        _refuse_both(self.prompt_columns, self.completion_columns, "prompt and completion")

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns of the prompt, in order, each once."""
        return columns_of(self.prompt, "prompt")

    @property
    def completion_columns(self) -> tuple[str, ...]:
        """Columns of the completion, in order, each once."""
        return columns_of(self.completion, "completion")

    def parts(self, chat: ChatTemplate | None) -> list[Part]:
        """Returns the prompt, which is shown, and the completion, which is learned."""
        del chat
        return [Part(self.prompt, is_learned=False), Part(self.completion, is_learned=True)]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A template of turns, which the checkpoint's chat template makes a conversation; an assistant's are learned."""

    roles: tuple[Role, ...]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if not is_conversation(self.roles):
            raise InvalidPrompt(
                "turns must be a system's, if any, then a user's and an assistant's in turn, and end with an "
                "assistant's"
            )
        if padded_turns := [text for text in self.texts if text != text.strip()]:
            raise InvalidPrompt(
                f"turns: {padded_turns[0]!r} has white space at its ends, which many chat templates cut"
            )
        if not all(columns_of(text, "turns") for role, text in self._turns() if role == "assistant"):
            raise InvalidPrompt("each assistant's turn must hold a column's name in braces, such as {review}")
        if not self.prompt_columns:
            raise InvalidPrompt("a system's or user's turn must hold a column's name in braces, such as {review}")
        _refuse_both(self.prompt_columns, self.completion_columns, "a turn that is shown and one that is learned")

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns of the turns of system and user, in order, each once."""
        return self._columns(assistant=False)

    @property
    def completion_columns(self) -> tuple[str, ...]:
        """Columns of the assistant's turns, in order, each once."""
        return self._columns(assistant=True)

    def parts(self, chat: ChatTemplate | None) -> list[Part]:
        """Returns the conversation as the checkpoint's chat template writes it.

        Raises:
            InvalidPrompt: the template refuses or changes it, or there is none.
        """
        assert chat is not None, "turns without a chat template"
        try:
            return chat.parts(self.roles, self.texts)
        except InvalidPrompt as err:
            if self.roles[0] != "system":
                raise
            chat.parts(self.roles[1:], self.texts[1:])  # raises if the system's turn is not the reason
            raise InvalidPrompt(f"{err}; leave out the system's turn") from None

    def _turns(self) -> list[tuple[Role, str]]:
        return list(zip(self.roles, self.texts, strict=True))

    def _columns(self, *, assistant: bool) -> tuple[str, ...]:
        texts = [text for role, text in self._turns() if (role == "assistant") == assistant]
        return tuple(dict.fromkeys(name for text in texts for name in columns_of(text, "turns")))


AnyTemplate = PromptTemplate | ChatPrompt


class PromptEncoder:
    """Encodes records by a template as token ids; no row is longer than `max_tokens`."""

    def __init__(
        self,
        template: AnyTemplate | Sequence[AnyTemplate],
        tokenizer: Any,
        max_tokens: int,
        *,
        day: Day | None = None,
    ) -> None:
        """Prepares the core of `tokenizer`, a transformers tokenizer in Rust, and runs its chat template.

        Args:
            template: one, or several styles of which each record takes one.
            day: that a chat template writes; None if the study states none.

        Raises:
            InvalidPrompt: a template by itself leaves no room for a record, or its turns do not fit the checkpoint.
        """
        templates = (template,) if isinstance(template, AnyTemplate) else tuple(template)
        self._tokenizer = PlainTokenizer(tokenizer)
        self.comparison = Comparison(tokenizer, max_tokens)
        has_turns = any(isinstance(each, ChatPrompt) for each in templates)
        chat = ChatTemplate(tokenizer, self._tokenizer, day) if has_turns else None
        self._styles = [TokenTemplate(each.parts(chat), self._tokenizer, max_tokens) for each in templates]
        self._columns = _all_columns(templates)

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""
        return self._tokenizer.words

    def encode(
        self, columns: Mapping[str, Sequence[str] | npt.NDArray[np.object_]]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Encodes records as (ids, is_completion), both [rows, longest row], padded on the right with 0 and False.

        In a record that is too long, cells are cut at their ends: the prompt's longest cells first, so that short ones
        stay whole; the completion's only if they alone do not fit. A cut completion is then the target.
        """
        styles = self.styles(columns)
        rows: list[Row] = [([], [])] * len(styles)
        for number, style in enumerate(self._styles):
            own = np.flatnonzero(styles == number).tolist()
            encoded = [
                self._tokenizer.of_records([cell.lead + str(columns[cell.column][row]) for row in own])
                for cell in style.cells
            ]
            for row, *cells in zip(own, *encoded, strict=True):
                rows[row] = style.row(cells)
        return padded(rows)

    @property
    def request(self) -> Request:
        """A request as it is shown, and what ends its answer; of several styles, in the first."""
        first = self._styles[0]
        ends = tuple(token for token in first.behind if self._tokenizer.is_control_word(token))
        return Request(shown_of(first), writing=Writing(ends))

    def styles(self, columns: Mapping[str, Sequence[str] | npt.NDArray[np.object_]]) -> npt.NDArray[np.int64]:
        """Chooses the style of each record, [rows], from 0: a function of its own cells and of nothing else."""
        count = len(columns[self._columns[0]])
        if len(self._styles) == 1:
            return np.zeros(count, dtype=np.int64)
        chosen = [self._style([str(columns[name][row]) for name in self._columns]) for row in range(count)]
        return np.array(chosen, dtype=np.int64)

    def examples(
        self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]:
        """Returns ids and the mask of completions, both [rows, longest]; there are no labels."""
        return self.encode(columns)

    def _style(self, cells: Sequence[str]) -> int:
        """SHA-256 over the cells in the study's order, each behind its length, modulo the number of styles."""
        digest = hashlib.sha256(_STYLE)
        for cell in cells:
            data = cell.encode("utf-8")
            digest.update(len(data).to_bytes(8, "little") + data)
        return int.from_bytes(digest.digest(), "little") % len(self._styles)


class Requests:
    """Tokenizes what a model is asked for: templates say control words, and what people write is read as plain text."""

    def __init__(self, tokenizer: Any, longest: int) -> None:
        """Prepares the core of `tokenizer`, a transformers tokenizer in Rust.

        Args:
            longest: tokens that the model reads.
        """
        self._tokenizer, self._longest = tokenizer, longest
        self._plain = PlainTokenizer(tokenizer)
        self._chats: dict[tuple[Role, ...], tuple[TokenTemplate, frozenset[int]]] = {}
        self.anchor = self.plain("a")  # some text, behind which a word has the blank that it begins with

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""
        return self._plain.words

    def plain(self, text: str) -> list[int]:
        """Tokenizes what people write."""
        return self._plain.of_records([text])[0]

    def stated(self, text: str) -> list[int]:
        """Tokenizes what a study states, control words included."""
        return self._plain.of_template(text)

    def chat(self, roles: Sequence[Role], texts: Sequence[str]) -> list[int]:
        """Tokenizes a conversation up to where an assistant goes on, without white space at the ends of turns.

        Raises:
            InvalidPrompt: the checkpoint has no chat template, or one that such turns do not fit.
        """
        asked, _ = self._asked(tuple(roles))
        cells = self._plain.of_records([cell.lead + texts[int(cell.column[1:])].strip() for cell in asked.cells])
        return asked.filled(cells)

    def beginning(self, system: str | None) -> list[int]:
        """Tokenizes what all conversations begin with that have this system's turn, or none; [] if there are none."""
        roles: list[Role] = ["user"] if system is None else ["system", "user"]
        first = [] if system is None else [system]
        try:
            one, other = (self.chat(roles, [*first, text]) for text in ("a", "b"))
        except InvalidPrompt:
            return []
        return one[
            : next((place for place, pair in enumerate(zip(one, other, strict=False)) if len({*pair}) > 1), len(one))
        ]

    def turn_ends(self, roles: Sequence[Role]) -> frozenset[int]:
        """Finds the control word that ends an assistant's turn, which studies of conversations teach; see `chat`."""
        return self._asked(tuple(roles))[1]

    def _asked(self, roles: tuple[Role, ...]) -> tuple[TokenTemplate, frozenset[int]]:
        """The chat template around turns of these roles, without the answer, and the word that ends it."""
        if roles not in self._chats:
            template = ChatTemplate(self._tokenizer, self._plain, None)
            names = [f"{{t{place}}}" for place in range(len(roles))]
            parts = template.parts([*roles, "assistant"], [*names, "{answer}"])
            # The last learned part is the answer, and nothing behind it was said yet.
            last = max(place for place, part in enumerate(parts) if part.is_learned)
            while len(self._chats) >= MAX_TURNS:
                self._chats.pop(next(iter(self._chats)))
            end = self._plain.of_template(said(parts[last].text.partition("{answer}")[2]))
            asked = TokenTemplate(parts[:last], self._plain, self._longest, must_fit=False)
            self._chats[roles] = asked, frozenset(end[-1:])
        return self._chats[roles]


def is_asked(roles: Sequence[str]) -> bool:
    """True if turns of these roles end with a user's, after which an assistant may go on."""
    return is_conversation([*roles, "assistant"])


def _all_columns(templates: Sequence[AnyTemplate]) -> tuple[str, ...]:
    """Columns of all styles, those that are shown first, each once."""
    shown = (name for each in templates for name in each.prompt_columns)
    told = (name for each in templates for name in each.completion_columns)
    return tuple(dict.fromkeys((*shown, *told)))


def _refuse_both(shown: Sequence[str], told: Sequence[str], where: str) -> None:
    if both := sorted({*shown} & {*told}):
        raise InvalidPrompt(f"{', '.join(both)} stands in {where}; a model would just copy it")


def _is_template(text: str) -> str:
    if not text.replace("\n", " ").replace("\t", " ").isprintable():
        raise rule("printable text")
    return text


Template = Annotated[str, Field(min_length=1, max_length=16_384), AfterValidator(_is_template)]


class Turn(StrictModel):
    """One turn of a conversation in a study."""

    role: Role = Field(examples=['"user"'], description="system, user or assistant")
    text: Template = Field(examples=['"Topic of: {text}"'], description="what is said; names in braces are columns")


class PromptStyle(StrictModel):
    """One template of a study: a prompt and a completion, or turns."""

    prompt: Template | None = Field(
        default=None,
        examples=['"Topic of: {text}\\nIt is"'],
        description="what the model is shown; names in braces are columns",
    )
    completion: Template | None = Field(
        default=None, examples=['" {topic}"'], description="what it learns to write after that"
    )
    turns: tuple[Turn, ...] = Field(
        default=(), max_length=MAX_TURNS,
        examples=['[{ role = "user", text = "Topic of: {text}" }, { role = "assistant", text = "{topic}" }]'],
        description="instead of both: a conversation, for the checkpoint's chat template; the assistant's turns are "
        "learned",
    )  # fmt: skip

    def template(self) -> AnyTemplate:
        """The same description as a template.

        Raises:
            InvalidPrompt: it is none.
        """
        if self.turns:
            if self.prompt is not None or self.completion is not None:
                raise InvalidPrompt("turns beside prompt or completion; keep one way to say what a record is")
            return ChatPrompt(tuple(turn.role for turn in self.turns), tuple(turn.text for turn in self.turns))
        if self.prompt is None or self.completion is None:
            raise InvalidPrompt('say what a record is: prompt = "Of: {text}" and completion = " {topic}", or turns')
        return PromptTemplate(self.prompt, self.completion)

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what is not set: a study of prompt and completion keeps its form, and its hash."""
        plain: dict[str, Any] = serialize(self)
        return {name: value for name, value in plain.items() if value}


class TextTerms(PromptStyle):
    """Terms of records of free text in a study: the prompt shown of a record, and the completion to learn."""

    styles: tuple[PromptStyle, ...] = Field(
        default=(), max_length=MAX_STYLES,
        examples=['[{ prompt = "Topic of: {text}\\nIt is", completion = " {topic}" }, '
                  '{ prompt = "{text}\\nTopic:", completion = " {topic}" }]'],
        description="instead of these: at least two such templates, of which each record takes one",
    )  # fmt: skip
    date: Day | None = Field(
        default=None,
        examples=["2026-01-31"],
        description="the day that a chat template writes, if it writes one; otherwise left out",
    )
    equality: Equality | None = Field(
        default=None,
        examples=['"mathematics"'],
        description=EQUALITY,
    )

    def templates(self) -> tuple[AnyTemplate, ...]:
        """All templates of the study, of equal standing.

        Raises:
            InvalidPrompt: one is no template, or they do not go together.
        """
        if not self.styles:
            return (self.template(),)
        if self.prompt is not None or self.completion is not None or self.turns:
            raise InvalidPrompt("styles beside prompt, completion or turns; make it one of the styles")
        if len(self.styles) == 1:
            raise InvalidPrompt("styles has one entry; write it without styles, or add another")
        if len(set(self.styles)) < len(self.styles):
            raise InvalidPrompt("styles has the same entry twice")
        return tuple(style.template() for style in self.styles)


class FreeText(ComparedCompletions):
    """Records of free text, completed by the model's own output matrix."""

    name = "text"
    terms = TextTerms
    whole = "a record of free text is what the template says, and no more"

    def problems(self, terms: TextTerms, *, max_tokens: int) -> list[str]:
        """Lists texts that are no template, and names in braces that cannot be columns."""
        try:
            templates = terms.templates()
        except ModelError as err:
            return [f"data.text: {err}"]
        problems = [
            f"data.text names a column {name!r}; it must be {FIELD_NAME_RULE}"
            for name in _all_columns(templates)
            if not re.fullmatch(FIELD_NAME, name)
        ]
        if terms.date is not None and not any(isinstance(each, ChatPrompt) for each in templates):
            problems.append("data.text.date without turns; remove it: only a chat template can ask for a day")
        return problems

    def columns(self, terms: TextTerms) -> tuple[Column, ...]:
        """Returns the columns that are only shown, then those that are learned, whose cells may not be empty."""
        from . import cells

        templates, most = terms.templates(), f"text of at most {cells.MAX_TEXT:,} characters"
        shown, told = (partial(cells.free_text, may_be_missing=is_shown) for is_shown in (True, False))
        learned = {name for each in templates for name in each.completion_columns}
        return tuple(
            Column(name, "text to learn", f"{most}, and not nothing", told)
            if name in learned
            else Column(name, "text", most, shown)
            for name in _all_columns(templates)
        )

    def facts(self, terms: TextTerms) -> dict[str, Any]:
        """Describes the templates, and the columns of prompts and completions."""
        templates = terms.templates()
        learned = {name for each in templates for name in each.completion_columns}
        found: dict[str, Any] = {}
        for number, style in enumerate(terms.styles or (terms,), start=1):
            name = f"style {number}, " if terms.styles else ""
            if style.turns:
                found[f"{name}turns"] = [f"{turn.role}: {turn.text}" for turn in style.turns]
            else:
                found |= {f"{name}prompt": style.prompt, f"{name}completion": style.completion}
        if terms.date is not None:
            found["date"] = terms.date.isoformat()
        kinds = [f"{name} (free text, {'learned' if name in learned else 'shown'})" for name in _all_columns(templates)]
        return {**found, "columns": kinds}

    def reader(self, terms: TextTerms, vocabulary: Any, *, max_tokens: int) -> PromptEncoder:
        """Returns the encoder of the study's templates for a tokenizer.

        Raises:
            InvalidPrompt: a template by itself leaves no room for a record, or does not fit the checkpoint's own.
        """
        return PromptEncoder(terms.templates(), vocabulary, max_tokens, day=terms.date)

    def request(self, terms: TextTerms, reader: PromptEncoder) -> Request:
        """Says what is shown of a request, in the first of the study's styles."""
        return reader.request
