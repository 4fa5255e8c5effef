"""Makes tokenizers for the small backbones of kinds of record that no published checkpoint reads as they need.

A word never crosses what has a meaning of its own: a digit, a bracket, a line break with its indentation.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..structure.code import SPLIT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Of LaTeX, each a word of the tokenizer; any other command is read letter by letter.
COMMANDS = tuple(
    f"\\{name}"
    for name in [
        "frac",
        "sqrt",
        "cdot",
        "times",
        "int",
        "sum",
        "left",
        "right",
        "pi",
        "infty",
        "le",
        "ge",
        "sin",
        "cos",
        "tan",
        "exp",
        "ln",
        "log",
        "alpha",
        "beta",
        "lambda",
        "mu",
        "sigma",
        "Delta",
    ]
)
_CONTROL = ("<pad>", "<eos>", "<unk>")
# A line break and its blanks; a name; a digit; a sign; blanks. A blank before a name or a sign belongs to it.
_LEXEME = r"\n *|[ ]?[A-Za-z_]+|[0-9]|[ ]?[^\sA-Za-z0-9_]|[ ]+|\s"
_WORDS = 1536  # of code, single signs among them


def character_tokenizer(commands: Sequence[str] = ()) -> "PreTrainedTokenizerFast":
    r"""Makes a tokenizer of which every printable character of ASCII is a word, and each command such as `\frac`."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    words = [*_CONTROL, "\n", *map(chr, range(32, 127)), *commands]
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=_CONTROL[2]))
    longest_first = sorted(commands, key=len, reverse=True)
    pattern = "|".join([*(command.replace("\\", "\\\\") + "(?![A-Za-z])" for command in longest_first), r"[\s\S]"])
    core.pre_tokenizer = Split(Regex(pattern), behavior="isolated")
    core.decoder = Fuse()
    core.add_special_tokens(list(_CONTROL))
    return _named(core)


def word_tokenizer(texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    """Makes a tokenizer of all words of texts, split at blanks, equal for equal texts in any order.

    A control word that is read as plain text is an unknown word.

    Args:
        texts: public ones; the words can be read from the tokenizer.
    """
    from tokenizers import Tokenizer, normalizers
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    known = {word for text in texts for word in text.split()} - {*_CONTROL}
    words = [*_CONTROL, *sorted(known)]
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=_CONTROL[2]))
    core.normalizer = normalizers.Sequence(
        [normalizers.Replace(word, _CONTROL[2]) for word in _CONTROL[:2]]
    )  # of text alone
    core.pre_tokenizer = WhitespaceSplit()
    core.add_special_tokens(list(_CONTROL))
    return _named(core)


def code_tokenizer(programs: Iterable[str], words: int = _WORDS) -> "PreTrainedTokenizerFast":
    """Makes a tokenizer of the commonest pieces of programs (byte-pair encoding), equal for equal programs.

    Args:
        programs: public ones; what is common in them can be read from the words.
        words: size of the vocabulary, if there are as many pieces.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Split
    from tokenizers.trainers import BpeTrainer

    core = Tokenizer(BPE(unk_token=_CONTROL[2]))
    core.pre_tokenizer = Split(Regex(_LEXEME), behavior="isolated")
    core.decoder = Fuse()
    signs = ["\n", SPLIT, *map(chr, range(32, 127))]
    trainer = BpeTrainer(vocab_size=words, special_tokens=list(_CONTROL), initial_alphabet=signs, show_progress=False)
    core.train_from_iterator(programs, trainer)
    return _named(core)


def _named(core: Any) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    named_words = dict(zip(("pad_token", "eos_token", "unk_token"), _CONTROL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=core, **named_words)  # type: ignore[no-untyped-call]
