"""Soft prompts and prefixes."""
