"""Inputs beside words: where each token stands in its formula or program, and what is in a picture or a sound.

`readers` is the table of readers, each a file that implements `readers.StructureReader`: `formulas` reads LaTeX and
infix mathematics, `code` programs in Python and Java, whose open constructs `constructs` follows. `inputs` joins a
reader to a model: at every token rows of numbers from small tables are added to the word's embedding, one for each
thing that the reader says. What it says of a token follows from the tokens up to it and from no later one, so a text is
read alike whether it is trained on or being written.

Pictures and sounds are inputs too. `pictures` reads PNG files, which strangers may have written, and cuts a picture
into squares, one for each token that carries it; `sounds` reads WAV files and cuts a sound into pieces of 64 ms. A
sense, `eye.Eye` or `ear.Ear`, turns these tokens' bytes into states. `sense` has what both share, and its `join` puts
one before the decoder of a causal language model: the first tokens of a row are then a picture's or a sound's, those
behind them words. `places` names files and modules of both.

The second 2 of `2x^{2` is an exponent, and the first digit of its number:

>>> from confide.models.structure import readers
>>> prefix = readers.READERS["formulas"].begin()
>>> said = [prefix.feed(word) for word in ("2", "x", "^", "{", "2")]
>>> [dict(zip(readers.READERS["formulas"].sizes, ids))["opener"] for ids in (said[0], said[-1])]
[0, 1]

A picture of one cell, 32 pixels on each side, is four tokens of 256 pixels:

>>> import numpy as np
>>> from confide.models.structure import pictures
>>> layout = pictures.PictureLayout(size=(32, 32), cell=(32, 32))
>>> layout.tokens, layout.squares(np.zeros((1, 32, 32), dtype=np.uint8)).shape
(4, (1, 4, 256))

A sound of one second is 16 tokens of 512 samples, 1,024 bytes:

>>> from confide.models.structure import sounds
>>> layout = sounds.SoundLayout(rate=8000, seconds=1)
>>> layout.tokens, layout.pieces(np.zeros((1, 8192), dtype=np.int16)).shape
(16, (1, 16, 1024))
"""

__all__ = ["code", "constructs", "ear", "eye", "inputs", "pictures", "places", "readers", "sense", "sounds"]
