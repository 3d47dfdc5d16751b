"""The report of a run: results as JSON, as pictures and as one self-contained page."""
