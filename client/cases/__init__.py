"""Cases: volumes with their geometry, their way in and out of files, the case store, and phantoms to work without data."""
