"""GGUF: the files of llama.cpp and the programs built on it."""
