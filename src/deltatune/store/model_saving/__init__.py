"""Saving of models with adapters: folders of `save_pretrained`, the hub, and classifiers as plain models."""
