"""A base that quanto has quantised."""

NAME = "quanto"
PACKAGES = ("optimum.quanto",)
FILE = "tests/core/quantization/test_stored_weights_packages.py"
SHOWS = f"{FILE}::test_a_package_is_read_trained_and_made_plain[quanto]"
SHOWN_BY = {"attach": SHOWS, "train": SHOWS, "save": SHOWS, "reload": SHOWS, "serve": SHOWS}
