"""Says whether a program parses. Nothing of it is run.

Python is read by the parser of the running Python, Java by tree-sitter's grammar, which lets more pass than a compiler.
"""

import ast
import warnings

from ..structure import code

LONGEST = 2**13  # signs; a parser can need a time that grows with their square, here a second


def parses(language: str, text: str) -> bool:
    """True if a program parses, whatever it would do.

    Args:
        language: in `structure.constructs.LANGUAGES`.
    """
    if len(text) > LONGEST:
        return False
    if language != "python":
        return not code.has_error(language, text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange escapes, which are no errors
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last if it is nested too deeply
        return False
    return True
