"""Lower layers: time of a training whose base's lower outputs are kept, against one that computes them in every step.

Three cases a method: nothing kept, the first training that keeps them, and one that finds them kept (another rate or
seed). The last loss of each must be the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import deltatune
from benchmarks.measure import interleaved_times, options, report
from deltatune.core.host import Host
from deltatune.data import read
from deltatune.models.loading import load_backbone
from deltatune.tasks import Classify, Head
from deltatune.training import Settings, encode_for, train
from deltatune.training.scaling.feature_cache import CACHE, set_cache_limit

METHODS = ("TopLayers(2)", "AdapterDrop(size=48, drop=4)", "LoRA(r=8, sites='layers.{4,5}.attn.{q,v}')", "Probe()")
LARGEST_DIFFERENCE = 1e-3
"""Of the last loss, relative."""


def main() -> None:
    arguments = options("lower_layers", rows=320, epochs=3, turns=3)
    data = read("python-docs", limit=arguments.rows)
    model, tokenizer = load_backbone("builtin")
    task = Classify(data.labels, data.text, data.label, max_length=64)
    host = Host(model)
    host.attach("first", deltatune.Probe(), head=Head(task.head_config(model.config)))
    encoded = encode_for(host, "first", task, data.train, tokenizer)
    losses: dict[str, dict[str, float]] = {}

    def case(method: str, name: str, limit: str | None, cleared: bool) -> Callable[[], object]:
        def work() -> None:
            set_cache_limit("auto" if limit else None)
            if cleared:
                CACHE.clear_()
            host.attach("a", deltatune.parse(method), head=Head(task.head_config(model.config)))
            settings = Settings(epochs=arguments.epochs, precision="float32")
            outcome = train(host, "a", task, encoded, None, tokenizer, settings)
            losses.setdefault(method, {})[name] = outcome.history[-1][1]
            host.detach("a")

        return work

    for method in METHODS:
        cases = {
            "nothing kept": case(method, "nothing kept", None, True),
            "first training": case(method, "first training", "auto", True),
            "next training": case(method, "next training", "auto", False),
        }
        report(f"lower layers, {method}", interleaved_times(cases, arguments, 1), "nothing kept", {}, arguments)
        values = list(losses[method].values())
        difference = max(abs(value - values[0]) for value in values) / values[0]
        print(f"last losses differ by {difference:.1e}: {'yes' if difference <= LARGEST_DIFFERENCE else 'NO'}")


if __name__ == "__main__":
    main()
