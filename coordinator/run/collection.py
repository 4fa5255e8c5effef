"""Collects the sealed shares of a round: the sites' updates and, if sites are missing, their top-ups.

Both are kept on disk until the round is committed, so a driver that resumes the round asks only for the rest.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from ...client_node.wire.messages import Packet, RoundPlan, TopUp, TopUpPlan, Update, sign
from ...mpc.sharing import ShareContext
from ...mpc.sharing.shares import set_name
from ..errors import MessageRefused
from ..fleet import NodeFailure
from ..store.run_folder import Envelopes
from .context import RoundContext
from .questions import R, ask_until
from .relay import Intake, inline_room
from .replaying import bring_up


def collect_updates(round_: RoundContext) -> Envelopes:
    """Collects sealed updates of at least a quorum of the cohort, each with its site's charge for the round."""
    run, inbox = round_.run, round_.run.folder.envelopes(round_.number)
    if run.folder.fixed_set(round_.number) is not None:
        return inbox.read()  # sites have added noise for this set, so it cannot grow
    intake = Intake(run, inbox, round_.share_context)

    def accept(site: str, answer: Update, packet: Packet) -> None:
        run.accept_ledger(site, answer.ledger)
        if not round_.has_charge(site):
            raise MessageRefused(f"{site} sent shares of round {round_.number} without the charge for them")
        intake.begin(site, answer, packet)

    def ready(sites: Collection[str]) -> dict[str, NodeFailure]:
        return bring_up(run, sites, run.study.last_update_before(round_.number))

    return _collect(round_, intake, round_.cohort, "step", Update, plan, accept, "sites compute", ready)


def plan(round_: RoundContext, site: str, inline: int) -> Packet:
    """Signs a site's plan with the start that it must have computed and the outcomes that it has not been told."""
    run = round_.run
    message = RoundPlan(
        **run.addressed(site),
        round=round_.number,
        start=round_.state_hash,
        keys=round_.keys,
        tag_key=round_.tag_key,
        outcomes=run.untold_outcomes(site),
        ledger_from=run.replica.length(site),
        inline=inline,
    )
    return sign(message, run.signer)


def top_up(round_: RoundContext, summed: tuple[str, ...]) -> tuple[tuple[str, ...], Envelopes]:
    """Fixes the set to be summed, and collects its sites' top-ups for the missing ones; none if none are needed.

    A site of the set that fails now is left out too, and the others are asked again for the smaller set.
    """
    while len(summed) < round_.run.study.draft.min_untopped:
        topups = _collect_topups(round_, summed)
        if len(topups) == len(summed):
            return summed, topups
        summed = tuple(sorted(topups))
    return summed, {}


def _collect_topups(round_: RoundContext, summed: tuple[str, ...]) -> Envelopes:
    """Stores the set `summed`, then collects top-ups of at least a quorum of it for exactly that set."""
    run, name = round_.run, set_name(summed)
    run.folder.fix_set(round_.number, summed)

    def context_of(site: str) -> ShareContext:
        return replace(round_.share_context(site), topup_for=name)

    def request(round_: RoundContext, site: str, inline: int) -> Packet:
        message = TopUpPlan(
            **run.addressed(site),
            round=round_.number,
            state=round_.state_hash,
            cohort=summed,
            keys=round_.keys,
            tag_key=round_.tag_key,
            inline=inline,
        )
        return sign(message, run.signer)

    intake = Intake(run, run.folder.topups(round_.number, summed), context_of)
    doing = "sites add noise for the missing ones"
    return _collect(round_, intake, summed, "topup", TopUp, request, intake.begin, doing)


def _collect(
    round_: RoundContext,
    intake: Intake,
    sites: Sequence[str],
    kind: str,
    model: type[R],
    request: Callable[[RoundContext, str, int], Packet],
    accept: Callable[[str, R, Packet], None],
    doing: str,
    ready: Callable[[Collection[str]], Mapping[str, NodeFailure]] | None = None,
) -> Envelopes:
    """Asks the sites without stored shares until there is a quorum, and returns all stored shares."""
    run, kept = round_.run, intake.inbox.read()
    missing = [site for site in sites if site not in kept]
    run.beat(f"{round_.title}: {len(missing)} {doing}")
    inline = inline_room(len(missing))
    ask_until(
        run, kind, missing, lambda site: request(round_, site, inline), (model,),
        needed=max(0, run.study.quorum - len(kept)), accept=accept, finish=intake.finish, ready=ready,
        absent=round_.absent,
    )  # fmt: skip
    return intake.inbox.read()
