"""Studies: the draft in study.toml, the immutable study made from it, its cost, and the format of its state.

`load_draft` reads a `StudyDraft`, which holds the terms. `Study` adds keys, hashes and sizes; a site approves a study
by its hash. `Study.planned_round` describes one round. `cost` computes the cost of a study or a draft from the releases
of a run. docs/study-toml.md lists every key.

Without dropouts only a sum over all four sites is opened. Each of its entries has noise of this standard deviation:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.client_node.study import load_draft
>>> with TemporaryDirectory() as folder:
...     _ = (Path(folder) / "study.toml").write_text('''
...         name = "thyroid"
...         model = {backbone = "backbone"}
...         adapter = {rank = 4, alpha = 4.0, targets = ["experts"], seed = "public"}
...         data = {unit = "patient", label = "sick", max_tokens = 64, flags = ["goitre"]}
...         privacy = {mode = "distributed", noise_multiplier = 2.0, clip_norm = 1.0, sample_rate = 0.2, delta = 1e-5}
...         rounds = {rounds = 40, min_sites = 4, deadline_s = 60, batch_units = 1375}
...         optimizer = {}
...         participants = {sites = ["a", "b", "c", "d"], aggregators = ["x", "y", "z"]}
...     ''')
...     draft = load_draft(Path(folder) / "study.toml")
>>> draft.quorum, round(draft.noise_std, 2)
(4, 2.31)
"""

from typing import TYPE_CHECKING

from ...faces import lazy

if TYPE_CHECKING:
    from .state_format import StateFormat
    from .study import AggregatorParty, Participant, PlannedRound, Study
    from .terms import StudyDraft, load_draft
else:
    __getattr__ = lazy(
        __name__,
        state_format="StateFormat",
        study="AggregatorParty Participant PlannedRound Study",
        terms="StudyDraft load_draft",
    )

__all__ = [
    "AggregatorParty",
    "Participant",
    "PlannedRound",
    "StateFormat",
    "Study",
    "StudyDraft",
    "cost",
    "load_draft",
    "terms",
    "toml",
]
