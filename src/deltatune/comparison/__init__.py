"""Methods compared on one model, one data set, one budget: plan, run, judge, report."""
