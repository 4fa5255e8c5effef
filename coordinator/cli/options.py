"""Options that commands of `coordinator` share."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_HOME = Path.home() / ".confide" / "coordinator"

HomeOption = Annotated[
    Path,
    typer.Option(
        "--home", envvar="CONFIDE_COORDINATOR_HOME", resolve_path=True, help="Folder of the federation."
    ),  # whole, because child processes work elsewhere
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database", metavar="URL", envvar="CONFIDE_DATABASE",
        help="An empty PostgreSQL database, without a password: postgresql://USER@HOST/NAME (docs/backup.md).",
    ),
]  # fmt: skip
CertificateOption = Annotated[
    Path | None,
    typer.Option("--certificate", help="PEM, from a CA that others keep: the gate's, then those below the CA."),
]
CertificateKeyOption = Annotated[Path | None, typer.Option("--key", help="Private key of --certificate, PEM.")]
CaOption = Annotated[Path | None, typer.Option("--ca", help="The CA of --certificate that nodes are to trust, PEM.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")]
TextOption = Annotated[
    Path | None, typer.Option("--text", help="UTF-8 file to read, at most 1 MiB; left out, the backbone's licence.")
]
TokensOption = Annotated[int, typer.Option("--tokens", min=1, help="How many tokens to read at the most.")]
PageOption = Annotated[Path | None, typer.Option("--html", help="Write the figures as a web page to this file.")]
PlainTextsOption = Annotated[
    Path | None, typer.Option("--texts", help="Of what reads text: UTF-8 file of public texts, one a line.")
]
StudyOption = Annotated[
    Path | None, typer.Option("--study", help="With --public: the study.toml that says how its records are read.")
]
PublicOption = Annotated[
    Path | None,
    typer.Option("--public", help="Of what reads text: a table of public records with the columns of --study."),
]
StepsOption = Annotated[int | None, typer.Option("--steps", min=1, help="Steps of training.")]
OverrideOption = Annotated[
    str | None, typer.Option(help="Write without an audit that passed, for this reason; the model card shows it.")
]
UnitsOption = Annotated[
    int | None, typer.Option("--units", min=1, help="Persons at all sites together, as the sites told; compared.")
]
AcceptOption = Annotated[bool, typer.Option("--accept", help="Questionable settings are meant; do not ask.")]
UnusedExpertsOption = Annotated[
    bool, typer.Option("--accept-unused-experts", help="Adapt routed experts too that no public token is sent to.")
]
