"""One rule's verdict on a study at this node: the same object refuses a message and explains a policy to people.

A function that decides returns rulings. `require` raises the first refusal among them; `client-node policy explain`
shows them all. So an explanation cannot drift from what is enforced.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import ClientNodeError, StudyNotApproved


@dataclass(frozen=True, slots=True)
class Ruling:
    """One rule, its verdict, and the key of the policy that decides it."""

    rule: str  # of one or two words
    allows: bool
    key: str  # of site.toml, such as data.unit; or `studies`, for what people decide about one study
    why: str  # the reason, for a refusal with what to do; it depends on no record if `require` may raise it
    error: type[ClientNodeError] = StudyNotApproved  # which a refusal is raised as


def require(rulings: Iterable[Ruling], *, about: str) -> None:
    """Raises the first refusal as its error, with a text that begins with `about`; nothing if there is none."""
    for each in rulings:
        if not each.allows:
            raise each.error(f"{about}: {each.why}")
