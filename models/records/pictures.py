"""Pictures: a record is a picture and a text about it, and the model writes what is asked behind both.

The picture takes a token for each square (`structure.pictures`). A form of several boxes is read box by box, each box
a cell. Public records teach a small backbone with an eye from nothing: first the eye, by a column that says in a word
what each cell shows, then the decoder. What such records share with sounds is in `beside`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..strict import FieldName
from ..structure.pictures import PictureLayout, PublicPictures, decode, plain
from .beside import Beside, BesideReader, BesideTerms
from .requests import PictureShown, Request
from .text import Template

Side = Annotated[int, Field(ge=1, le=2**16)]


class PictureTerms(BesideTerms):
    """Terms of records of pictures: the column of files, their size, and the template of the text."""

    file: FieldName = Field(examples=['"scan"'], description="column of names of PNG files below the site's data.files")
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
    size: tuple[Side, Side] = Field(
        examples=["[32, 128]"], description="height and width of every picture in pixels, multiples of 32"
    )
    cell: tuple[Side, Side] | None = Field(
        default=None,
        examples=["[32, 32]"],
        description="height and width of what is read by itself, such as a box of a form; left out, the whole picture",
    )

    @property
    def layout(self) -> PictureLayout:
        """The size of pictures, and of their cells."""
        return PictureLayout(self.size, self.cell or self.size)


class Pictures(Beside):
    """Records of a picture and a text."""

    name = "picture"
    terms = PictureTerms
    whole = "a record of a picture is the picture and what the template says, and no more"
    files = "pictures"
    form, one = "PNG", "picture"
    told_by = "in a word what each cell shows"

    def opens(self, terms: PictureTerms) -> Callable[[bytes], bytes]:
        """Returns what keeps header, pixels and end of a file."""
        return partial(plain, size=terms.size)

    def expected(self, terms: PictureTerms) -> str:
        """Says for people what a file must be."""
        height, width = terms.size
        return f"{height} pixels high and {width} wide, 8 bits grey or RGB"

    def size(self, terms: PictureTerms) -> str:
        """Says for people how large a picture is."""
        layout = terms.layout
        return "{} x {} pixels".format(*layout.size) + (f" in {layout.cells} cells" if layout.cells > 1 else "")

    def lessons(self, terms: PictureTerms, columns: Mapping[str, np.ndarray]) -> PublicPictures:
        """Returns public pictures, and what their cells show.

        Raises:
            InvalidPretraining: `shows` is left out.
        """
        return PublicPictures(terms.layout, columns[terms.file].tolist(), self.shown_by(terms, columns))

    def reader(self, terms: PictureTerms, vocabulary: Any, *, max_tokens: int) -> BesideReader:
        """Returns the encoder of the study's pictures and template for a tokenizer.

        Raises:
            InvalidPrompt: picture and template leave no room for a record.
        """
        layout = terms.layout

        def squares(files: Sequence[bytes]) -> npt.NDArray[np.uint8]:
            return layout.squares(decode(files, layout.size))

        takes = f"the picture alone takes {layout.tokens} tokens, one for each 16 pixels squared"
        return BesideReader(terms, vocabulary, max_tokens, squares, takes)

    def request(self, terms: PictureTerms, reader: BesideReader) -> Request:
        """Says what is shown of a request: the picture, then the text of the prompt."""
        layout = terms.layout
        shown = replace(reader.prompt, picture=PictureShown(terms.file, layout.size, layout.cell))
        return Request(shown, writing=reader.writing)
