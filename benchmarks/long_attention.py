"""Measures attention in segments beside full attention: cost by length, cost of a token written, and what is found.

    python benchmarks/long_attention.py cost [--lengths 4096 16384 32768 100000]
    python benchmarks/long_attention.py step [--lengths 1024 4096 8192]
    python benchmarks/long_attention.py writing [--lengths 1000 10000 100000]
    python benchmarks/long_attention.py learn [--seeds 0] [--results long_attention.jsonl]
    python benchmarks/long_attention.py cost --quick; ... step --quick; ... writing --quick; ... learn --quick

cost     processor seconds and peak memory of a forward pass of one record, in one thread and a process of its own, of
         a DeepSeek-V3 of random weights: 2 layers, width 128, 2 heads, 8 experts. Full attention is torch's flash
         attention (`is_causal`, no mask).
step     the same of the gradient of one record with a pooled head and adapters on attention, as a site computes it:
         there full attention has a mask, of every token with every other.
writing  processor milliseconds of one more token behind a text of a length, with each attention's cache.
learn    ward lists: real thyroid records one after another, each behind a patient's number, then questions "number,
         field" that the record's value answers. The same model is trained with full attention, and then goes on with
         each attention for as many steps on the same lists; the figure is the macro F1 over the values, by length,
         on patients that were held out. Numbers are random vectors that are not trained, so that any patient can be
         asked for. All start from weights whose first layer looks at the last number before a token: from random
         ones, full attention had not found the two steps of the lookup after 1,700 steps.

Figures: docs/benchmarks/backbones.md.
"""

import argparse
import json
import resource
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rows import Rows
from torch import Tensor, nn

from confide.kernels.segments import Segments
from confide.models.adapters import AdapterConfig, attach
from confide.models.backbones.families import named
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.segments import read_in_segments
from confide.models.heads import PooledHead

FULL, SEGMENTS = "full", "segments"
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "thyroid" / "prepare.py"
FIELDS = ("age", "TSH", "T3", "TT4", "T4U", "FTI", "sex")  # of a patient's line, each a word
BINS, NUMBERS = 8, 16_384  # values of a field beside a missing one; patients' numbers
WORDS = len(FIELDS) * (BINS + 1) + len(FIELDS)  # values, then the fields that questions name
LINE = 1 + len(FIELDS)  # words of a patient
LISTS = (16, 48, 120, 400)  # patients of the lists that are learned; longer ones come when shorter ones are known
KNOWN = 0.25  # loss below which a list counts as known
TOKENS = 2048  # of a step
ASKED = (120, 480, 2000, 12_000)  # patients of the lists that are read in the end


def built(attention: str, vocabulary: int, **sizes: Any) -> Any:
    """Builds an untrained model with an attention."""
    family = named("deepseek_v3")
    config = BackboneConfig(hidden=128, layers=2, heads=2, max_tokens=2**17)
    model = family.model_class()(family.config_class()(**family.settings(config) | sizes, vocab_size=vocabulary))
    attend(model, attention)
    return model.eval()


def attend(model: Any, attention: str) -> None:
    """Lets a model read with an attention."""
    if attention == SEGMENTS:
        read_in_segments(model, Segments())
    else:
        model.set_attn_implementation("sdpa")


