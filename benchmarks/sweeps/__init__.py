"""Many cells: each run once, by processes of this machine or as jobs of a SLURM cluster."""
