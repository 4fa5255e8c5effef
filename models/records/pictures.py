"""Pictures: a record is a picture and a text about it, and the model writes what is asked behind both.

The picture comes first: as many tokens as it has squares, each of which carries its pixels (`models.tokens`,
`structure.pictures`). Behind it stands what the template shows, then what is learned. A form of several boxes is read
box by box, each box a cell. Public records teach a small backbone with an eye from nothing: first the eye, by a column
that says in a word what each cell shows, then the decoder.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..errors import DeploymentRefused, InvalidPretraining, InvalidPrompt
from ..strict import FIELD_NAME, FIELD_NAME_RULE, FieldName, SparseModel
from ..structure.pictures import Layout, PublicPictures, decode, plain
from .completions import Completions
from .kind import Column
from .templates import Part, PlainTokenizer, TokenTemplate, columns_of, padded, said
from .text import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Side = Annotated[int, Field(ge=1, le=2**16)]


class PictureTerms(SparseModel):
    """Terms of records of pictures: the column of files, their size, and the template of the text."""

    file: FieldName = Field(examples=['"scan"'], description="column of names of PNG files below the site's data.files")
    size: tuple[Side, Side] = Field(
        examples=["[32, 128]"], description="height and width of every picture in pixels, multiples of 32"
    )
    cell: tuple[Side, Side] | None = Field(
        default=None,
        examples=["[32, 32]"],
        description="height and width of what is read by itself, such as a box of a form; left out, the whole picture",
    )
    prompt: Template = Field(
        examples=['"typed {typed}, rule {rule}:"'],
        description="what the model is shown behind the picture; names in braces are columns",
    )
    completion: Template = Field(examples=['" {written}"'], description="what it learns to write after that")
    shows: FieldName | None = Field(
        default=None,
        examples=['"digits"'],
        description="column of the public table alone that says, in a word for each cell, what it shows: an eye learns "
        "by it; sites need none",
    )

    @property
    def layout(self) -> Layout:
        """The size of pictures, and of their cells."""
        return Layout(self.size, self.cell or self.size)

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


class PictureReader:
    """Encodes records as tokens: those that carry the picture, then those of the template."""

    def __init__(self, terms: PictureTerms, tokenizer: Any, max_tokens: int) -> None:
        """Prepares the core of `tokenizer`, a transformers tokenizer in Rust.

        Raises:
            InvalidPrompt: picture and template leave no room for a record.
        """
        self._terms, self.layout = terms, terms.layout
        if max_tokens <= self.layout.tokens + 1:
            raise InvalidPrompt(
                f"data.max_tokens is {max_tokens}; the picture alone takes {self.layout.tokens} tokens, one for each "
                "16 pixels squared: leave room for the text behind it"
            )
        from ..structure.inputs import words_of

        self._tokenizer, self._words = PlainTokenizer(tokenizer), words_of(tokenizer)
        self._end = tokenizer.eos_token_id
        parts = [Part(terms.prompt, is_learned=False), Part(terms.completion, is_learned=True)]
        self._template = TokenTemplate(parts, self._tokenizer, max_tokens - self.layout.tokens)
        # Of a token that carries part of a picture: any word but padding, as nothing reads it.
        self._word = self._tokenizer.words - 1

    @property
    def words(self) -> int:
        """Size of the vocabulary: one more than the largest id."""
        return self._tokenizer.words

    def examples(
        self, columns: Mapping[str, np.ndarray], labels: np.ndarray | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.generic]]:
        """Returns ids [rows, longest, 1 + C] and the mask of completions, [rows, longest]; there are no labels.

        Raises:
            InvalidPicture: a file is no picture of the study's size.
        """
        from ..tokens import carrying

        del labels
        cells = [
            self._tokenizer.of_records([cell.lead + str(text) for text in columns[cell.column]])
            for cell in self._template.cells
        ]
        words, is_completion = padded([self._template.row(own) for own in zip(*cells, strict=True)])
        pictures = decode(columns[self._terms.file].tolist(), self._terms.size)
        squares = self.layout.squares(pictures)
        carried = np.zeros((len(words), squares.shape[1] + words.shape[1], squares.shape[2]), dtype=np.uint8)
        carried[:, : squares.shape[1]] = squares
        before = np.full((len(words), squares.shape[1]), self._word)
        nothing = np.zeros(before.shape, dtype=np.bool_)
        return carrying(np.hstack([before, words]), carried), np.hstack([nothing, is_completion])

    def written(self, model: Any, ids: np.ndarray, is_learned: np.ndarray, *, longest: int = 64) -> list[str]:
        """Lets a model write behind the pictures and prompts of records, word by word, until it ends each text.

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


