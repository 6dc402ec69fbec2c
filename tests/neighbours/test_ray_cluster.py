"""A Ray cluster runs the trainings of a comparison."""

NAME = "Ray"
PACKAGES = ("ray",)
REASON = "a cluster runs the trainings of `deltatune compare`"
NOT_APPLICABLE = {"attach": REASON, "save": REASON, "reload": REASON, "serve": REASON}
SHOWN_BY = {"train": "tests/comparison/executors/test_ray_executor.py::test_two_nodes_find_what_this_process_finds"}
