"""Adapters and models on disk: adapter folders, HF PEFT and loralib, merged models, task arithmetic."""
