"""Measures whether it pays that a picture, a typed record and a rule share keys and values in one decoder.

    python benchmarks/crossmodal.py [--dir bench-crossmodal] [--seeds 1 2 3] [--variants shared late] [--steps 1500]
    python benchmarks/crossmodal.py --quick      # does it run? An eye that learned little, few steps

A form has four handwritten digits, what a clerk typed of them, and a rule as code whose answer is one of a closed list:

    typed == scan             is everything typed as it is written?
    first typed != scan       the first box where it is not
    scan [i], typed [i]       what is written in box i (there, what was typed is blanked), or what was typed
    typed < scan [i]          is less typed in box i than is written?

Handwriting is real: the 10,000 digits of the example examples/scans, 7,400 to train and 2,600 to test, whose writers
are not told. Forms, slips and rules are drawn: forms anew for each batch from the digits of their side, and four
questions for each of the 650 unseen forms. The eye learned from the example's public digits alone and is frozen, so the
states of all digits are computed once. All variants have as many parameters, and learn as many steps from the same
questions with the same two losses: the answer, and alignment (UNITER, arXiv:1909.11740): which digit each box shows,
and whether what was typed fits it.

shared      picture, record and rule attend to each other, and write keys and values by the same latents; pictures and
            rules have low-rank parts of their own where queries are made and where attention ends
separate    pictures and rules have such parts where keys and values are written, too, and smaller ones elsewhere
causal      as shared, but each token sees only those before it: picture, record, rule
late        as shared, but a picture and the words do not see each other; the last layer alone, which all variants have,
            joins the answer's state and those of the boxes
picture     the answer sees no record
text        the answer sees no picture

A finished run is read from the results. Figures: docs/pictures.md.
"""

import argparse
import itertools
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from federated_arms import spread
from rows import Rows
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DeepseekV3Config, DeepseekV3Model

from confide.models.backbones.eye_pretraining import EyePretrainingConfig, pretrain_eye
from confide.models.structure.pictures import PictureLayout, PublicPictures

# Before this folder, which has a `forms` of another kind.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "scans"))
from forms import BOXES, SIDE, Digits, Question, ask, form, public_digits, substituted
from prepare import digits_package, read_digits

