"""The coordinator: the round loop, its journal, and the Flower ServerApp. It never sees an image."""
