"""The commands `coordinator study init` and `study check`: write a first study.toml, and look at one."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...client_node.cli.application import PROBLEMS, JsonOption
from ...client_node.cli.console import agree, err, out, print_json, tell
from .backbone import backbone_build
from .options import DEFAULT_HOME, HomeOption, UnitsOption, UnusedExpertsOption
from .tables import here

if TYPE_CHECKING:  # torch takes seconds to import
    from ..studies.examine import Examination


def study_init(
    dictionary: Annotated[Path, typer.Argument(help="Data dictionary: CSV, TOML or JSON. See docs/study-toml.md.")],
    units: Annotated[int, typer.Option(min=1, help="Persons at all sites together; ask the sites.")],
    file: Annotated[Path, typer.Option("--out", help="File to write; must not exist.")] = Path("study.toml"),
    name: Annotated[str | None, typer.Option(help="Name of the study; by default the dictionary's.")] = None,
    unit: Annotated[str, typer.Option(help="The word for one of those persons; sites use the same.")] = "person",
    epsilon: Annotated[float, typer.Option(min=0.0, help="What a whole run may cost one of them.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="Updates that are summed and applied.")] = 40,
    backbone: Annotated[str, typer.Option(help="Folder of the frozen model, beside the file.")] = "backbone",
    build: Annotated[bool, typer.Option("--build", help="Then build that model, as `backbone build` does.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Write a first study.toml, with comments, from a data dictionary and the sites that were invited. Reads no record.

    Look through it, then check it: what it says of cut points, epsilon and rounds is yours to decide.
    """
    from ..federation import members, opened_store
    from ..studies.dictionary import read_dictionary
    from ..studies.first_draft import Wishes, first_draft

    described = read_dictionary(dictionary)
    wishes = Wishes(
        name=name or dictionary.stem.lower(), units=units, unit=unit, epsilon=epsilon, rounds=rounds, backbone=backbone
    )
    if described.is_written and (file.parent / backbone).is_dir():
        from ...models.backbones.loading import describe

        found = describe(file.parent / backbone)
        wishes = replace(wishes, targets=found.suggested_targets, layers=found.suggested_layers)
    with opened_store(home) as store:
        text = first_draft(described, members.members(store), wishes)
    with file.open("x", encoding="utf-8") as draft:
        draft.write(text)
    out.print(f"Study {wishes.name} drafted in {file}.", highlight=False, markup=False, soft_wrap=True)
    if build and not described.is_text:
        backbone_build([file], file.parent / backbone)
    elif not described.is_text:
        tell(f"Next: coordinator backbone build {file} {file.parent / backbone}")
    tell(f"Then: {here(home, f'study check {file} --units {units}')}")


def study_check(
    draft: Path,
    units: UnitsOption = None,
    accept_unused_experts: UnusedExpertsOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Tell what is wrong with a study.toml, what is questionable, and what a run would cost. Nothing is stored.

    Exit code 3: `study create` would refuse it, or ask.
    """
    from ..federation import opened_store
    from ..studies.examine import examine

    with opened_store(home) as store:
        found = examine(store, draft, units=units, accept_unused_experts=accept_unused_experts)
    show_examination(draft, found.with_choices(), as_json)
    raise typer.Exit(PROBLEMS if found.problems or found.questions else 0)


def show_examination(file: Path, found: "Examination", as_json: bool) -> None:
    """Prints what a draft would cost; problems and questions go to stderr."""
    facts = examination_facts(found)
    if as_json:
        return print_json(facts)
    for sentence in found.sentences:
        out.print(sentence, highlight=False, markup=False, soft_wrap=True)
    for problem in found.problems:
        tell(f"Problem: {problem}")
    show_questions(found)
    if not found.problems and not found.questions:
        out.print(f"Nothing speaks against it. Next: coordinator study create {file}", soft_wrap=True, markup=False)


def examination_facts(found: "Examination") -> dict[str, object]:
    """Lists what was found, as plain values."""
    draft = found.draft
    return {
        "problems": [str(problem) for problem in found.problems],
        "questions": list(found.questions),
        "epsilon": found.epsilon,
        "noise_multiplier": draft and draft.privacy.noise_multiplier,
        "delta": draft and draft.privacy.delta,
        "collusion": draft and draft.privacy.collusion,
        "rounds": draft and draft.rounds.rounds,
        "implied_units": found.implied_units,
        "trained_numbers": found.dim,
        "trained_numbers_are_assumed": found.is_dim_assumed,
        "noise_over_signal": found.expected and found.expected.whole,
        "noise_over_signal_of_the_head": found.expected and found.expected.head,
        "noise_over_signal_at_epsilon": {f"{epsilon:g}": each.whole for epsilon, each in found.choices.items()},
        "noise_over_signal_of_the_head_at_epsilon": {
            f"{epsilon:g}": each.head for epsilon, each in found.choices.items()
        },
    }


def show_questions(found: "Examination") -> None:
    """Prints the questions that must be answered, on stderr."""
    for question in found.questions:
        err.print("[bold yellow]Question[/]: ", end="")
        tell(question)


def answer_questions(found: "Examination", *, accept: bool) -> None:
    """Asks the person at the terminal whether questionable settings are meant; `--accept` says so beforehand.

    Raises:
        NotAgreed: they are not, or nobody can be asked.
    """
    show_questions(found)
    if found.questions:
        agree("Settings are questionable. Create the study all the same?", yes=accept, option="--accept")
