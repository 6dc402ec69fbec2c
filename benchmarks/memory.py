"""Memory that LLaMA's sizes need with QLoRA's configuration, forecast from shapes: `python -m benchmarks.memory`."""

import json
import tempfile
from pathlib import Path

from deltatune.comparison.costs.memory_fit import DeepModel
from deltatune.comparison.costs.training_memory import CountedTraining

SIZES = {"7B": (32, 4096, 11008), "13B": (40, 5120, 13824), "33B": (60, 6656, 17920), "65B": (80, 8192, 22016)}
"""Blocks, width and inner width."""


def main() -> None:
    """Print the table of docs/memory.md: NF4, rank 64 on all linear maps, one row of 512 tokens, checkpointing."""
    print("| model | weights | adapter, gradients | moments | peak, adamw | peak, paged-adamw |")
    print("|---|---|---|---|---|---|")
    for size, (layers, width, inner) in SIZES.items():
        shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
        config = {"model_type": "llama", "num_attention_heads": width // 128, "vocab_size": 32000, **shape}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            training = CountedTraining(
                "lm", batch_size=1, max_length=512, device="cuda", precision="bfloat16", quantize="nf4",
                checkpointing=True,
            )  # fmt: skip
            memory = DeepModel(folder).count("LoRA(r=64, sites='*.{attn,ffn}.*')", training).memory
        assert memory is not None
        values = (memory.weights, memory.adapter + memory.gradients, memory.optimizer)
        values = (*values, memory.total, memory.total - memory.optimizer)
        print(f"| {size} | " + " | ".join(f"{value / 1e9:.1f} GB" for value in values) + " |", flush=True)


if __name__ == "__main__":
    main()
