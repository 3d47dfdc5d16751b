"""What `benchmarks/forgetting.py` is made of: streams of regimes, arms, one run, tables and the picture."""
