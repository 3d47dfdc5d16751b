"""The coordinator as its operator meets it: who takes part, which runs there are, and what keeps them going."""
