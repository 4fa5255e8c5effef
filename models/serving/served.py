"""Things that are served: a backbone, adapters by name with their studies' guarantees, and the tokens of a request.

A request's words are read as plain text: only the checkpoint's chat template and a study's own template say control
words, so nobody who asks can end a turn or begin another.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..adapters.composing import Composition, Frozen, Source, Spent, added_up, compose
from ..backbones.family import context_length
from ..backbones.loading import TextBackbone
from ..decoding.forms import Forms
from ..errors import BackboneMismatch, CombinationRefused, InvalidPrompt
from ..heads import PooledHead, pooled, word_logits
from ..records.documents import encoded
from ..records.text import Requests
from ..structure.inputs import embedded

BACKBONE = "backbone"  # its name beside those of adapters
_PART = "\ufffd"  # what a letter looks like of which some bytes are missing
MOST_SCORED, _SCORED = 4096, 64  # tokens of a prompt that is repeated; of them, those scored at a time
_LONGEST_LETTER = 8  # tokens; UTF-8 has four bytes a letter at most, and what is longer is no letter


@dataclass(frozen=True, slots=True)
class Model:
    """One model that can be asked for."""

    name: str
    weights: tuple[float, ...]  # of all adapters: its own is 1; the backbone's are all 0
    sources: tuple[Source, ...]  # studies that are in it, those of the backbone included
    spent: tuple[Spent, ...]  # for one person in all of these, by unit
    head: PooledHead | None  # None: it writes, and does not classify
    meaning: str  # of the head's outputs

    @property
    def unbounded(self) -> tuple[str, ...]:
        """Studies without privacy that are in it."""
        return tuple(dict.fromkeys(source.study for source in self.sources if source.mode == "none"))


class Shown(NamedTuple):
    """A token of a prompt, and what a model makes of it."""

    id: int
    logprob: float | None  # None of the first one, before which there is nothing
    likeliest: tuple[tuple[int, float], ...]


class Served:
    """A backbone that reads text, with adapters that are asked for by name."""

    def __init__(
        self,
        backbone: Path,
        adapters: Sequence[Path],
        *,
        frozen: Frozen = "float32",
        reads_control_words: bool = False,
    ) -> None:
        """Loads the backbone and puts the adapters on it.

        Args:
            backbone: its folder.
            adapters: folders that `coordinator adapter export` wrote, one or more.
            frozen: "int8" to multiply bytes, see `compose`.
            reads_control_words: True if whoever asks for completions may say control words, as a study's template does;
                for measurements of one's own.

        Raises:
            InvalidRelease: a folder is not what an export wrote; one without its card is none.
            InvalidBackbone, BackboneMismatch: the backbone is broken, has another hash than the adapters are for, or
                reads records.
            CombinationRefused: the adapters do not fit together, or to the backbone.
        """
        self.composition: Composition = compose(backbone, adapters, with_heads=False, frozen=frozen)
        if not isinstance(self.composition.backbone, TextBackbone):
            raise BackboneMismatch(
                "the backbone reads records, which are not served: answer a table with coordinator adapter ask"
            )
        if things := self.composition.adapted.begins_with:
            raise BackboneMismatch(
                f"the backbone reads {things}, which are not served: answer a table with coordinator adapter ask "
                "--study"
            )
        self._backbone = self.composition.backbone
        self.tokenizer: Any = self._backbone.tokenizer
        self.ends = _ends(self.tokenizer, self._backbone.model)
        self.longest = context_length(self._backbone.model.config)
        self.requests = Requests(self.tokenizer, self.longest)
        self.forms = Forms(self.tokenizer, self.requests.words)
        self._reads_control_words = reads_control_words
        self.models: Mapping[str, Model] = {model.name: model for model in self._models()}

    def prompt(self, text: str) -> list[int]:
        """Tokenizes what a text begins with; one that is empty begins as the model's own texts do, if they do."""
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        ids = self.requests.stated(text) if self._reads_control_words else self.requests.plain(text)
        return ids or ([] if start is None else [int(start)])

    def beginnings(self, texts: Sequence[str]) -> list[tuple[tuple[float, ...], list[int]]]:
        """Tokenizes what requests may begin with, for each model: weights of the adapters, and tokens.

        That is each of the texts, as it stands and as a system's turn, and what the checkpoint's chat template writes
        before a user's turn.

        Raises:
            InvalidPrompt: a text leaves the model no room for a request.
        """
        found = [ids for text in texts for ids in (self.requests.plain(text), self.requests.beginning(text))]
        most = max(map(len, found), default=0)
        if most >= self.longest:
            raise InvalidPrompt(f"a prefix has {most:,} tokens, and the model reads {self.longest:,}")
        found.append(self.requests.beginning(None))
        return [(model.weights, ids) for model in self.models.values() for ids in found]

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of tokens, without control words."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def word(self, token: int) -> str:
        """Returns the text of one token inside a text: some tokenizers drop a blank at the beginning of one."""
        before = self.requests.anchor
        return self.text([*before, token])[len(self.text(before)) :]

    def documents(self, texts: Sequence[str], template: str) -> list[list[int]]:
        """Tokenizes documents as a study reads them, and cuts none.

        Raises:
            InvalidPrompt: the template has not one name in braces, or a document is longer than the model reads.
        """
        rows = encoded(template, texts, self.tokenizer, self.longest + 1)
        found = [row[: max(1, int(np.flatnonzero(row).max(initial=0)) + 1)].tolist() for row in rows]
        if max(map(len, found)) > self.longest:
            raise InvalidPrompt(f"a document is longer than the {self.longest:,} tokens that the model reads")
        return found

    @torch.inference_mode()
    def classify(self, model: Model, documents: Sequence[Sequence[int]]) -> list[list[float]]:
        """Computes the outputs of a model's head for documents of one length.

        Raises:
            CombinationRefused: the model has no head.
        """
        if model.head is None:
            raise CombinationRefused(f"model {model.name} has no head: it writes, and does not classify")
        ids_RT = torch.tensor([list(own) for own in documents])
        with self.composition.answering(torch.tensor([model.weights] * len(documents))) as adapted:
            outputs = model.head(pooled(adapted.model, ids_RT, model.head.reads))
        found: list[list[float]] = outputs.reshape(len(documents), -1).tolist()
        return found

    @torch.inference_mode()
    def scored(self, model: Model, ids: Sequence[int], likeliest: int) -> "list[Shown]":
        """Says how likely a model finds each token of a prompt behind those before it.

        Args:
            likeliest: words that are told beside each token.

        Raises:
            InvalidPrompt: the prompt is longer than is read in one pass.
        """
        if len(ids) > MOST_SCORED:
            raise InvalidPrompt(f"a prompt that is repeated has at most {MOST_SCORED:,} tokens, and this {len(ids):,}")
        ids_RT = torch.tensor([list(ids)])
        found = [Shown(ids[0], None, ())]
        with self.composition.answering(torch.tensor([model.weights])) as adapted:
            embedded_RTD = embedded(adapted.model, ids_RT)
            states_TD = adapted.model.model(inputs_embeds=embedded_RTD, use_cache=False).last_hidden_state[0, :-1]
            for start in range(0, len(ids) - 1, _SCORED):
                words = ids_RT[0, 1:][start : start + _SCORED]
                logits_TV = word_logits(adapted.model, states_TD[start : start + _SCORED])[:, : self.requests.words]
                logprobs_TV = logits_TV.double().log_softmax(1)
                top = logprobs_TV.topk(likeliest) if likeliest else None
                for row, word in enumerate(words.tolist()):
                    told = () if top is None else zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
                    found.append(Shown(word, float(logprobs_TV[row, word]), tuple(told)))
        return found

    def _models(self) -> list[Model]:
        released = self.composition.adapters
        earlier = released[0].provenance.backbone_sources
        nobody = (0.0,) * len(released)
        found = [Model(BACKBONE, nobody, earlier, tuple(added_up(earlier)), None, "")]
        names = ["+".join(dict.fromkeys(source.study for source in each.provenance.sources)) for each in released]
        taken = {BACKBONE}
        for place, (name, each) in enumerate(zip(names, released, strict=True)):
            sources = (*earlier, *each.provenance.sources)
            head = None if each.head is None else self._head(each.head)
            weights = tuple(float(other == place) for other in range(len(released)))
            # Two runs of one study are told apart by their order.
            is_one = names.count(name) == 1 and name not in taken
            numbered = (f"{name}-{number}" for number in itertools.count(1))
            unlike = name if is_one else next(each for each in numbered if each not in {*taken, *names})
            taken.add(unlike)
            found.append(Model(unlike, weights, sources, tuple(added_up(sources)), head, each.meaning))
        return found

    def _head(self, tensors: Mapping[str, torch.Tensor]) -> PooledHead:
        reads = tuple(int(number) for number in tensors["reads"]) if "reads" in tensors else None
        own = self._backbone.head(None, reads)
        if not (torch.equal(own.center, tensors["center"]) and torch.equal(own.whiten, tensors["whiten"])):
            raise CombinationRefused("an adapter's head does not read the pooled states of this backbone")
        own.weight = torch.nn.Parameter(tensors["weight"], requires_grad=False)
        return own


