"""The laws every method keeps, for ours and for third parties: `check_method(MyMethod)` in a test of your package.

    from deltatune.testing import check_method
    check_method(MyMethod(r=4))

Nothing is downloaded: the laws are tried on tiny random models.
"""

from deltatune.testing.conformance import LAWS, MODELS, SLOW_LAWS, applies, check_method, demand
from deltatune.testing.tiny_models import inputs, tiny

__all__ = ["LAWS", "MODELS", "SLOW_LAWS", "applies", "check_method", "demand", "inputs", "tiny"]
