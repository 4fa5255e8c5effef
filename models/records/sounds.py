"""Sounds: a record is a sound and a text about it, and the model writes what is asked behind both.

The sound takes a token for each 64 ms (`structure.sounds`). Public records teach a small backbone with an ear from
nothing: first the ear, by a column that says what each sound says, then the decoder. What such records share with
pictures is in `beside`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..strict import FieldName
from ..structure.sounds import MOST_SECONDS, PIECE_MS, PublicSounds, SoundLayout, decode, plain
from .beside import Beside, BesideReader, BesideTerms
from .text import Template


class SoundTerms(BesideTerms):
    """Terms of records of sounds: the column of files, their rate and length, and the template of the text."""

    file: FieldName = Field(examples=['"call"'], description="column of names of WAV files below the site's data.files")
    prompt: Template = Field(
        examples=['"desk {desk}:"'],
        description="what the model is shown behind the sound; names in braces are columns",
    )
    completion: Template = Field(examples=['" {language}"'], description="what it learns to write after that")
    shows: FieldName | None = Field(
        default=None,
        examples=['"spoken"'],
        description="column of the public table alone that says what each sound says: an ear learns by it; sites need "
        "none",
    )
    rate: int = Field(examples=["8000"], description="samples a second that every file has, 8000 or 16000")
    seconds: Annotated[int, Field(ge=1, le=MOST_SECONDS)] = Field(
        examples=["2"], description="of the longest sound; shorter ones end in silence"
    )

    @property
    def layout(self) -> SoundLayout:
        """The rate and length of sounds."""
        return SoundLayout(self.rate, self.seconds)


class Sounds(Beside):
    """Records of a sound and a text."""

    name = "sound"
    terms = SoundTerms
    whole = "a record of a sound is the sound and what the template says, and no more"
    files = "sounds"
    form, one = "WAV", "sound"
    told_by = "what each sound says"

    def opens(self, terms: SoundTerms) -> Callable[[bytes], bytes]:
        """Returns what keeps format and samples of a file."""
        return partial(plain, layout=terms.layout)

    def expected(self, terms: SoundTerms) -> str:
        """Says for people what a file must be."""
        return f"PCM of 16 bits, one channel, {terms.rate} Hz, at most {terms.seconds} s"

    def size(self, terms: SoundTerms) -> str:
        """Says for people how long a sound is."""
        return f"at most {terms.layout.said}"

    def lessons(self, terms: SoundTerms, columns: Mapping[str, np.ndarray]) -> PublicSounds:
        """Returns public sounds, and what each says.

        Raises:
            InvalidPretraining: `shows` is left out.
        """
        return PublicSounds(terms.layout, columns[terms.file].tolist(), self.shown_by(terms, columns))

    def reader(self, terms: SoundTerms, vocabulary: Any, *, max_tokens: int) -> BesideReader:
        """Returns the encoder of the study's sounds and template for a tokenizer.

        Raises:
            InvalidPrompt: sound and template leave no room for a record.
        """
        layout = terms.layout

        def pieces(files: Sequence[bytes]) -> npt.NDArray[np.uint8]:
            return layout.pieces(decode(files, layout))

        takes = f"the sound alone takes {layout.tokens} tokens, one for each {PIECE_MS} ms"
        return BesideReader(terms, vocabulary, max_tokens, pieces, takes)