class Pictures(Completions):
    """Records of a picture and a text, completed by the model's own output matrix."""

    name = "picture"
    terms = PictureTerms
    whole = "a record of a picture is the picture and what the template says, and no more"
    makes_vocabulary = True

    def problems(self, terms: PictureTerms, *, max_tokens: int) -> list[str]:
        """Lists sizes that no eye reads, texts that are no template, and columns that contradict each other."""
        problems = [f"data.picture.{problem}" for problem in terms.layout.problems()]
        try:
            shown, told = terms.shown, terms.told
        except InvalidPrompt as err:
            return [*problems, f"data.picture: {err}"]
        problems += [
            f"data.picture names a column {name!r}; it must be {FIELD_NAME_RULE}"
            for name in (*shown, *told)
            if not re.fullmatch(FIELD_NAME, name)
        ]
        if not told:
            problems.append("data.picture.completion names no column in braces, so that nothing would be learned")
        if both := sorted({*shown} & {*told}):
            problems.append(f"data.picture shows {', '.join(both)} and learns it; a model would just copy it")
        if terms.file in (*shown, *told):
            problems.append("data.picture.file stands in the template; it names files, which are no text")
        if terms.shows in (terms.file, *shown, *told):
            problems.append("data.picture.shows is a column that sites have too; name one of the public table alone")
        if not problems and max_tokens <= terms.layout.tokens + 1:
            problems.append(
                f"data.max_tokens is {max_tokens}; a picture alone takes {terms.layout.tokens}, and the text comes "
                "behind it"
            )
        return problems

    def columns(self, terms: PictureTerms) -> tuple[Column, ...]:
        """Returns the column of files, then those that are shown, then those that are learned."""
        from . import cells

        most = f"text of at most {cells.MAX_TEXT:,} characters"
        height, width = terms.size
        file = Column(
            terms.file,
            "picture",
            f"the name of a PNG file below data.files, {height} pixels high and {width} wide, 8 bits grey or RGB",
            cells.file_names,
            opens=partial(plain, size=terms.size),
        )
        shown, told = (partial(cells.free_text, may_be_missing=is_shown) for is_shown in (True, False))
        return (
            file,
            *(Column(name, "text", most, shown) for name in terms.shown),
            *(Column(name, "text to learn", f"{most}, and not nothing", told) for name in terms.told),
            *(Column(name, "text", most, shown, sites=()) for name in (terms.shows,) if name is not None),
        )

    def facts(self, terms: PictureTerms) -> dict[str, Any]:
        """Describes the picture, the template, and the columns."""
        layout = terms.layout
        size = "{} x {} pixels".format(*layout.size) + (f" in {layout.cells} cells" if layout.cells > 1 else "")
        return {
            "picture": f"PNG of {size}, {layout.tokens} tokens",
            "prompt": terms.prompt,
            "completion": terms.completion,
            "columns": [
                f"{terms.file} (picture, shown)",
                *(f"{name} (free text, shown)" for name in terms.shown),
                *(f"{name} (free text, learned)" for name in terms.told),
            ],
        }

    def layout(self, terms: PictureTerms) -> Layout:
        """Returns the size of pictures, and of their cells, that an eye must have."""
        return terms.layout

    def pictures(self, terms: PictureTerms, columns: Mapping[str, np.ndarray]) -> PublicPictures:
        """Returns public pictures, and what their cells show.

        Raises:
            InvalidPretraining: `shows` is left out.
        """
        if terms.shows is None:
            raise InvalidPretraining(
                "data.picture.shows is missing: an eye learns by a column of the public table that says in a word what "
                "each cell shows"
            )
        return PublicPictures(terms.layout, columns[terms.file].tolist(), columns[terms.shows].tolist())

    def request(self, terms: PictureTerms, reader: PictureReader) -> NoReturn:
        """Raises `DeploymentRefused`: pictures are decoded by this package alone."""
        raise DeploymentRefused(
            "pictures are read within confide alone: no folder is written that reads them elsewhere"
        )

    def vocabulary(self, terms: PictureTerms, columns: Mapping[str, np.ndarray]) -> "PreTrainedTokenizerFast":
        """Makes a tokenizer of the words of public records and of the template, split at blanks."""
        from .vocabularies import word_tokenizer

        texts = (text for name in (*terms.shown, *terms.told) for text in columns[name].tolist())
        return word_tokenizer([said(terms.prompt), said(terms.completion), *texts])

    def reader(self, terms: PictureTerms, vocabulary: Any, *, max_tokens: int) -> PictureReader:
        """Returns the encoder of the study's pictures and template for a tokenizer.

        Raises:
            InvalidPrompt: picture and template leave no room for a record.
        """
        return PictureReader(terms, vocabulary, max_tokens)