TRAINED = 7400  # digits; the others are tested
ASKED = 4  # questions to each form that is tested
SLIPPED = 0.3  # share of the forms with a slip where the rule asks for one of the two digits alone
VARIANTS = ("shared", "separate", "causal", "late", "picture", "text")
RULES = ("typed == scan", "first typed != scan", "scan [i]", "typed [i]", "typed < scan [i]")
ANSWERS = (*"0123456789", "yes", "no", "none", *(f"at{box}" for box in range(BOXES)))
BLANK, ANSWER = "?", "=>"
NAMES = tuple(f"[{box}]" for box in range(BOXES))  # what a rule calls the boxes
WORDS = (*NAMES, *"0123456789", BLANK, "<pad>", "record", "typed", "scan", "first", "==", "!=", "<", ANSWER)
SQUARES = 4  # of a box
PICTURE, RECORD, RULE = BOXES * SQUARES, 1 + BOXES, 5  # tokens
TOKENS = PICTURE + RECORD + RULE
KINDS = torch.tensor([0] * PICTURE + [1] * RECORD + [2] * RULE)  # of the tokens: picture, record, rule
# A box's squares and its typed digit stand in one place (M-RoPE, arXiv:2409.12191).
PLACES = torch.tensor([1 + token // SQUARES for token in range(PICTURE)] + [*range(RECORD)] + [*range(6, 6 + RULE)])
WIDTH, RANK, LR, BATCH, WARM_UP = 64, 8, 3e-3, 64, 40
_NOT_LEARNED = -100  # what torch's cross entropy leaves out


@dataclass(frozen=True, slots=True)
class Handwriting:
    """Digits that somebody wrote, as the eye sees them."""

    states: Tensor  # [digits, squares, E]
    says: Tensor  # [digits]


@dataclass(frozen=True, slots=True)
class Batch:
    """Questions as tensors, a row each."""

    states: Tensor  # [R, picture's tokens, E]
    words: Tensor  # [R, tokens of record and rule]
    answers: Tensor
    says: Tensor  # [R, boxes], the digits that are written
    fits: Tensor  # [R, boxes], 1 where they were typed; `_NOT_LEARNED` for a blank
    rules: Tensor


def handwriting(folder: Path, *, is_quick: bool) -> Handwriting:
    """Lets an eye that never saw them look at the real digits, in an order of no meaning; kept in the folder."""
    path = folder / "seen.pt"
    if not path.exists():
        digits, says = read_digits(digits_package(folder))
        endless, layout = public_digits(1), PictureLayout((SIDE, BOXES * SIDE), (SIDE, SIDE))
        files, shown = [], []
        for _ in range(200 if is_quick else 8000):
            written, said = zip(*itertools.islice(endless, BOXES), strict=True)
            form(np.stack(written)).save(buffer := BytesIO(), "png")
            files.append(buffer.getvalue())
            shown.append(" ".join(map(str, said)))
        config = EyePretrainingConfig(cells=2560) if is_quick else EyePretrainingConfig()
        eye = pretrain_eye(PublicPictures(layout, files, shown), WIDTH, config)
        paper = 255 - torch.from_numpy(digits)
        with torch.no_grad():
            states = torch.cat([eye.squares(cells.float() / 127.5 - 1) for cells in paper.split(256)])
        order = torch.randperm(len(says), generator=torch.Generator().manual_seed(0))
        torch.save({"states": states[order], "says": torch.tensor(says)[order]}, path)
    return Handwriting(**torch.load(path, weights_only=True))


def question(scan: Digits, rng: random.Random) -> tuple[Question, int | None]:
    """Draws one of the five rules for a form, and what was typed; with the box that is blanked, if one is."""
    if rng.random() < 3 / len(RULES):  # the rules of the example
        return ask(scan, rng), None
    at = rng.randrange(BOXES)
    typed = substituted(scan, at, rng) if rng.random() < SLIPPED else scan
    if rng.random() < 0.5:
        return Question(typed, scan, f"typed [{at}]", str(typed[at])), None
    return Question(typed, scan, f"scan [{at}]", str(scan[at])), at


def code(rule: str) -> list[str]:
    """The words of a rule."""
    spelt = {"typed==scan": "typed == scan", "first-slip": "first typed != scan"}
    return spelt.get(rule, rule.replace("less", "typed < scan")).split()


def batch(written: Handwriting, digits_RC: Sequence[Sequence[int]], rng: random.Random) -> Batch:
    """Draws a question for each form of the digits with these numbers."""
    says_RC = written.says[torch.tensor(digits_RC)]
    words, answers, fits, rules = [], [], [], []
    for scan in says_RC.tolist():
        asked, blanked = question(tuple(scan), rng)
        record = [BLANK if box == blanked else str(digit) for box, digit in enumerate(asked.typed)]
        spelt = code(asked.rule)
        pads = ["<pad>"] * (RULE - 1 - len(spelt))
        words.append([WORDS.index(word) for word in ("record", *record, *pads, *spelt, ANSWER)])
        answers.append(ANSWERS.index(asked.answer))
        rules.append(RULES.index(" ".join("[i]" if word in NAMES else word for word in spelt)))
        fits.append([_NOT_LEARNED if box == blanked else int(says == "same") for box, says in enumerate(asked.check)])
    return Batch(
        states=written.states[torch.tensor(digits_RC)].flatten(1, 2), words=torch.tensor(words),
        answers=torch.tensor(answers), says=says_RC, fits=torch.tensor(fits), rules=torch.tensor(rules),
    )  # fmt: skip


def drawn_forms(numbers: Sequence[int], count: int, rng: random.Random) -> list[list[int]]:
    """Lays digits on forms, each on one at most."""
    chosen = rng.sample(numbers, count * BOXES)
    return [chosen[start : start + BOXES] for start in range(0, len(chosen), BOXES)]


class OwnParts(nn.Module):
    """A projection that all tokens share, with a low-rank part of their own for those of pictures and of rules."""

    def __init__(self, common: nn.Linear, rank: int) -> None:
        super().__init__()
        self.common = common
        self.picture, self.rule = (self._part(common, rank) for _ in range(2))

    @staticmethod
    def _part(common: nn.Linear, rank: int) -> nn.Sequential:
        out = nn.Linear(rank, common.out_features, bias=False)
        nn.init.zeros_(out.weight)
        return nn.Sequential(nn.Linear(common.in_features, rank, bias=False), out)

    def forward(self, states_RTD: Tensor) -> Tensor:
        picture, rule = self.picture(states_RTD[:, :PICTURE]), self.rule(states_RTD[:, -RULE:])
        own = torch.cat([F.pad(picture, (0, 0, 0, RECORD)), rule], dim=1)
        return self.common(states_RTD) + own


def ranks(variant: str) -> dict[str, int]:
    """Ranks of the parts of one's own: as many parameters for each variant, 448 x 8 = 224 x 8 + 448 x 4."""
    if variant == "separate":
        return {"q_a_proj": RANK // 2, "o_proj": RANK // 2, "kv_a_proj_with_mqa": RANK}
    return {"q_a_proj": RANK, "o_proj": RANK}


def seen_by(variant: str) -> Tensor:
    """[T, T], True where the token of the row sees that of the column."""
    is_picture = KINDS == 0
    if variant == "causal":
        return torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    if variant in ("late", "text"):
        return is_picture[:, None] == is_picture
    if variant == "picture":
        return (KINDS != 1).expand(TOKENS, TOKENS)
    return torch.ones(TOKENS, TOKENS, dtype=torch.bool)


class Reader(nn.Module):
    """A decoder of two layers that answers from the state of the last word and those of the boxes."""

    def __init__(self, variant: str, state_width: int) -> None:
        super().__init__()
        self.variant = variant
        # transformers' 0.02 is for widths of thousands; at 64 nothing is learned.
        self.decoder = DeepseekV3Model(
            DeepseekV3Config(
                vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=2 * WIDTH, moe_intermediate_size=WIDTH // 2,
                num_hidden_layers=2, first_k_dense_replace=1, num_attention_heads=4, num_key_value_heads=4,
                n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, n_group=1, topk_group=1,
                routed_scaling_factor=1.0, q_lora_rank=WIDTH // 2, kv_lora_rank=WIDTH // 2, qk_rope_head_dim=16,
                qk_nope_head_dim=16, v_head_dim=16, max_position_embeddings=32, use_cache=False, pad_token_id=None,
                initializer_range=WIDTH**-0.5,
            )
        )  # fmt: skip
        for layer, (name, rank) in itertools.product(self.decoder.layers, ranks(variant).items()):
            setattr(layer.self_attn, name, OwnParts(getattr(layer.self_attn, name), rank))
        self.to_words = nn.Linear(state_width, WIDTH)
        self.where = nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.1)
        self.box = nn.Parameter(torch.randn(BOXES, WIDTH) * 0.5)  # ties a box's squares, typed digit and name
        nn.init.normal_(self.decoder.embed_tokens.weight, std=0.3)
        with torch.no_grad():
            self.decoder.embed_tokens.weight[: len(NAMES)] = self.box
        self.digit, self.fit = nn.Linear(WIDTH, 10), nn.Linear(WIDTH, 2)
        self.joined = nn.Sequential(nn.Linear((1 + BOXES) * WIDTH, 128), nn.GELU(), nn.Linear(128, len(ANSWERS)))
        mask = torch.zeros(TOKENS, TOKENS).masked_fill(~seen_by(variant), float("-inf"))
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, states_RNE: Tensor, words_RW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits: of the answer, of the digit in each box, and of whether what was typed there fits."""
        boxes_TD = torch.cat([self.box.repeat_interleave(SQUARES, 0), F.pad(self.box, (0, 0, 1, RULE))])
        picture_RND = self.to_words(states_RNE) * (self.variant != "text")
        states_RTD = self.decoder(
            inputs_embeds=torch.cat([picture_RND, self.decoder.embed_tokens(words_RW)], 1) + self.where + boxes_TD,
            attention_mask=self.mask.expand(len(words_RW), 1, -1, -1),
            position_ids=PLACES.expand(len(words_RW), -1),
        ).last_hidden_state
        boxes_RCD = states_RTD[:, :PICTURE].unflatten(1, (BOXES, SQUARES)).mean(2) * (self.variant != "text")
        typed_RCD = states_RTD[:, PICTURE + 1 : PICTURE + RECORD]
        answer = self.joined(torch.cat([states_RTD[:, -1], boxes_RCD.flatten(1)], 1))
        return answer, self.digit(boxes_RCD), self.fit(typed_RCD)


def fit(variant: str, seed: int, steps: int, written: Handwriting) -> Reader:
    """Trains a variant from nothing."""
    torch.manual_seed(seed)
    reader, rng = Reader(variant, written.states.shape[-1]), random.Random(seed)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=LR, weight_decay=1e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
        asked = batch(written, drawn_forms(range(TRAINED), BATCH, rng), rng)
        answer, digit, fits = reader(asked.states, asked.words)
        loss = F.cross_entropy(answer, asked.answers)
        loss = loss + F.cross_entropy(digit.flatten(0, 1), asked.says.flatten())
        loss = loss + F.cross_entropy(fits.flatten(0, 1), asked.fits.flatten(), ignore_index=_NOT_LEARNED)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
    return reader.eval()


@torch.no_grad()
def judge(reader: Reader, written: Handwriting) -> dict[str, float]:
    """Shares of right answers to the same questions about unseen forms, in all and of each rule, and of boxes read."""
    rng, numbers = random.Random("tested"), range(TRAINED, len(written.says))
    forms = drawn_forms(numbers, len(numbers) // BOXES, rng)
    right, read, rules = [], [], []
    for _ in range(ASKED):
        asked = batch(written, forms, rng)
        answer, digit, _ = reader(asked.states, asked.words)
        right.append(answer.argmax(-1) == asked.answers)
        read.append(digit.argmax(-1) == asked.says)
        rules.append(asked.rules)
    right_Q, rules_Q = torch.cat(right).double(), torch.cat(rules)
    of_rules = {name: right_Q[rules_Q == rule].mean().item() for rule, name in enumerate(RULES)}
    return {"all": right_Q.mean().item(), **of_rules, "boxes read": torch.cat(read).double().mean().item()}


def table(rows: Sequence[dict]) -> str:
    """A row for each variant: means over seeds, and half of Student's 95 % interval of the first figure."""
    lines = [f"| | parameters | all | {' | '.join(RULES)} | runs |", "|---|" + "---|" * (len(RULES) + 3)]
    for variant in (name for name in VARIANTS if any(row["arm"] == name for row in rows)):
        own = [row for row in rows if row["arm"] == variant]
        said = f"{np.mean([row['all'] for row in own]):.3f}"
        if len(own) > 1:
            said += f" ± {spread([row['all'] for row in own]):.3f}"
        of_rules = (f"{np.mean([row[rule] for row in own]):.2f}" for rule in RULES)
        lines.append(f"| {variant} | {own[0]['parameters']:,} | {said} | {' | '.join(of_rules)} | {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table; rows go to the results as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("bench-crossmodal"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.dir / "quick" if options.quick else options.dir
    folder.mkdir(parents=True, exist_ok=True)
    seeds, steps = (options.seeds[:1], 20) if options.quick else (options.seeds, options.steps)
    written, known = handwriting(folder, is_quick=options.quick), Rows(folder / "results.jsonl")
    for seed, variant in itertools.product(seeds, options.variants):
        run = {"arm": variant, "seed": seed, "steps": steps}
        if known.of(run):
            continue
        started = time.perf_counter()
        reader = fit(variant, seed, steps, written)
        seconds = round(time.perf_counter() - started)
        numbers = sum(parameter.numel() for parameter in reader.parameters())
        row = run | {"parameters": numbers, "seconds": seconds} | judge(reader, written)
        known.add(row, f"all {row['all']:.3f}")
    print(table(known.of({"steps": steps})))


if __name__ == "__main__":
    main()
