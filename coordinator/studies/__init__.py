"""Studies of a federation: made from a draft, signed and listed, with their start state.

`dictionary` reads a data dictionary, of which `first_draft` writes a study.toml. `examine` says what is wrong with one,
with `questions` about settings that are surely not meant. `create.create_study` makes a signed study of it.
`catalogue` reads studies and the state with which their runs begin. `learning_rates` chooses the rates that a draft
leaves out. `summary` describes the cost of a run. `held_out` reads tables that lie on this machine, `text_backbone`
public records, from which it builds a small backbone that reads text.

The head's rate is chosen so that the noise of all rounds moves the head by a fixed distance:

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from confide.client_node.study import load_draft
>>> from confide.coordinator.studies import learning_rates
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
>>> round(learning_rates.head_rate(draft), 1)
23.1
"""

__all__ = [
    "catalogue", "create", "dictionary", "examine", "first_draft", "held_out", "learning_rates", "questions", "summary",
    "text_backbone",
]  # fmt: skip
