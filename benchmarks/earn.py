"""Compares the head alone with head and LoRA under the same noise, on free text: do adapters earn their epsilon?

    python benchmarks/earn.py [--quick] [--rows lora ...] [--seeds 1 2 3] [--base FILE] [--json]

The records are first names (`examples/names`), read letter by letter. The backbone learned to predict the next letter
of the words of ICD-10-CM, and nothing about names. The rounds are those of
`coordinator.comparison.federated.federate`, with the steps that sites and coordinator run. Sampling and noise under
privacy come from the operating system, so a private row is a mean over as many independent runs as there are seeds.
Settings: `TERMS`; how they were found: `examples/names/README.md`.
"""

import argparse
import itertools
import json
import platform
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import DeepseekV3ForCausalLM

from confide.client_node.study import StudyDraft
from confide.coordinator.comparison.federated import federate, logits
from confide.coordinator.comparison.linear import noise_of, private_linear
from confide.models.adapters import AdaptedModel, AdapterConfig, attach
from confide.models.backbones.balancing import balanced
from confide.models.backbones.loading import EMBEDDING_STD, BackboneConfig, build
from confide.models.evaluation.metrics import auc
from confide.models.heads import PooledHead
from confide.models.records import RecordSchema
from confide.models.records.fields import CategoricalField
from confide.models.rounding import rounded_up
from confide.privacy.accounting import Mode, Release, epsilon_pld, epsilon_rdp

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "names"))
from prepare import LETTERS, SITES, plain, prepare  # puts examples/ on the path
from splitting import draw, package_file

SCALE_BITS = 24
MAX_LETTERS = 13  # of a name, the end of the text not counted; the rest is cut
END = 1  # token behind the last letter; its state has seen the whole name
TRIGRAMS = 3000
TERMS = {
    "name": "names",
    "model": {"backbone": "letters"},
    "adapter": {
        "rank": 4,
        "alpha": 0.25,
        "targets": ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "down_proj"),
        "seed": "n1",
    },
    "data": {
        "label": "is_female",
        "unit": "customer",
        "max_tokens": MAX_LETTERS + 1,
        "categorical": {"letter": (*LETTERS.strip(),)},
    },
    "privacy": {
        "mode": "distributed",
        "noise_multiplier": 1.15,
        "clip_norm": 1.0,
        "sample_rate": 0.05,
        "delta": 1e-5,
    },
    "rounds": {"rounds": 80, "min_sites": 6, "deadline_s": 60, "batch_units": 1294},
    "optimizer": {"lr": 4.0, "head_lr": 20.0},
    "participants": {"sites": (*SITES,), "aggregators": ("agg-a", "agg-b", "agg-c")},
}
HEAD_LR, GRAMS_LR = 10.0, 10.0  # the best of 10, 30 and 100 for each alone
HEAD_AT_ITS_BEST = {"sample_rate": 0.1, "noise_multiplier": 1.75}  # twice the names a round, at the same epsilon


class LetterModel(AdaptedModel):
    """Reads a name by its pooled states and, beside them, the last state at its end: an order that a mean forgets."""

    @classmethod
    def of(cls, model: DeepseekV3ForCausalLM, config: AdapterConfig, head: PooledHead) -> "LetterModel":
        """`model` with adapters in place."""
        plain = attach(model, config, head)
        return cls(plain.model, plain.config, plain.head, plain.slot, plain.rows, plain.gates)

    def classify(self, ids_RT: Tensor) -> Tensor:
        """[R] logits."""
        return self.head(read(self.model, ids_RT))


@dataclass(frozen=True, slots=True)
class Names:
    """One part of one or more sites' records."""

    names: list[str]
    ids: np.ndarray  # int64 [rows, MAX_LETTERS + 1]
    labels: np.ndarray  # int64 [rows]


@dataclass(frozen=True, slots=True)
class Bench:
    """All that a row needs."""

    draft: StudyDraft
    weights: dict[str, Tensor]  # of the backbone
    center: Tensor
    whiten: Tensor
    trigrams: list[str]  # the commonest of the public words
    sites: dict[str, Names]  # training parts
    tested: Names  # of all sites together


def read(model: DeepseekV3ForCausalLM, ids_RT: Tensor) -> Tensor:
    """[R, 3D]: means of first and last states over a record's tokens, and the last state at its last token."""
    is_token = ids_RT > 0
    embedded = model.get_input_embeddings()(ids_RT)
    last = model.model(inputs_embeds=embedded, attention_mask=is_token.long(), use_cache=False).last_hidden_state
    both = torch.cat([embedded / EMBEDDING_STD, last], dim=-1).masked_fill(~is_token[..., None], 0)
    length = is_token.sum(1)
    return torch.cat([both.sum(1) / length[:, None], last[torch.arange(len(last)), length - 1]], dim=-1)


