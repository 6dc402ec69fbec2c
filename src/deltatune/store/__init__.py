"""An adapter on disk: our folder, and HF PEFT's in and out."""
