"""The online learner: replay memory, updates, inference and metrics."""