def encode(names: list[str]) -> np.ndarray:
    """Token ids int64 [names, MAX_LETTERS + 1]: letters from 2 on, `END` behind them, then padding."""
    ids = np.zeros((len(names), MAX_LETTERS + 1), dtype=np.int64)
    for row, name in zip(ids, names, strict=True):
        tokens = [*(2 + LETTERS.index(letter) for letter in name[:MAX_LETTERS]), END]
        row[: len(tokens)] = tokens
    return ids


def public_words() -> dict[str, int]:
    """Counts each word of 2 to 20 letters in the tabular list of ICD-10-CM."""
    (path,) = package_file("simple_icd_10_cm", "data").glob("*.xml")
    words: Counter[str] = Counter()
    for entry in ElementTree.parse(path).iter():
        if entry.tag in ("desc", "note") and entry.text:
            found = re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", entry.text)
            words.update(word for word in map(plain, found) if 2 <= len(word) <= 20)
    return dict(words)


def letter_model(weights: dict[str, Tensor] | None = None) -> DeepseekV3ForCausalLM:
    """A backbone over letters: untrained, or with `weights`."""
    schema = RecordSchema(categorical=(CategoricalField("letter", (*LETTERS.strip(),)),))
    config = build(schema, BackboneConfig()).config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DeepseekV3ForCausalLM(config)
        with torch.no_grad():
            model.model.embed_tokens.weight.normal_(0, EMBEDDING_STD)[0] = 0
    if weights is not None:
        model.load_state_dict(weights, strict=False)  # the tied output matrix is stored once
    return model.eval()


def learn_letters(words: dict[str, int], steps: int, batch: int = 128) -> dict[str, Tensor]:
    """Weights after `steps` of next-letter prediction on public words, rare ones drawn more than their share."""
    spelt = sorted(words)
    ids = np.zeros((len(spelt), 22), dtype=np.int64)
    for row, word in zip(ids, spelt, strict=True):
        tokens = [END, *(2 + LETTERS.index(letter) for letter in word), END]
        row[: len(tokens)] = tokens
    chance = np.array([words[word] ** 0.3 for word in spelt])
    chance /= chance.sum()
    model, rng = letter_model(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, betas=(0.9, 0.98))
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 30) * max(0.03, 1 - step / steps)
        ids_RT = torch.from_numpy(ids[rng.choice(len(spelt), batch, p=chance)])
        ids_RT = ids_RT[:, : int((ids_RT > 0).sum(1).max())]
        with balanced(model, ids_RT[:, :-1] > 0, 0.02 * max(0.03, 1 - step / steps)):
            found = model(input_ids=ids_RT[:, :-1]).logits
            loss = F.cross_entropy(8 * found.flatten(0, 1), ids_RT[:, 1:].flatten(), ignore_index=0)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        if step % 100 == 99:
            print(f"letters: step {step + 1}: {loss.item():.3f}", file=sys.stderr, flush=True)
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


@torch.no_grad()
def moments(weights: dict[str, Tensor], words: dict[str, int], shrink: float = 0.1) -> tuple[Tensor, Tensor]:
    """Centre and whitening matrix of what the head reads, over 8,192 public words."""
    spelt = sorted(words)
    chosen = [spelt[i] for i in np.random.default_rng(0).choice(len(spelt), 8192)]
    model = letter_model(weights)
    states = torch.cat([read(model, ids) for ids in torch.from_numpy(encode(chosen)).split(1024)]).double()
    values, vectors = torch.linalg.eigh(states.T.cov())
    whiten = (vectors / (values + shrink * values.mean()).sqrt()) @ vectors.T
    return states.mean(0).float(), whiten.float()


def adapted_model(bench: Bench, draft: StudyDraft) -> LetterModel:
    """As it starts."""
    head = PooledHead(bench.center, bench.whiten)
    return LetterModel.of(letter_model(bench.weights), AdapterConfig(**draft.adapter_config()), head)


def federated(bench: Bench, *, mode: Mode, seed: int) -> np.ndarray:
    """The tested names' logits after the rounds, head and LoRA."""
    adapted = adapted_model(bench, bench.draft)
    sites = {site: (part.ids, part.labels, np.arange(len(part.labels))) for site, part in bench.sites.items()}
    federate(bench.draft, adapted, sites, mode=mode, scale_bits=SCALE_BITS, seed=seed)
    return logits(adapted, bench.tested.ids)


