"""A bundle for machines without network: every wheel with its hash, an SBOM, and the files that deploy them."""
