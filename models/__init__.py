"""Networks by name, and nothing else: no data, no losses, no training."""
