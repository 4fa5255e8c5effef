"""Inputs beside words: where each token stands in its formula or program, and what is in a picture.

`readers` is the table of readers, each a file that implements `readers.StructureReader`: `formulas` reads LaTeX and
infix mathematics, `code` programs in Python and Java, whose open constructs `constructs` follows. `inputs` joins a
reader to a model: at every token rows of numbers from small tables are added to the word's embedding, one for each
thing that the reader says. What it says of a token follows from the tokens up to it and from no later one, so a text is
read alike whether it is trained on or being written.

Pictures are inputs too. `pictures` reads PNG files, which strangers may have written, and cuts a picture into squares,
one for each token that carries it. `eye.Eye` turns these tokens' bytes into states, cell by cell, and `eye.join` puts
it before the decoder of a causal language model: the first tokens of a row are then a picture's, those behind them
words. `places` names the eye's file and modules.

The second 2 of `2x^{2` is an exponent, and the first digit of its number:

>>> from confide.models.structure import readers
>>> prefix = readers.READERS["formulas"].begin()
>>> said = [prefix.feed(word) for word in ("2", "x", "^", "{", "2")]
>>> [dict(zip(readers.READERS["formulas"].sizes, ids))["opener"] for ids in (said[0], said[-1])]
[0, 1]

A picture of one cell, 32 pixels on each side, is four tokens of 256 pixels:

>>> import numpy as np
>>> from confide.models.structure import pictures
>>> layout = pictures.Layout(size=(32, 32), cell=(32, 32))
>>> layout.tokens, layout.squares(np.zeros((1, 32, 32), dtype=np.uint8)).shape
(4, (1, 4, 256))
"""

__all__ = ["code", "constructs", "eye", "inputs", "pictures", "places", "readers"]
