"""Decisions of a site before a study runs: its approval, its charges, the budget that a run reserves.

`assessment.assess` assesses a study for a site; `budget_planning.plan_at` computes the cost of a draft before anybody
signs it. `catalogue` stores the coordinator's studies, `confirmed_sites` the keys that people compared by voice, and
`run_reservations` the active runs. `admission` verifies that a node may answer a message, `charges` computes the charge
of each round.

People decide through `study_decisions` (fetch, approve, revoke) and `site_budget` (caps, reports, the ledger as one
file); `table_check` checks a table for them.

Every key has its own fingerprint, in groups that can be read aloud:

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