def head_alone(bench: Bench, draft: StudyDraft) -> Callable[[int], np.ndarray]:
    """The same rounds on what the frozen backbone shows the head; computed once for all seeds."""
    adapted = adapted_model(bench, _with(draft, "adapter", targets=()))

    @torch.no_grad()
    def inputs(part: Names) -> np.ndarray:
        states = torch.cat([read(adapted.model, ids) for ids in torch.from_numpy(part.ids).split(1024)])
        return adapted.head.inputs(states).double().numpy()

    return _linear(bench, draft, inputs, HEAD_LR)


def letter_groups(bench: Bench, draft: StudyDraft, *, trigrams: bool) -> Callable[[int], np.ndarray]:
    """The control: a linear model of which letters, pairs and (of public words) triples a name has. No backbone."""
    pairs = map("".join, itertools.product("^$" + LETTERS, repeat=2))
    groups = [*LETTERS, *pairs, *(bench.trigrams if trigrams else ())]
    return _linear(bench, draft, lambda part: groups_of(part.names, groups), GRAMS_LR)


def groups_of(names: list[str], groups: list[str]) -> np.ndarray:
    """Encodes each name's groups of letters (`^` before it, `$` behind it), and a constant; rows of unit length."""
    index = {group: i for i, group in enumerate(groups)}
    has = np.zeros((len(names), len(index) + 1), dtype=np.float32)
    has[:, -1] = 1
    for row, name in zip(has, names, strict=True):
        text = f"^{name}$"
        found = {text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1)}
        row[[index[group] for group in found & index.keys()]] = 1
    return has / np.linalg.norm(has, axis=1, keepdims=True)


def _linear(
    bench: Bench, draft: StudyDraft, inputs: Callable[[Names], np.ndarray], lr: float
) -> Callable[[int], np.ndarray]:
    parts = bench.sites.values()
    x, labels, tested = [inputs(part) for part in parts], [part.labels for part in parts], inputs(bench.tested)
    return lambda seed: private_linear(
        draft, x, labels, tested, lr=lr, scale_bits=SCALE_BITS, rng=np.random.default_rng(seed)
    )


def epsilon(draft: StudyDraft, dim: int) -> tuple[float, float]:
    """Spent on any one customer after all rounds, by PLD and by RDP, if as many sites collude as the study allows."""
    privacy = draft.privacy
    release = Release(
        mode=privacy.mode,
        site_noise_int=noise_of(draft, privacy.mode, SCALE_BITS),
        scale_bits=SCALE_BITS,
        clip_norm=privacy.clip_norm,
        dim=dim,
        sample_rate=privacy.sample_rate,
        sites=len(draft.participants.sites),
    )
    releases = [release] * draft.rounds.rounds
    return tuple(account(releases, privacy.delta, privacy.collusion) for account in (epsilon_pld, epsilon_rdp))


def all_rows(bench: Bench) -> dict[str, tuple[str, Callable[[], Callable[[int], np.ndarray]], StudyDraft | None]]:
    """By short name: title, what makes the function of a seed, and the draft whose noise is paid for, if any."""
    draft = bench.draft
    best = _with(draft, "privacy", **HEAD_AT_ITS_BEST)
    best = _with(best, "rounds", batch_units=2 * draft.rounds.batch_units)
    quiet = _with(draft, "privacy", mode="none")
    projections = draft.adapter.targets

    def private(*targets: str) -> Callable[[], Callable[[int], np.ndarray]]:
        adapted = replace(bench, draft=_with(draft, "adapter", targets=targets))
        return lambda: lambda seed: federated(adapted, mode="distributed", seed=seed)

    return {
        "head": ("head alone", lambda: head_alone(bench, draft), draft),
        "head-best": ("head alone, at its best sample rate", lambda: head_alone(bench, best), best),
        "head-plain": ("head alone, no noise", lambda: head_alone(bench, quiet), None),
        "lora": ("head + LoRA", private(*projections), draft),
        "experts": ("head + LoRA on routed experts alone", private("experts"), draft),
        "lora-experts": ("head + LoRA, routed experts too", private(*projections, "experts"), draft),
        "lora-plain": ("head + LoRA, no noise", lambda: lambda seed: federated(bench, mode="none", seed=seed), None),
        "pairs": ("letters and pairs, linear", lambda: letter_groups(bench, draft, trigrams=False), draft),
        "triples": ("letters, pairs, triples, linear", lambda: letter_groups(bench, draft, trigrams=True), draft),
        "triples-best": (
            "the same, at its best sample rate", lambda: letter_groups(bench, best, trigrams=True), best
        ),
    }  # fmt: skip


