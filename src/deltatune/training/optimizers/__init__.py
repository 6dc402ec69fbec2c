"""AdamW in four forms: in memory or in a file, its moments in float32 or in 8 bits."""
