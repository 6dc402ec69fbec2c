"""Conformance tests for methods, also those of other packages: `check_method(MyMethod)` in your test suite.

    from deltatune.testing import check_method
    check_method(MyMethod(r=4))

Nothing is downloaded: the laws are checked on tiny random models.
"""

from deltatune.testing.conformance import BANK_LAWS, LAWS, MODELS, SLOW_LAWS, applies, check_method, demand
from deltatune.testing.tiny_models import inputs, tiny

__all__ = ["BANK_LAWS", "LAWS", "MODELS", "SLOW_LAWS", "applies", "check_method", "demand", "inputs", "tiny"]
