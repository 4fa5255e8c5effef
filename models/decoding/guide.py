"""The interface of a guide: which words may come next of a text that is being written."""

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Guide(Protocol):
    """Says which words of a vocabulary may come next."""

    def allowed(self, prompt: str, text: str) -> npt.NDArray[np.bool_] | None:
        """Returns bool [words], one true at the least; None if all words may come.

        Args:
            prompt: what the model was shown.
            text: what was written so far behind it.
        """
