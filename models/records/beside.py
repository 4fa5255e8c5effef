"""Records of a file and a text about it: what pictures and sounds share.

What the file holds comes first: as many tokens as its layout says, each of which carries a part (`models.tokens`).
Behind it stands what the template shows, then what is learned.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import DeploymentRefused, InvalidPretraining, InvalidPrompt
from ..strict import FIELD_NAME, FIELD_NAME_RULE, FieldName, SparseModel
from .completions import Completions
from .kind import Column
from .requests import Request, TextShown, Writing
from .templates import Part, PlainTokenizer, TokenTemplate, columns_of, padded, said, shown_of
from .text import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ..structure.sense import Layout


class BesideTerms(SparseModel):
    """Terms of records of a file and a text: the column of files, and the template of the text."""

    file: FieldName
    prompt: Template
    completion: Template
    shows: FieldName | None = None

    @property
    def layout(self) -> "Layout":
        """The size of what files hold."""
        raise NotImplementedError

    @property
    def shown(self) -> tuple[str, ...]:
        """Columns of the prompt, each once; there may be none.

        Raises:
            InvalidPrompt: it is no template.
        """
        return columns_of(self.prompt, "prompt")

    @property
    def told(self) -> tuple[str, ...]:
        """Columns of the completion, each once.

        Raises:
            InvalidPrompt: it is no template.
        """
        return columns_of(self.completion, "completion")


class BesideReader:
    """Encodes records as tokens: those that carry what a file holds, then those of the template."""

    def __init__(
        self,
        terms: BesideTerms,
        tokenizer: Any,
        max_tokens: int,
        carried: Callable[[Sequence[bytes]], npt.NDArray[np.uint8]],
        takes: str,
    ) -> None:
        """Prepares the core of `tokenizer`, a transformers tokenizer in Rust.

        Args:
            carried: decodes files to the bytes [files, tokens, bytes] that tokens carry.
            takes: what a file takes, for errors: "the picture alone takes 8 tokens, one for each 16 pixels squared".

        Raises:
            InvalidPrompt: file and template leave no room for a record.
        """
        self._terms, self._carried, self.layout = terms, carried, terms.layout
        if max_tokens <= self.layout.tokens + 1:
            raise InvalidPrompt(f"data.max_tokens is {max_tokens}; {takes}: leave room for the text behind it")
        from ..structure.inputs import words_of

        self._tokenizer, self._words = PlainTokenizer(tokenizer), words_of(tokenizer)
        self._end = tokenizer.eos_token_id
        parts = [Part(terms.prompt, is_learned=False), Part(terms.completion, is_learned=True)]
        self._template = TokenTemplate(parts, self._tokenizer, max_tokens - self.layout.tokens)
        # Of a token that carries part of a file: any word but padding, as nothing reads it.
        self._word = self._tokenizer.words - 1

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""
        return self._tokenizer.words

    @property
    def prompt(self) -> TextShown:
        """The text that is shown of a request, behind the file; what is too long is cut as in the study.

        A token is left for each cell that is learned.
        """
        template = self._template
        learned = len(template.cells) - sum(cell is not None for _, cell in template.shown)
        return shown_of(template, template.room - learned)

    @property
    def writing(self) -> Writing:
        """The answer that is written, and what ends it."""
        return Writing(tuple(token for token in self._template.behind if self._tokenizer.is_control_word(token)))

    def examples(
        self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]:
        """Returns ids [rows, longest, 1 + C] and the mask of completions, [rows, longest]; there are no labels.

        Raises:
            InvalidPicture, InvalidSound: a file is none of the study's size.
        """
        from ..tokens import carrying

        del labels
        cells = [
            self._tokenizer.of_records([cell.lead + str(text) for text in columns[cell.column]])
            for cell in self._template.cells
        ]
        words, is_completion = padded([self._template.row(own) for own in zip(*cells, strict=True)])
        parts = self._carried(columns[self._terms.file].tolist())
        before = np.full(parts.shape[:2], self._word)
        nothing = np.zeros(before.shape, dtype=np.bool_)
        return carrying(np.hstack([before, words]), parts), np.hstack([nothing, is_completion])

    def written(self, model: Any, ids: np.ndarray, is_learned: np.ndarray, *, longest: int = 64) -> list[str]:
        """Lets a model write behind the files and prompts of records, word by word, until it ends each text.

        Args:
            ids: [rows, longest, 1 + C], as encoded; what stands behind the prompts does not count.
            is_learned: bool [rows, longest].
            longest: words that are written at most.
        """
        import torch

        device = next(model.parameters()).device
        ends_R = torch.from_numpy(np.asarray(is_learned).argmax(1)).to(device)
        room = int(ends_R.max()) + longest
        spare = max(0, room - ids.shape[1])
        rows_RTC = torch.from_numpy(np.pad(ids, ((0, 0), (0, spare), (0, 0)))[:, :room].copy()).to(device)
        rows_RTC[torch.arange(room, device=device) >= ends_R[:, None]] = 0
        row_R, texts = torch.arange(len(ids), device=device), [list[str]() for _ in ids]
        is_open = [True] * len(texts)
        for _ in range(longest):
            with torch.no_grad():
                states_RTD = model.model(input_ids=rows_RTC[:, : int(ends_R.max())], use_cache=False).last_hidden_state
                word_R = model.lm_head(states_RTD[row_R, ends_R - 1]).argmax(-1)
            rows_RTC[row_R, ends_R, 0] = word_R
            ends_R = ends_R + 1
            for row, word in enumerate(word_R.tolist()):
                is_open[row] = is_open[row] and word != self._end
                if is_open[row]:
                    texts[row].append(self._words[word])
            if not any(is_open):
                break
        return [" ".join(text) for text in texts]


class Beside(Completions):
    """The common part of kinds whose records are a file and a text, completed by the model's own output matrix."""

    makes_vocabulary = True
    form: str  # of the files, for people: "PNG"
    one: str  # what a file holds: "picture"
    told_by: str  # what `shows` says: "what each cell shows"

    @abstractmethod
    def opens(self, terms: Any) -> Callable[[bytes], bytes]:
        """Returns what says which bytes of a file are kept, or None for none that fits."""

    @abstractmethod
    def expected(self, terms: Any) -> str:
        """Says for people what a file must be."""

    def problems(self, terms: Any, *, max_tokens: int) -> list[str]:
        """Lists sizes that nothing reads, texts that are no template, and columns that contradict each other."""
        table = f"data.{self.name}"
        problems = [f"{table}.{problem}" for problem in terms.layout.problems()]
        try:
            shown, told = terms.shown, terms.told
        except InvalidPrompt as err:
            return [*problems, f"{table}: {err}"]
        problems += [
            f"{table} names a column {name!r}; it must be {FIELD_NAME_RULE}"
            for name in (*shown, *told)
            if not re.fullmatch(FIELD_NAME, name)
        ]
        if not told:
            problems.append(f"{table}.completion names no column in braces, so that nothing would be learned")
        if both := sorted({*shown} & {*told}):
            problems.append(f"{table} shows {', '.join(both)} and learns it; a model would just copy it")
        if terms.file in (*shown, *told):
            problems.append(f"{table}.file stands in the template; it names files, which are no text")
        if terms.shows in (terms.file, *shown, *told):
            problems.append(f"{table}.shows is a column that sites have too; name one of the public table alone")
        if not problems and max_tokens <= terms.layout.tokens + 1:
            problems.append(
                f"data.max_tokens is {max_tokens}; a {self.one} alone takes {terms.layout.tokens}, and the text comes "
                "behind it"
            )
        return problems

    def columns(self, terms: Any) -> tuple[Column, ...]:
        """Returns the column of files, then those that are shown, then those that are learned."""
        from . import cells

        most = f"text of at most {cells.MAX_TEXT:,} characters"
        expected = f"the name of a {self.form} file below data.files, {self.expected(terms)}"
        taken = terms.layout.tokens * (1 + terms.layout.carried) * np.dtype(np.int64).itemsize
        file = Column(terms.file, self.one, expected, cells.file_names, opens=self.opens(terms), taken=taken)
        shown, told = (partial(cells.free_text, may_be_missing=is_shown) for is_shown in (True, False))
        return (
            file,
            *(Column(name, "text", most, shown) for name in terms.shown),
            *(Column(name, "text to learn", f"{most}, and not nothing", told) for name in terms.told),
            *(Column(name, "text", most, shown, sites=()) for name in (terms.shows,) if name is not None),
        )

    def facts(self, terms: Any) -> dict[str, Any]:
        """Describes what a file holds, the template, and the columns."""
        return {
            self.one: f"{self.form} of {self.size(terms)}, {terms.layout.tokens} tokens",
            "prompt": terms.prompt,
            "completion": terms.completion,
            "columns": [
                f"{terms.file} ({self.one}, shown)",
                *(f"{name} (free text, shown)" for name in terms.shown),
                *(f"{name} (free text, learned)" for name in terms.told),
            ],
        }

    @abstractmethod
    def size(self, terms: Any) -> str:
        """Says for people how large what a file holds is."""

    def layout(self, terms: Any) -> "Layout":
        """Returns the size of what files hold, which an eye or an ear must have."""
        layout: Layout = terms.layout
        return layout

    def shown_by(self, terms: Any, columns: Mapping[str, np.ndarray]) -> list[str]:
        """Returns what public files show or say.

        Raises:
            InvalidPretraining: `shows` is left out.
        """
        if terms.shows is None:
            raise InvalidPretraining(
                f"data.{self.name}.shows is missing: an {terms.layout.sense} learns by a column of the public table "
                f"that says {self.told_by}"
            )
        shown: list[str] = columns[terms.shows].tolist()
        return shown

    def request(self, terms: Any, reader: Any) -> Request:
        """Raises `DeploymentRefused`: such files are decoded by this package alone."""
        raise DeploymentRefused(
            f"{self.one}s are read within confide alone: no folder is written that reads them elsewhere"
        )

    def vocabulary(self, terms: Any, columns: Mapping[str, np.ndarray]) -> "PreTrainedTokenizerFast":
        """Makes a tokenizer of the words of public records and of the template, split at blanks."""
        from .vocabularies import word_tokenizer

        texts = (text for name in (*terms.shown, *terms.told) for text in columns[name].tolist())
        return word_tokenizer([said(terms.prompt), said(terms.completion), *texts])
