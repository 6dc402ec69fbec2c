"""Statistics of scores: intervals, verdicts on pairs, forecasts, ranks."""
