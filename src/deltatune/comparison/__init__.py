"""Comparison of methods on one model, one data set and one budget: plan, run, statistics, report."""
