"""The node's cache of studies: fetched from the coordinator, verified, stored under the node's home.

Each is stored with the coordinator's signature and verified again at every reading; a file whose content does not have
the hash in its name is refused. So no study changed on disk or on the network can pass for an approved one.
"""

import base64
import binascii
import json
import logging
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ..enrolment import Enrolment
from ..enrolment.protocol import fetch_studies
from ..errors import CoordinatorRefused, StudyInvalid, StudyUnknown
from ..files import read_json, write_private
from ..ruling import require
from ..study import Study
from ..succession import partners, rotation
from . import rulings

logger = logging.getLogger(__name__)

FOLDER = "studies"
_MAX_FILE = 4 * 2**20
_FORM = TypeAdapter(dict[str, Any])
_REMEDY = "It is fetched again: delete it and run `client-node study list`"
_SHORTEST_PREFIX = 8  # hexadecimal digits


def refresh(home: Path) -> list[str]:
    """Fetches the coordinator's studies into the cache. Returns the reasons for refused ones, one line each."""
    _complete_rotation(home)
    listed, refused = fetch_studies(home), []
    coordinators = Enrolment.load(home).coordinators  # with the list comes a new one
    for offered in listed:
        stated = offered.pop("successions", ())
        try:
            study = _checked(offered, coordinators)
        except StudyInvalid as err:
            refused.append(str(err))
            continue
        refused += partners.take(home, coordinators, study.identities(), stated)
        write_private(_file(home, study.study_hash), json.dumps(offered).encode())
    return refused


def _complete_rotation(home: Path) -> None:
    """Completes a rotation of the identity key: the coordinator may know this node by one that is not in place yet."""
    try:
        rotation.complete(home)
    except CoordinatorRefused as err:  # then it goes on knowing the present one
        logger.warning("the rotation of this node's identity key is not completed: %s", err)


def known_studies(home: Path) -> list[Study]:
    """Reads all studies in the cache, oldest first.

    Raises:
        StudyInvalid: a file in the cache was changed.
    """
    found = [cached_study(home, path.stem) for path in sorted((home / FOLDER).glob("*.json"))]
    return sorted(found, key=lambda study: (study.created, study.name, study.study_hash))


def cached_study(home: Path, study_hash: str) -> Study:
    """Reads one study from the cache.

    Raises:
        StudyUnknown: the study is not in the cache.
        StudyInvalid: its file was changed.
    """
    path = _file(home, study_hash)

    def invalid(text: str) -> StudyInvalid:
        return StudyInvalid(str(path), (text.removeprefix(f"{path} "),))

    kept = read_json(path, _FORM, remedy=_REMEDY, error=invalid, max_bytes=_MAX_FILE)
    if kept is None:
        raise StudyUnknown(f"study {study_hash[:12]} has not reached this node; run `client-node study list`")
    coordinators = Enrolment.load(home).coordinators
    try:
        study = _checked(kept, coordinators)
    except StudyInvalid as err:
        raise StudyInvalid(str(path), (*err.problems, _REMEDY), err.more) from err
    if study.study_hash != study_hash:
        raise invalid(f"the file holds study {study.study_hash[:12]}. {_REMEDY}")
    return study


def find_study(home: Path, text: str) -> Study:
    """Finds the one study in the cache whose hash begins with `text` (at least 8 digits) or whose name is `text`.

    Raises:
        StudyUnknown: no study matches, or several do.
    """
    found = [study for study in known_studies(home) if is_meant(study, text)]
    if len(found) == 1:
        return found[0]
    hint = "give more of its hash" if found else "`client-node study list` shows those that are known"
    raise StudyUnknown(f"{len(found) or 'no'} studies here have the hash or name {text!r}; {hint}")


def approved_study(home: Path, study_hash: str) -> Study:
    """Returns the study of that hash if it may run at this node. An unknown study is fetched from the coordinator.

    Raises:
        StudyNotApproved: the policy does not approve it, does not approve it without privacy, or protects another
            unit.
        StudyUnknown: the coordinator does not offer it.
        SiteNotConfirmed: this node aggregates in it, and the key of one of its sites was not confirmed here.
        PartnerRefused: the policy does not allow its backbone or a party, or a known name has another key.
    """
    require([rulings.of_approval(home, study_hash)], about=f"study {study_hash[:12]}")
    if not _file(home, study_hash).exists():
        refresh(home)
    study = cached_study(home, study_hash)
    rulings.require_study(home, study)
    return study


def _checked(offered: object, coordinators: tuple[str, ...]) -> Study:
    """Verifies the study in `offered`: it has the stated hash, and this node's coordinator signed it.

    One that an earlier key signed counts as well: the coordinator's messages, without which it never runs, count by
    the present key alone.
    """
    if not isinstance(offered, dict) or not all(
        isinstance(offered.get(n), str) for n in ("canonical", "hash", "signature")
    ):
        raise StudyInvalid("study", ("needs canonical, hash and signature",))
    source = f"study {offered['hash'][:12]!r}"
    try:
        study = _parsed(base64.b64decode(offered["canonical"], validate=True))
    except binascii.Error as err:
        raise StudyInvalid(source, ("its canonical form is not base64",)) from err
    if study.study_hash != offered["hash"]:
        raise StudyInvalid(source, (f"its content has the hash {study.study_hash[:12]}; it was changed on the way",))
    if study.coordinator not in coordinators:
        raise StudyInvalid(source, ("it names another coordinator than the one this node enrolled with",))
    if not study.is_signed(offered["signature"]):
        raise StudyInvalid(source, ("the coordinator's signature does not hold",))
    return study


@lru_cache(maxsize=4)  # each message reads its study: 30 ms of 1,000 sites, and the same bytes mean the same
def _parsed(canonical: bytes) -> Study:
    return Study.parse(canonical)


def is_meant(study: Study, text: str) -> bool:
    """True if `text` is the study's name, or at least 8 digits with which its hash begins."""
    prefix = text.lower()
    return study.name == text or (len(prefix) >= _SHORTEST_PREFIX and study.study_hash.startswith(prefix))


def _file(home: Path, study_hash: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{64}", study_hash):
        raise StudyUnknown("a study's hash is 64 hexadecimal digits")
    return home / FOLDER / f"{study_hash}.json"
