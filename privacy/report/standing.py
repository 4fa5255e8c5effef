"""The standing of an account against its cap, as the report's page says it: what is left, how full, in what state."""

from typing import Literal

from ..accounting import renyi
from ..ledger.charges import Books, Recovery
from .schema import Account, Spending

State = Literal["within", "near", "over", "closed", "unprotected"]
_NEAR = 90  # per cent of the filter, from which a budget is nearly spent


def agreed(account: Account) -> Spending:
    """The spending that is measured against the budget: that at the budget's own collusion."""
    level = account.budget.collusion if account.budget else 0
    return next(item for item in account.spent if item.colluding == level)


def lost(account: Account, books: Books) -> Recovery | None:
    """Finds what counts as spent because entries were lost for good, which closes the account; None if none were."""
    return books.recoveries.get((account.dataset, account.unit))


def left(account: Account, books: Books) -> float | None:
    """The rest of the budget in epsilon, by the filter that keeps it; None without a budget."""
    if account.budget is None:
        return None
    if account.unprotected or lost(account, books):
        return 0.0
    return max(0.0, account.budget.epsilon - agreed(account).guaranteed)


def share(account: Account, books: Books) -> float:
    """The part of the filter that is filled, in per cent; at most 100 for the width of a bar."""
    cap, order = account.budget, account.order
    if cap is None or order is None or account.unprotected or lost(account, books):
        return 100.0
    return min(100.0, 100 * renyi.filled(agreed(account).guaranteed, cap.epsilon, cap.delta, order))


def state(account: Account, books: Books) -> State:
    """The account's state, the gravest that applies."""
    if account.unprotected:
        return "unprotected"
    if lost(account, books):
        return "closed"
    if account.budget is None or agreed(account).guaranteed > account.budget.epsilon:
        return "over"
    return "near" if share(account, books) >= _NEAR else "within"
