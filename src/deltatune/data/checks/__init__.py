"""What is wrong with data (`problems`: nothing can be trained) and what one should know (`remarks`)."""

from deltatune.data.checks.gaps import gaps
from deltatune.data.checks.judging import problems, remarks

__all__ = ["gaps", "problems", "remarks"]
