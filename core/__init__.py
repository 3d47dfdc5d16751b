"""Wardround: hospitals that learn together from a few strokes.

This folder is the ground that every room stands on: the version, the error tree and atomic files. It imports
nothing but the standard library, so that any room, and any process, may import it at no cost.
"""

__version__ = "0.1.0"
