"""Writes the settings of study.toml into docs/study-toml.md, from the descriptions in the schema: `make docs`."""

import sys
from pathlib import Path

from confide.client_node.study import reference

PAGE = Path(__file__).with_name("study-toml.md")
BLOCKS = {
    "every setting": reference.study_toml,
    "tasks": lambda: reference.task_toml("sepsis"),
    "histories": lambda: reference.kind_toml("history"),
    "documents": lambda: reference.kind_toml("document"),
    "free text": lambda: reference.kind_toml("text"),
    "conversations": lambda: reference.kind_toml("chat"),
    "formulas": lambda: reference.kind_toml("formulas"),
    "code": lambda: reference.kind_toml("code"),
    "pictures": lambda: reference.kind_toml("picture"),
    "sounds": lambda: reference.kind_toml("sound"),
}


def written(page: str) -> str:
    """Returns the page with what stands between its marks made anew."""
    for name, text in BLOCKS.items():
        begin, end = f"<!-- {name}: made by `make docs` -->\n", f"<!-- {name}: end -->\n"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        if not after:
            sys.exit(f"{PAGE.name} has lost its marks of {name}")
        page = f"{before}{begin}```toml\n{text()}```\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
