"""The contract and the arithmetic of a round: the plan that travels, checks on replies, rules that combine weights."""
