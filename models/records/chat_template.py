"""The chat template of a checkpoint: what it writes around the turns of a conversation, found without a record.

A chat template is a program in Jinja that comes with the tokenizer. It is run when a study's model is loaded, in
transformers' sandbox, on conversations of placeholders; what it writes between them is all that is kept. No cell of a
record is ever an input of it, so none can steer it, and its time tells nothing of records.

What a template does to the text of a turn is therefore not done to records. A template that would do something to
ordinary text is refused. One that cuts what some models think, up to `</think>`, leaves such words in records alone.

A day in a system turn (`strftime_now`) would make the model's inputs depend on when a site trains: the study states it.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from typing import Any, Literal

from ..errors import InvalidPrompt
from .templates import Part, PlainTokenizer, literally

Role = Literal["system", "user", "assistant"]
Rendered = tuple[tuple[tuple[str, int], ...], str]  # (what stands before a turn, the turn's place) ..., what follows

MAX_TURNS = 64  # of a conversation
_LONGEST = 2**16  # characters that a template may write around a conversation
_DAY = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")
_CHANCE = re.compile(r"\|\s*random\b|\blipsum\b")
_NO_DAY = "the day is not stated"
# Shadows the function of transformers, by which a template asks for the time of day.
_STATED_DAY = (
    "{% macro strftime_now(format) %}{% if format not in stated_days %}"
    f"{{{{ raise_exception('{_NO_DAY}') }}}}{{% endif %}}{{{{ stated_days[format] }}}}{{% endmacro %}}\n"
)
# Contents of turns that a template must write as they are: of either case and of several lengths, then ordinary text.
# "@" is the number of the turn.
_PLACEHOLDERS = ("kQ@zXw", "Zw@qHostRv", "What's @, <i>e. g.</i> 3 > 2 & {x}?\n\n* A  second\tline: é @!")


class ChatTemplate:
    """The chat template of a tokenizer as literal text around turns."""

    def __init__(self, tokenizer: Any, words: PlainTokenizer, day: date | None) -> None:
        """Takes the template of `tokenizer`; `words` is its core.

        Raises:
            InvalidPrompt: there is no template, or what it writes depends on chance.
        """
        self._tokenizer, self._words, self._day = tokenizer, words, day
        try:
            self._source: str = tokenizer.get_chat_template()
        except ValueError:
            raise InvalidPrompt(
                "the checkpoint has no chat template (chat_template in tokenizer_config.json, or chat_template.jinja); "
                "write prompt and completion instead"
            ) from None
        if _CHANCE.search(self._source):
            raise InvalidPrompt("the checkpoint's chat template draws at random; every site would train on another one")

    def parts(self, roles: Sequence[Role], texts: Sequence[str]) -> list[Part]:
        """Writes a conversation as a template, whose texts of assistants are learned with the word that ends each.

        The last turn, which an assistant's is, begins where the template's generation prompt ends: where a server will
        ask the tuned model to go on. Earlier ones stand as the template writes what was said before.

        Args:
            roles: one a turn, as `is_conversation` allows.
            texts: one a turn, with names in braces.

        Raises:
            InvalidPrompt: the template refuses or changes such a conversation, writes the day, or ends no turn.
        """
        turns, blank, end = self._asked_and_told(roles)
        written: list[Part] = []
        for place, (before, turn) in enumerate(turns):
            last = turns[place - 1][1] if place else None
            is_learned = roles[turn] == "assistant"
            lead = blank if turn == len(roles) - 1 else " " if is_learned and before.endswith(" ") else ""
            written += self._between(before.removesuffix(lead), ended=last is not None and roles[last] == "assistant")
            written.append(Part(lead + texts[turn], is_learned))
        written.append(self._between(end, ended=True)[0])
        return _merged(written)

    def _asked_and_told(self, roles: Sequence[Role]) -> tuple[tuple[tuple[str, int], ...], str, str]:
        """Finds what stands before each turn as a server will ask for the last one, and what ends that.

        Returns:
            (turns, blank, end): `blank` is the blank, if any, that the model has to write before the last turn.
        """
        blank, end = self._around_last(roles)
        asked, prompt = self._render(roles[:-1], with_generation_prompt=True)
        if (asked, prompt) != self._render(roles[:-1]):
            return (*asked, (prompt, len(roles) - 1)), "", end
        with suppress(InvalidPrompt):  # no generation prompt: a server's words end before what is told before an answer
            told, _ = self._render(roles)
            if told[:-1] == asked and told[-1][0].startswith(prompt):
                return told, blank, end
        return (*asked, (prompt, len(roles) - 1)), blank, end

    def _around_last(self, roles: Sequence[Role]) -> tuple[str, str]:
        """Finds the blank before the last turn and all after it; some templates then leave out earlier ones."""
        found = set()
        for contents, text in self._rendered(roles, only_last=True):
            before, _, end = text.rpartition(contents[-1])
            found.add((" " if before.endswith(" ") else "", end))
        if len(found) > 1:
            raise InvalidPrompt("the checkpoint's chat template ends one turn with other words than another")
        return found.pop()

    def _between(self, text: str, *, ended: bool) -> list[Part]:
        """Splits what stands between two turns after the word that ends the first, if an assistant wrote that."""
        if not ended:
            return [Part(literally(text), is_learned=False)]
        end = self._words.after_control_word(text)
        if end is None:
            raise InvalidPrompt(
                "the checkpoint's chat template ends an assistant's turn without a control word, so a model would "
                "never learn to stop; write prompt and completion instead"
            )
        return [Part(literally(text[:end]), is_learned=True), Part(literally(text[end:]), is_learned=False)]

    def _render(self, roles: Sequence[Role], *, with_generation_prompt: bool = False) -> Rendered:
        """Renders turns of several contents, and returns what does not depend on them.

        Raises:
            InvalidPrompt: something does.
        """
        texts = self._rendered(roles, with_generation_prompt=with_generation_prompt)
        found = {_split(text, contents) for contents, text in texts}
        if len(found) > 1:
            raise InvalidPrompt("the checkpoint's chat template writes other words around a turn than around another")
        return found.pop()

    def _rendered(
        self, roles: Sequence[Role], *, with_generation_prompt: bool = False, only_last: bool = False
    ) -> list[tuple[list[str], str]]:
        """Renders the conversation with several contents of its turns: [(contents, text), ...]."""
        found = []
        for placeholder in _PLACEHOLDERS:
            contents = [placeholder.replace("@", str(turn)) for turn in range(len(roles))]
            chat = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
            text = self._apply(chat, with_generation_prompt)
            if any(text.count(content) != 1 for content in (contents[-1:] if only_last else contents)):
                raise InvalidPrompt(
                    "the checkpoint's chat template changes, repeats or drops the text of a turn; write prompt and "
                    "completion instead"
                )
            found.append((contents, text))
        return found

    def _apply(self, chat: list[dict[str, str]], with_generation_prompt: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                chat,
                chat_template=_STATED_DAY + self._source,
                tokenize=False,
                add_generation_prompt=with_generation_prompt,
                stated_days=self._stated_days(),
            )
        except Exception as err:  # a template is a program, and can fail like any other
            if _NO_DAY in str(err) and self._day is None:
                raise InvalidPrompt(
                    "the checkpoint's chat template writes the day on which it is run, so inputs would change with it; "
                    f'state one in the study, beside the turns: date = "{date(2026, 1, 31)}"'
                ) from None
            said = "".join(each for each in " ".join(str(err).split())[:200] if each.isprintable())
            raise InvalidPrompt(f"the checkpoint's chat template refuses such a conversation: {said}") from None
        if len(text) > _LONGEST:
            raise InvalidPrompt(f"the checkpoint's chat template writes more than {_LONGEST:,} characters")
        return text

    def _stated_days(self) -> Mapping[str, str]:
        """The study's day in every form in which the template asks for one."""
        if self._day is None:
            return {}
        return {form: self._day.strftime(form) for pair in _DAY.findall(self._source) for form in pair if form}


def is_conversation(roles: Sequence[str]) -> bool:
    """True if turns of these roles are a conversation: a system's if any, then user and assistant in turn, to the end.

    >>> is_conversation(["system", "user", "assistant"]), is_conversation(["user", "assistant", "user"])
    (True, False)
    """
    rest = list(roles[1:] if roles and roles[0] == "system" else roles)
    return len(rest) > 0 and len(rest) % 2 == 0 and rest == ["user", "assistant"] * (len(rest) // 2)


def _split(text: str, contents: Sequence[str]) -> Rendered:
    """Splits what a template wrote at the contents of the turns, in whatever order they stand there."""
    places = sorted((text.index(content), turn) for turn, content in enumerate(contents))
    pieces, done = [], 0
    for start, turn in places:
        pieces.append((text[done:start], turn))
        done = start + len(contents[turn])
    return tuple(pieces), text[done:]


def _merged(parts: Sequence[Part]) -> list[Part]:
    """Joins neighbours that are both learned or both shown: their words are tokenized together."""
    merged: list[Part] = []
    for part in parts:
        if merged and merged[-1].is_learned == part.is_learned:
            merged[-1] = Part(merged[-1].text + part.text, part.is_learned)
        elif part.text:
            merged.append(part)
    return merged
