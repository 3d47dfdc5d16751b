"""The comparison of strategies over seeds and sites, beside pooled cases and hospitals that learn alone."""