def _with(draft: StudyDraft, part: str, **terms: object) -> StudyDraft:
    return draft.model_copy(update={part: getattr(draft, part).model_copy(update=terms)})


def prepare_bench(draft: StudyDraft, base: Path | None, pretraining_steps: int, *, validation: bool) -> Bench:
    """Data, backbone and public statistics; with `validation`, some training records in place of the held-out ones."""
    words = public_words()
    if base is not None and base.exists():
        weights = load_file(base)
    else:
        weights = learn_letters(words, pretraining_steps)
        if base is not None:
            save_file(weights, base)
    with tempfile.TemporaryDirectory() as folder:
        parts = prepare(Path(folder))
        frames = {site: pd.read_csv(part["train"], keep_default_na=False) for site, part in parts.items()}
        held_out = [pd.read_csv(part["heldout"], keep_default_na=False) for part in parts.values()]
    if validation:
        chosen = {site: frame["name"].map(_is_validated) for site, frame in frames.items()}
        held_out = [frame[chosen[site]] for site, frame in frames.items()]
        frames = {site: frame[~chosen[site]] for site, frame in frames.items()}
    counted = Counter(f"^{word}$"[i : i + 3] for word in words for i in range(len(word)))
    trigrams = [group for group, _ in counted.most_common(TRIGRAMS)]
    sites = {site: _names(frame) for site, frame in frames.items()}
    return Bench(draft, weights, *moments(weights, words), trigrams, sites, _names(pd.concat(held_out)))


def _is_validated(name: str) -> bool:
    """True for about 40 names in 256."""
    return draw(b"v" + name.encode()) < 40 / 256


def _names(frame: pd.DataFrame) -> Names:
    names = frame["name"].tolist()
    return Names(names, encode(names), frame["is_female"].to_numpy())


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 rounds, one seed, a hasty base: does it run?")
    parser.add_argument("--rows", nargs="+", help="short names of rows; all without it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run a seed and row")
    parser.add_argument("--base", type=Path, help="weights of the backbone: read if there, written if not")
    parser.add_argument("--validation", action="store_true", help="test on part of the training records")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    draft = StudyDraft.model_validate(TERMS)
    if options.quick:
        draft = _with(draft, "rounds", rounds=20)
    bench = prepare_bench(draft, options.base, 100 if options.quick else 600, validation=options.validation)
    seeds = options.seeds[:1] if options.quick else options.seeds
    dim = adapted_model(bench, draft).layout.dim
    rows = []
    for short, (title, make, paid) in all_rows(bench).items():
        if options.rows and short not in options.rows:
            continue
        started, run, values = time.perf_counter(), make(), []
        for seed in seeds:
            values.append(auc(run(seed), bench.tested.labels))
            print(f"{title}: seed {seed}: {values[-1].value:.4f}", file=sys.stderr, flush=True)
        spent = (None, None) if paid is None else epsilon(paid, dim)  # dim of the largest: an upper bound for all
        found = [value.value for value in values]
        rows.append(
            {
                "row": title,
                "auc": float(np.mean(found)),
                "runs": [round(value, 4) for value in found],
                "interval_of_first": [round(values[0].low, 4), round(values[0].high, 4)],
                "epsilon_pld": spent[0],  # None: no bound
                "epsilon_rdp": spent[1],
                "seconds": (time.perf_counter() - started) / len(seeds),
            }
        )
    facts = {
        "machine": platform.platform(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "names": {site: len(part.names) for site, part in bench.sites.items()},
        "tested": len(bench.tested.names),
        "trained_parameters": dim,
    }
    if options.json:
        print(json.dumps({**facts, "rows": rows}, indent=2))
        return
    print(json.dumps(facts))
    print(
        f"\n| {'trained':36} | AUC    | runs {' ' * 21}| epsilon  | s a run |\n|{'-' * 38}|--------|{'-' * 27}|---|---|"
    )
    for row in rows:
        spent = "no bound" if row["epsilon_pld"] is None else rounded_up(row["epsilon_pld"], 3)
        runs = ", ".join(f"{value:.4f}" for value in row["runs"])
        print(f"| {row['row']:36} | {row['auc']:.4f} | {runs:25} | {spent:>8} | {row['seconds']:7.1f} |")


if __name__ == "__main__":
    main()
