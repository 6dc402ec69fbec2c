"""Works: trainings, tests and measurements of a comparison, each run once and stored."""