class Writing:
    """The text of tokens as they come: a letter of several tokens comes with the last of them.

    Only the last few tokens are read again for each, so a long text costs no more a token than a short one.
    """

    def __init__(self, served: Served, behind: Sequence[int] = ()) -> None:
        """Begins a text behind a prompt: some tokenizers drop a blank at the beginning of what they are given."""
        self._served = served
        self._ids = list(behind[-_LONGEST_LETTER:])  # from the last place at which a letter ended
        self._told = len(self._ids)  # of them, those whose text was told

    def next(self, token: int) -> str:
        """Takes a token; returns what the text grows by, "" where a letter is not whole yet."""
        self._ids.append(token)
        whole = self._served.text(self._ids)
        if whole.endswith(_PART) and len(self._ids) - self._told < _LONGEST_LETTER:
            return ""
        piece = whole[len(self._served.text(self._ids[: self._told])) :]
        self._ids, self._told = self._ids[self._told :], len(self._ids) - self._told
        return piece

    def rest(self) -> str:
        """Returns what is left at the end of a text: a letter that is not whole."""
        return self._served.text(self._ids)[len(self._served.text(self._ids[: self._told])) :]


def _ends(tokenizer: Any, model: Any) -> frozenset[int]:
    """Words that end a text: the tokenizer's, and those that the checkpoint names for writing."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return frozenset(int(each) for each in found if each is not None)
