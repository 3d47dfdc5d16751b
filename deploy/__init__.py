"""How Wardround is started: the `wardround` command line and the simulation."""
