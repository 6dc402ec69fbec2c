"""What is wrong with data (`problems`: nothing can be trained) and what one should know (`remarks`)."""

from deltatune.data.checks.all_checks import problems, remarks
from deltatune.data.checks.missing_values import gaps

__all__ = ["gaps", "problems", "remarks"]
