"""Losses that learn from little: every one weights or omits voxels that nobody annotated."""