def random_ids(length: int) -> Tensor:
    """One record of random words."""
    return torch.randint(2, 130, (1, length), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def cost_of(attention: str, length: int) -> dict[str, float]:
    """Processor seconds of a forward pass, and the peak memory of this process in MiB."""
    torch.manual_seed(0)
    model = built(attention, 130)
    model.model(input_ids=random_ids(2048), use_cache=False)
    started = time.process_time()
    model.model(input_ids=random_ids(length), use_cache=False)
    seconds = time.process_time() - started
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def step_of(attention: str, length: int) -> dict[str, float]:
    """Processor seconds of one record's gradient, and the peak memory of this process in MiB."""
    torch.manual_seed(0)
    model = built(attention, 130)
    width = model.config.hidden_size
    head = PooledHead(torch.zeros(2 * width), torch.eye(2 * width))
    adapted = attach(model, AdapterConfig(rank=4, alpha=4.0, targets=("kv_b_proj", "o_proj"), seed="x"), head)
    ids = F.pad(random_ids(length), (0, 1))  # the others of a batch may be longer
    started = time.process_time()
    adapted.losses(ids, torch.ones(1)).sum().backward()
    return {"seconds": time.process_time() - started, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


@torch.inference_mode()
def writing_of(attention: str, length: int, written: int = 32) -> dict[str, float]:
    """Processor milliseconds of a token behind a text, and of none of it: the rest of a step."""
    torch.manual_seed(0)
    model = built(attention, 130)
    out = model.model(input_ids=random_ids(length), use_cache=True)
    started = time.process_time()
    for _ in range(written):
        out = model.model(input_ids=random_ids(1), cache=out.cache, use_cache=True)
    return {"milliseconds": 1000 * (time.process_time() - started) / written}


def in_own_process(what: str, attention: str, length: int) -> dict[str, float]:
    """Measures in a process of its own, so that memory is its alone."""
    command = [sys.executable, __file__, what, "--one", attention, str(length)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def cost(what: str, lengths: Sequence[int]) -> None:
    """Prints a line for each length, of a pass or of a step."""
    print("| tokens | full, CPU s | segments, CPU s | full over segments | peak full, MiB | peak segments, MiB |")
    print("|---|---|---|---|---|---|")
    for length in lengths:
        full, segments = (in_own_process(what, attention, length) for attention in (FULL, SEGMENTS))
        times = f"{full['seconds']:.2f} | {segments['seconds']:.2f} | {full['seconds'] / segments['seconds']:.2f}"
        print(f"| {length:,} | {times} | {full['peak']:,.0f} | {segments['peak']:,.0f} |", flush=True)


def writing(lengths: Sequence[int]) -> None:
    """Prints a line for each length."""
    print("| tokens before | full, ms a token | segments, ms a token |\n|---|---|---|")
    for length in lengths:
        full, segments = (in_own_process("writing", attention, length) for attention in (FULL, SEGMENTS))
        print(f"| {length:,} | {full['milliseconds']:.1f} | {segments['milliseconds']:.1f} |", flush=True)


def records() -> tuple[Tensor, Tensor]:
    """[patients, fields] words of the real records, in training and held out; a field's bins hold as many of each."""
    example = runpy.run_path(str(EXAMPLE))
    table = example["read_table"]()
    words = []
    for place, name in enumerate(FIELDS):
        if name == "sex":
            codes = table[name].map({"F": 1, "M": 2}).fillna(0).to_numpy()
        else:
            values = table[name].to_numpy(dtype=float)
            cuts = np.unique(np.nanquantile(values, np.arange(1, BINS) / BINS))
            codes = np.where(np.isnan(values), 0, 1 + np.searchsorted(cuts, values, side="right"))
        words.append(codes.astype(np.int64) + place * (BINS + 1))
    everyone = torch.from_numpy(np.stack(words, axis=1))
    is_held_out = torch.tensor([example["is_held_out"](patient) for patient in table["patient_id"]])
    return everyone[~is_held_out], everyone[is_held_out]


def ward_lists(patients: Tensor, lists: int, count: int, questions: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Draws lists of `count` patients with questions about them.

    Returns:
        ids [lists, tokens], numbers of patients behind the words, and answers, -100 where nothing is asked.
    """
    rows = patients[torch.randint(len(patients), (lists, count), generator=seed)]
    numbers = torch.stack([torch.randperm(NUMBERS, generator=seed)[:count] for _ in range(lists)]) + WORDS
    whom = torch.randint(count, (lists, questions), generator=seed)
    field = torch.randint(len(FIELDS), (lists, questions), generator=seed)
    answer = rows[torch.arange(lists)[:, None], whom, field]
    asked = torch.stack([numbers.gather(1, whom), field + WORDS - len(FIELDS), answer], 2).flatten(1)
    ids = torch.cat([torch.cat([numbers[..., None], rows], 2).flatten(1), asked], 1)
    answers = torch.full_like(ids, -100)
    answers[:, LINE * count + 1 + 3 * torch.arange(questions)] = answer
    return ids, answers


class Reader(nn.Module):
    """A model with embeddings of its own: of words, which are trained, and of numbers, which are not."""

    def __init__(self, seed: int, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        sizes = {
            "hidden_size": width, "intermediate_size": 2 * width, "moe_intermediate_size": width // 2,
            "q_lora_rank": None, "kv_lora_rank": width, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32,
            "v_head_dim": 48,  # as wide as keys, or torch has no flash attention on a processor
        }  # fmt: skip
        self.model = built(FULL, 2, **sizes).model
        for name, parameter in self.model.named_parameters():
            if parameter.ndim == 2 and "norm" not in name:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        std = width**-0.5
        self.words = nn.Parameter(std * torch.randn(WORDS, width))
        self.mark = nn.Parameter(std * torch.randn(width))  # what all numbers have in common
        self.register_buffer("numbers", std * torch.randn(NUMBERS, width))
        self._look_at_numbers(std * torch.randn(width))

    @torch.no_grad()
    def _look_at_numbers(self, common: Tensor) -> None:
        """Starts the first layer to look at the last number, and the second to compare what both tokens saw."""
        first, second = (layer.self_attn for layer in self.model.layers)
        unrotated, rank, heads = first.qk_nope_head_dim, first.kv_lora_rank, first.num_heads
        common = common - self.mark * (common @ self.mark) / (self.mark @ self.mark)
        self.words += common  # what all words have in common: the first layer's queries
        query, key = common / common.norm(), self.mark / self.mark.norm()
        q_HDX = first.q_proj.weight.view(heads, -1, len(key))
        down, up_HDC = first.kv_a_proj_with_mqa.weight, first.kv_b_proj.weight.view(heads, -1, rank)
        q_HDX *= 0.1
        down[0], up_HDC[:, :unrotated, 0] = 2 * key, 1.0
        q_HDX[:, :unrotated] += 0.1 * query
        down[rank:] = 0.3 * down[rank:] + key  # and the nearer it is, the more
        q_HDX[:, unrotated:] += 0.6 * query
        q_HDX = second.q_proj.weight.view(heads, -1, len(key))
        down, up_HDC = second.kv_a_proj_with_mqa.weight, second.kv_b_proj.weight.view(heads, -1, rank)
        q_HDX[:, :unrotated] = 2 * up_HDC[:, :unrotated] @ down[:rank]
        q_HDX[:, unrotated:] *= 0.3

    def forward(self, ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
        """[questions, WORDS] scores of the words, and the answers."""
        is_word = (ids < WORDS)[..., None]
        numbers = F.embedding((ids - WORDS).clamp_min(0), self.numbers) + self.mark
        embedded = torch.where(is_word, F.embedding(ids.clamp_max(WORDS - 1), self.words), numbers)
        states = self.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return states[answers >= 0] @ self.words.T, answers[answers >= 0]


def train(reader: Reader, patients: Tensor, counts: Sequence[int], steps: int, rate: float, seed: int) -> None:
    """Trains on longer and longer lists."""
    optimizer = torch.optim.AdamW(reader.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    draw, place, loss_of, seen = torch.Generator().manual_seed(seed), 0, float("inf"), 0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * min(1, 4 * (1 - step / steps))
        longest = place if step % 4 else int(torch.randint(place + 1, (1,), generator=draw))
        count, questions = counts[longest], max(24, min(counts[longest], 256))
        lists = max(1, TOKENS // (LINE * count + 3 * questions))
        scores, answers = reader(*ward_lists(patients, lists, count, questions, draw))
        loss = F.cross_entropy(scores, answers)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        if longest == place:
            loss_of, seen = (loss.item() if seen == 0 else 0.95 * loss_of + 0.05 * loss.item()), seen + 1
        if seen > 60 and loss_of < KNOWN and place + 1 < len(counts):
            place, seen = place + 1, 0


@torch.no_grad()
def macro_f1(reader: Reader, patients: Tensor, count: int, lists: int, questions: int = 400) -> float:
    """Mean F1 over the values that are asked for, on lists of patients."""
    draw = torch.Generator().manual_seed(99)
    parts = [reader(*ward_lists(patients, 1, count, questions, draw)) for _ in range(lists)]
    said, answers = torch.cat([scores.argmax(1) for scores, _ in parts]), torch.cat([each for _, each in parts])
    found = []
    for value in answers.unique():
        right = int(((said == value) & (answers == value)).sum())
        found.append(2 * right / max(1, int((said == value).sum()) + int((answers == value).sum())))
    return float(np.mean(found))


def learn(seeds: Sequence[int], steps: int, tuned: int, asked: Sequence[int], rows: Rows) -> None:
    """Trains with full attention, goes on with each, and prints F1 by length."""
    patients, held_out = records()
    lists = LISTS if len(asked) > 1 else LISTS[:1]
    for seed in seeds:
        if all(rows.of({"arm": arm, "seed": seed}) for arm in (FULL, SEGMENTS)):
            continue
        reader = Reader(seed)
        train(reader, patients, (3, 8, *lists), steps, 2e-3, seed)
        start = {name: value.clone() for name, value in reader.state_dict().items()}
        for arm in (FULL, SEGMENTS):
            reader.load_state_dict(start)
            attend(reader.model, arm)
            started = time.process_time()
            train(reader, patients, lists, tuned, 1e-3, 1 + seed)
            scores = {str(count): macro_f1(reader, held_out, count, max(1, 960 // count)) for count in asked}
            seconds = round(time.process_time() - started)
            rows.add({"arm": arm, "seed": seed, "f1": scores, "seconds": seconds}, f"{scores}")
    print("| patients, tokens | " + " | ".join((FULL, SEGMENTS)) + " |\n|---|---|---|")
    for count in asked:
        cells = []
        for arm in (FULL, SEGMENTS):
            found = [row["f1"][str(count)] for row in rows.of({"arm": arm}) if row["seed"] in seeds]
            cells.append(
                f"{np.mean(found):.3f}" + (f" ({min(found):.3f} to {max(found):.3f})" if len(found) > 1 else "")
            )
        print(f"| {count:,}, {LINE * count:,} | {' | '.join(cells)} |")


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "step", "writing", "learn"])
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--results", type=Path, default=Path("long_attention.jsonl"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        measure = {"cost": cost_of, "step": step_of, "writing": writing_of}[args.what]
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
    elif args.what in ("cost", "step"):
        usual = [1024, 4096, 8192] if args.what == "step" else [4096, 16_384, 32_768, 100_000]
        cost(args.what, args.lengths or ([512, 1024] if args.quick else usual))
    elif args.what == "writing":
        writing(args.lengths or ([100, 400] if args.quick else [1000, 10_000, 100_000]))
    else:
        steps, tuned, asked = (5, 5, [16]) if args.quick else (1000, 700, ASKED)
        learn(args.seeds, steps, tuned, asked, Rows(args.results))


if __name__ == "__main__":
    sys.exit(main())
