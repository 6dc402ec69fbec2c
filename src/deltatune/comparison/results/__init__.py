"""Results: what a comparison has stored, and what is concluded from it."""
