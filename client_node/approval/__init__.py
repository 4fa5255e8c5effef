"""A site's decision before a study runs: what it costs, whether it is approved, what is held for it.

`assessment.assess` is a site's whole view of a study; `budget_planning.plan_at` prices a draft before anybody signs it.
`catalogue` keeps the studies that the coordinator offers, `confirmed_sites` the keys that people compared by voice, and
`run_reservations` what runs under way will still charge.

Another key has another fingerprint, in groups that can be read out:

>>> from confide.client_node.approval import confirmed_sites
>>> confirmed_sites.fingerprint("00" * 32)
'MOP6-DMYC-NPMD-MQCK-YRZ5-ZPG4-F5NB-A7EG'
>>> confirmed_sites.fingerprint("00" * 31 + "01")
'WMXZ-WI27-ULA3-XSXJ-HIP3-S7MW-4JHU-6NHE'
"""

__all__ = ["assessment", "budget_planning", "catalogue", "confirmed_sites", "run_reservations"]
