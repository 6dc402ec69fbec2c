"""In-context learning: labelled rows in the prompt, calibration, MetaICL, and demonstrations in training."""
