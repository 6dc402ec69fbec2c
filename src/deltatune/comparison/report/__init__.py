"""The report of a comparison. It reads summary.json and nothing else."""
