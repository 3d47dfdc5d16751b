"""The gate: what may come into a site and what may leave it. What is not allowed is refused.

:class:`~wardround.client.gate.gate.Gate` is the door, used by the process that owns the site and by nobody else; beside
it lie the site's policy, the bundles that somebody approved, the checks of arrays and metrics, and the ledger.
"""
