"""Keeps the models of a few studies loaded at a site between rounds: in this process, or in workers by its policy.

torch is imported only when a model is loaded: a node that only aggregates does not need it.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...models.errors import ModelError
from ...privacy.errors import PrivacyError
from ..data import Records, kept_files
from ..data import read as read_records
from ..data.known_units import KnownUnits
from ..data.tables import NO_STAMP, Problem, stamp
from ..errors import DataInvalid, FileDamaged, ModelUnusable, NothingHeldOut, WorkersFailed
from ..policy import SitePolicy
from ..policy.sources import Source, SqlQuery
from ..study import PlannedRound, Study

if TYPE_CHECKING:
    from .trainer import Trainer
    from .workers import Workers

logger = logging.getLogger(__name__)

_READINGS = 3  # of a source that is another at each of them


class WarmModel:
    """The loaded models of the studies asked for last, each reloaded if its records or the limits may have changed.

    Two studies that run at once ask in turn; a model that was made anew at each question would take most of a round.
    """

    def __init__(
        self, site: str, home: Path | None = None, *, read: Callable[[SitePolicy, Study], Records] | None = None
    ) -> None:
        """Loads nothing yet.

        Args:
            home: the node's, where it remembers in which shapes it computes, and notes whose records it reads; None to
                find the shapes anew and to note nobody, for an audit.
            read: returns records in place of those that a policy names, for an audit.
        """
        self._site, self._home, self._read = site, home, read
        self._loaded: dict[str, tuple[str, Trainer | Workers]] = {}  # study -> version and model; used last comes last
        self._digests: dict[tuple[str, Source], str] = {}  # of a study's query -> of the answer that was read last

    def load(self, study: Study, policy: SitePolicy) -> "Trainer | Workers":
        """Loads the study's model, unless it is loaded already; reads no record. Drops the one used longest ago.

        Raises:
            ModelUnusable: the backbone or the limits here do not fit the study.
        """
        wanted = _version(study, policy)
        version, trainer = self._loaded.pop(study.study_hash, ("", None))
        if trainer is None or version != wanted:
            if trainer is not None:
                trainer.stop()
            self._make_room(policy.limits.warm_studies - 1)
            try:
                trainer = self._alone_if_need_be(study, policy)
            except (ModelError, PrivacyError, WorkersFailed) as err:
                logger.error("study %s cannot be computed here: %s", study.name, err)
                raise ModelUnusable(
                    "the backbone or the limits here do not fit the study; the site's log says why"
                ) from err
        self._loaded[study.study_hash] = wanted, trainer
        return trainer

    def look_again(self, study: Study, policy: SitePolicy, units: KnownUnits) -> None:
        """Drops the study's model if it has read another answer of the policy's query than the one noted in `units`."""
        digest = self._digests.get((study.study_hash, policy.data.source))
        if isinstance(policy.data.source, SqlQuery) and digest and not units.has_noted(policy, digest):
            _, trainer = self._loaded.pop(study.study_hash, ("", None))
            if trainer is not None:
                trainer.stop()

    def start(self, study: Study, policy: SitePolicy) -> np.ndarray:
        """Returns the state of round 0, which follows from the study's seed; raises as `load` does."""
        return self.load(study, policy).start

    def contribution(
        self, study: Study, policy: SitePolicy, planned: PlannedRound
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Returns a function that computes this site's noised vector from a round's state; only its call reads records.

        Raises:
            ModelUnusable: the backbone or the limits here do not fit the study.
            NothingHeldOut: the round is an evaluation, and this site has no held-out records.
        """
        trainer = self.load(study, policy)
        if planned.purpose == "update":
            return lambda state: trainer.release(state, planned.number)
        if planned.purpose == "prototype":
            return lambda _: trainer.prototype(planned.number, site_noise=study.site_noise(planned))
        held_out = policy.held_out()
        if held_out is None:
            raise NothingHeldOut(
                f"{self._site} holds no records out (data.heldout_path or its like in its site.toml): not evaluated "
                "here"
            )
        return lambda state: trainer.histogram(
            state,
            lambda: self._records(held_out, study),
            planned.number,
            site_noise=study.site_noise(planned),
        )

    def stop(self) -> None:
        """Drops the models and ends their workers."""
        self._make_room(0)

    def _make_room(self, most: int) -> None:
        """Drops models until `most` are left, those that were not used for longest first."""
        while len(self._loaded) > most:
            _, trainer = self._loaded.pop(next(iter(self._loaded)))
            trainer.stop()

    def _alone_if_need_be(self, study: Study, policy: SitePolicy) -> "Trainer | Workers":
        """Makes the model; if there is no memory for it beside the others, without them."""
        try:
            return self._new_trainer(study, policy)
        except MemoryError:
            logger.warning("no memory for study %s beside the others: they are dropped", study.name)
            self._make_room(0)
            return self._new_trainer(study, policy)

    def _new_trainer(self, study: Study, policy: SitePolicy) -> "Trainer | Workers":
        directory, limits, site = policy.backbone.directory, policy.limits, self._site
        site_noise = study.site_noise(study.planned_round(1))

        def read() -> Records:
            return self._records(policy, study) if self._read is None else self._read(policy, study)

        most = 0 if limits.workers else limits.kept_states_bytes
        if not most and self._home is not None:
            try:
                kept_files.forget(self._home, study.study_hash)
            except FileDamaged as err:
                logger.error("%s", err)
        if limits.workers:
            from .workers import Workers

            return Workers(study, directory, read, site=site, site_noise=site_noise, limits=limits)
        from .known_shapes import KnownShapes
        from .trainer import Trainer

        return Trainer(
            study,
            directory,
            read,
            site=site,
            site_noise=site_noise,
            max_rows=limits.max_rows_per_batch,
            threads=limits.threads,
            known=None if self._home is None else KnownShapes(self._home),
            kept=kept_files.KeptStates(home=self._home, study_hash=study.study_hash, most_bytes=most) if most else None,
        )

    def _records(self, policy: SitePolicy, study: Study) -> Records:
        """Reads records, and makes sure that the people of just these were noted under the policy's account.

        A source may have changed since it was looked at before the charge. What is trained on is known by the stamp of
        its files, the same before and after the reading, and the answer of a query by the digest of its rows. If that
        was not noted, the people of the newer state are, and it is read again.

        Raises:
            DataInvalid: they do not fit, or the source is another at every reading.
            UnitsKnown: people have joined who are known under another account.
        """
        source = policy.data.source
        if self._home is None:
            return read_records(policy, study, site=self._site, in_order=True)
        units = KnownUnits(self._home)
        for _ in range(_READINGS):
            before, digest = stamp(source), units.digest()
            records = read_records(policy, study, site=self._site, in_order=True, digest=digest)
            is_same = before is None or (stamp(source) == before and before != NO_STAMP)
            if is_same and units.has_noted(policy, digest.hex() if before is None else before):
                if before is None:
                    self._digests[study.study_hash, source] = digest.hex()
                return records
            del records
            units.look_again()
            units.cover(policy, source)
        found = f"others at each of {_READINGS} readings"
        raise DataInvalid(str(source), (Problem(None, "", "records that are the same twice", found),))


def _version(study: Study, policy: SitePolicy) -> str:
    """Computes a version that differs if the model, the records or their columns may have changed."""
    files = policy.data.files
    changed = [stamp(policy.data.source), files and _changed(files)]  # None of a query, see `look_again`
    return repr((study.study_hash, policy.data, policy.backbone, policy.limits, changed))


def _changed(path: Path) -> tuple[int, int]:
    """Time of the last change and size of a folder: this tells of new names, not of what a file of it says now."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
