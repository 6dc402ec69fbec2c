"""Search for prompts: trigger tokens, label words, and templates that are written, made by rules, mined or reworded."""
