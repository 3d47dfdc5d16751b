"""Cases: volumes with their geometry, the files they come from, the case store, and phantoms to work without data."""
