"""Decisions of a site before a study runs: its approval, its charges, the budget that a run reserves.

`assessment.assess` is a site's whole view of a study; `budget_planning.plan_at` prices a draft before anybody signs it.
`catalogue` keeps the studies that the coordinator offers, `confirmed_sites` the keys that people compared by voice, and
`run_reservations` the runs under way. `admission` lets a node's messages in, `charges` says what each round is charged.

People decide through `study_decisions` (fetch, approve, revoke) and `site_budget` (caps, reports, the ledger as one
file); `table_check` looks through a table for them.

Another key has another fingerprint, in groups that can be read out:

>>> from confide.client_node.approval import confirmed_sites
>>> confirmed_sites.fingerprint("00" * 32)
'MOP6-DMYC-NPMD-MQCK-YRZ5-ZPG4-F5NB-A7EG'
>>> confirmed_sites.fingerprint("00" * 31 + "01")
'WMXZ-WI27-ULA3-XSXJ-HIP3-S7MW-4JHU-6NHE'
"""

__all__ = [
    "admission",
    "assessment",
    "budget_planning",
    "catalogue",
    "charges",
    "confirmed_sites",
    "run_reservations",
    "site_budget",
    "study_decisions",
    "table_check",
]
