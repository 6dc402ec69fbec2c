"""Predictions, likelihoods and generated text of trained adapters."""
