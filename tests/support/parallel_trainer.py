"""What two processes do in `test_quantized_trainers.py`: `torchrun parallel_trainer.py FOLDER HOW`.

torch's own DistributedDataParallel around a quantised base with an adapter, as other trainers use it.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import deltatune
from support import models


def hosted(folder, how):
    if how == "ours":
        deltatune.quantize_(model := AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), "nf4")
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
    host = deltatune.Host(model.train())
    host.attach("a", deltatune.LoRA(r=2))
    return host


def stepped(host, model, rows):
    """Three steps over some of the rows."""
    optimizer = torch.optim.SGD([parameter for _, parameter in host.trainable("a")], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in host.trainable("a")}


def token_rows():
    return torch.randint(5, models.VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    folder, how = sys.argv[1:]
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    host = hosted(Path(folder) / "model", how)
    model = DistributedDataParallel(host.model)
    assert not [buffer for buffer in model.modules_buffers if buffer.dtype == torch.uint8]
    save_file(stepped(host, model, token_rows()[2 * rank : 2 * rank + 2]), Path(folder) / f"{how}.{rank}.safetensors")
    torch.distributed.destroy_process_group()
