"""The stream experiment: one site learns online over one pass of its cases, under several arms and budgets."""
