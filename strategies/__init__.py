"""The contract and the arithmetic of a round: the plan that travels, the checks on a reply, the rules that combine weights."""
