"""Prompts: how rows become the text, and the tokens, that a language model continues."""
