"""Parts of benchmarks/synthesis.py."""
