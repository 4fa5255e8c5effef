"""Successors of the federation's CA and of the coordinator's signing key, as forms that ask before."""

from collections.abc import Callable, Mapping

from starlette.responses import Response

from .. import ca_rotation, key_rotation
from ..errors import Conflict
from .visits import Visit

WORDS: Mapping[str, str] = {  # to be typed before
    "ca-rotate": "rotate the CA", "ca-cancel": "cancel", "ca-finish": "finish", "keys-rotate": "rotate the key",
}  # fmt: skip


def ask(order: str) -> Callable[[Visit], Response]:
    """Makes the page that asks for one of them."""

    def asked(visit: Visit) -> Response:
        ca = ca_rotation.standing(visit.store, visit.home)
        if order == "ca-rotate" and ca.next is not None:
            raise Conflict("a rotation of the CA is under way already; finish or cancel it first")
        if order in ("ca-finish", "ca-cancel") and ca.next is None:
            raise Conflict("no rotation of the CA is under way")
        present = key_rotation.standing(visit.store, visit.home).key if order == "keys-rotate" else ""
        return visit.render("rotation.html", order=order, words=WORDS[order], ca=ca, present=present)

    return asked


def begin_ca(visit: Visit) -> Response:
    """Makes the CA that comes next, as `coordinator ca rotate` does."""
    _require_typed(visit, "ca-rotate")
    ca_rotation.begin(visit.store, visit.home)
    return visit.go("settings", notice="The next CA is made. Nodes are told to trust it too, and say when they do.")


def cancel_ca(visit: Visit) -> Response:
    """Deletes the CA that was to come next, as `coordinator ca cancel` does."""
    _require_typed(visit, "ca-cancel")
    ca_rotation.cancel(visit.store, visit.home)
    return visit.go("settings", notice="The next CA is deleted, and nodes drop it again.")


def finish_ca(visit: Visit) -> Response:
    """Lets the next CA take over, as `coordinator ca finish` does where no node would be shut out."""
    _require_typed(visit, "ca-finish")
    ca_rotation.finish(visit.store, visit.home)
    return visit.go("settings", notice="The next CA has taken over. Codes that were not used yet are void.")


def rotate_key(visit: Visit) -> Response:
    """Signs with a new key from now on, as `coordinator keys rotate` does; a form that is sent twice rotates once."""
    _require_typed(visit, "keys-rotate")
    stated = key_rotation.rotate(visit.store, visit.home, present=visit.form.get("present", ""))
    notice = f"The coordinator signs with the key {stated.new[:16]}... from now on. Make a backup now."
    return visit.go("settings", notice=notice)


def _require_typed(visit: Visit, order: str) -> None:
    if visit.form.get("typed", "").strip() != WORDS[order]:
        raise Conflict("the words were not typed as they are, so nothing was done")
