"""The workbench: what a radiologist sees and does, over HTTPS, at the site and nowhere else."""
