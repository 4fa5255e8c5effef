"""Reads the public texts that `coordinator backbone compress` and `coordinator adapter carry` are given."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:  # torch takes seconds to import
    from ...models.backbones.text_pretraining import Row


def rows_of(
    backbone: Path, *, texts: Path | None, study: Path | None, public: Path | None, max_tokens: int
) -> "list[Row] | None":
    """Reads texts, one a line, or a table of a study's own kind; None if none are named.

    Raises:
        typer.BadParameter: the options do not go together.
    """
    if (study is None) != (public is None):
        raise typer.BadParameter("--study and --public go together: a table, and the study that says how it is read")
    if texts is not None and public is not None:
        raise typer.BadParameter("public texts come from --texts or from --public, not from both")
    from ...client_node.study import load_draft
    from ...models.backbones.loading import reads_records
    from ..studies.text_backbone import plain_rows, public_rows

    if (texts or public) and reads_records(backbone):
        return []  # which is refused, with the reason, by whoever learns from records
    if texts is not None:
        return plain_rows(texts, backbone, max_tokens=max_tokens)
    return None if study is None or public is None else public_rows(load_draft(study), public, backbone)
