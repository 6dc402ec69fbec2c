"""What other programs compute with exported files, beside what the adapter computes.

The programs need environments of their own, so there are two halves. The first, with deltatune, writes the files and
what is expected of them:

    python benchmarks/other_programs.py write MODEL FOLDER

The second runs in the environment of vLLM (0.32) or llama-cpp-python (0.3.36), without deltatune:

    python benchmarks/other_programs.py vllm FOLDER
    python benchmarks/other_programs.py llama FOLDER

Greedy tokens must be equal, and log-probabilities or logits agree within rounding; a line is printed for each file.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

PROMPT = [5, 100, 200, 300, 77, 12]
TOKENS = 12
METHODS = {
    "lora": "LoRA(r=8)",
    "all-maps": "LoRA(r=4, sites='*.{attn,ffn}.*')",
    "rs-lora": "RsLoRA(r=4)",
    "ranks": "LoRA(r=2, ranks=(('layers.0.attn.q', 6),))",
    "pissa": "PiSSA(r=4)",
    "loha": "LoHa(r=2)",
    "vblora": "VBLoRA(r=2)",
    "dora": "DoRA(r=2)",
}


def write(model_folder: str, out: str) -> None:
    """Write adapters of random values for each program, with the outputs that they should give."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import deltatune as dt

    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    host = dt.Host(model)
    ids = torch.tensor([PROMPT])
    expected: dict[str, Any] = {"model": str(Path(model_folder).resolve()), "adapters": {}}

    def outputs(route: Any) -> dict[str, Any]:
        with torch.no_grad(), host.using(route, training=False):
            made = model.generate(ids, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
            logits = model(made).logits[0].float()
        chosen = made[0, len(PROMPT) :]
        steps = logits[len(PROMPT) - 1 : -1].log_softmax(-1)
        return {
            "tokens": chosen.tolist(),
            "logprobs": steps.gather(1, chosen[:, None])[:, 0].tolist(),
            "logits": logits[: len(PROMPT)].tolist(),
        }

    expected["base"] = outputs(None)
    for name, text in METHODS.items():
        adapter = host.attach(name, dt.parse(text), head=False)
        noise = torch.Generator().manual_seed(0)
        for parameter in adapter.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=noise)
        expected["adapters"][name] = {"1": outputs({name: 1.0}), "0.5": outputs({name: 0.5})}
    place = Path(out)
    dt.export(host, list(METHODS), place / "vllm", "vllm", rank=512)
    dt.export(host, [name for name in METHODS if name != "dora"], place / "gguf", "gguf")
    dt.export(host, "dora", place / "dora", "gguf", rank=512)
    for dtype in ("float32", "float16"):
        dt.export(host, "lora", place / f"model-{dtype}", "gguf", merge=True, tokenizer=tokenizer, dtype=dtype)
    dt.export(host, "lora", place / "base", "gguf", merge=True, weight=0.0, tokenizer=tokenizer)
    texts = ["Hello world! It's 12345 o'clock.\n\n  Tabs\tand   spaces", "Ünïcödé — 東京 🚀 'LL don't", "a  b\r\n c"]
    expected["texts"] = [[text, tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    (place / "expected.json").write_text(json.dumps(expected))


def check_vllm(folder: str) -> int:
    """Serve all LoRAs in vLLM on the processor, in float32."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    expected = json.loads((Path(folder) / "expected.json").read_text())
    llm = LLM(
        expected["model"], dtype="float32", enable_lora=True, max_lora_rank=512, max_loras=2, enforce_eager=True,
        max_model_len=128, max_num_seqs=4, enable_prefix_caching=False,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=1, ignore_eos=True)
    failed = 0
    for number, (name, runs) in enumerate([("base", {"1": expected["base"]}), *expected["adapters"].items()]):
        request = LoRARequest(name, number, str(Path(folder, "vllm", name).resolve())) if number else None
        output = llm.generate([{"prompt_token_ids": PROMPT}], sampling, lora_request=request, use_tqdm=False)[0]
        tokens = list(output.outputs[0].token_ids)
        found = [step[token].logprob for step, token in zip(output.outputs[0].logprobs, tokens, strict=True)]
        worst = max(abs(a - b) for a, b in zip(found, runs["1"]["logprobs"], strict=True))
        same = tokens == runs["1"]["tokens"]
        failed += not (same and worst < 1e-3)
        print(f"{name:10} tokens {'equal' if same else 'DIFFER'}  log-probabilities differ by {worst:.1e}", flush=True)
    return failed


def check_llama(folder: str) -> int:
    """Load the GGUF files in llama.cpp, with caches in float32."""
    import numpy as np
    from llama_cpp import Llama

    place = Path(folder)
    expected = json.loads((place / "expected.json").read_text())
    failed = 0

    def run(
        label: str, file: Path, wanted: dict[str, Any], bound: float, lora: Path | None = None, scale: float = 1.0
    ) -> None:
        nonlocal failed
        llama = Llama(
            str(file), n_ctx=64, n_batch=64, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=1,
            lora_path=None if lora is None else str(lora), lora_scale=scale,
        )  # fmt: skip
        llama.eval(PROMPT)
        worst = float(abs(np.array(llama.scores[: len(PROMPT)]) - np.array(wanted["logits"])).max())
        llama.reset()
        tokens: list[int] = []
        for token in llama.generate(PROMPT, top_k=1, temp=0.0):
            tokens.append(int(token))
            if len(tokens) == TOKENS:
                break
        same = tokens == wanted["tokens"]
        texts = all(llama.tokenize(text.encode(), add_bos=False) == ids for text, ids in expected["texts"])
        failed += not (same and texts and worst < bound)
        print(
            f"{label:20} tokens {'equal' if same else 'DIFFER'}, logits differ by {worst:.1e}, texts {texts}",
            flush=True,
        )

    run("base", place / "base" / "model.gguf", expected["base"], 1e-3)
    run("merged float32", place / "model-float32" / "model.gguf", expected["adapters"]["lora"]["1"], 1e-3)
    run("merged float16", place / "model-float16" / "model.gguf", expected["adapters"]["lora"]["1"], 3e-2)
    for name, runs in expected["adapters"].items():
        lora = (place / "dora" if name == "dora" else place / "gguf" / name) / "adapter.gguf"
        run(name, place / "base" / "model.gguf", runs["1"], 1e-3, lora)
        run(f"{name} at 0.5", place / "base" / "model.gguf", runs["0.5"], 1e-3, lora, 0.5)
    return failed


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "write":
        write(*rest)
    else:
        sys.exit(min({"vllm": check_vllm, "llama": check_llama}[what](*rest), 1))
