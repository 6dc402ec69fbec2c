"""PEFT's tensors in the files of diffusers' pipelines, also in older dialects."""
