"""What two processes do in tests/neighbours/: `torchrun neighbour_processes.py FOLDER WAY ...`.

Ways: ddp, fsdp2, fsdp2-pieces (of the adapter too), fsdp2-unknown (the base is not remembered before).

A user's own loop around DistributedDataParallel or `fully_shard`: attach, train, save; each process writes a line.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from deltatune.core.errors import DeltatuneError
from deltatune.store.fingerprint import remember
from support import models
from support.neighbours import hosted, values


def wrapped(host, how):
    if how == "ddp":
        return DistributedDataParallel(host.model)
    from torch.distributed.fsdp import fully_shard

    own = set(host.model.deltatune.parameters()) if how != "fsdp2-pieces" else set()
    for layer in host.model.model.layers:
        fully_shard(layer, ignored_params=own)
    return fully_shard(host.model, ignored_params=own)


def stepped(host, model, rows, average):
    """Three steps over some of the rows; the gradients of what nothing else averages are averaged here."""
    parameters = [parameter for _, parameter in host.trainable("mine")]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        for parameter in parameters if average else ():
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= torch.distributed.get_world_size()
        optimizer.step()


def token_rows():
    return torch.randint(5, models.VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(0))


def main(folder, how):
    """One way, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    rank = torch.distributed.get_rank()
    host = hosted()
    if "unknown" not in how:
        remember(host)
    model = wrapped(host, how)
    stepped(host, model, token_rows()[2 * rank : 2 * rank + 2], average=how in ("fsdp2", "fsdp2-unknown"))
    said = {}
    try:
        if rank == 0:
            host.save("mine", folder / "adapter")
            host.model.save_pretrained(folder / "out")
    except DeltatuneError as error:
        said["refused"] = str(error)
    tensors = {name: getattr(value, "full_tensor", value.clone)() for name, value in values(host).items()}
    save_file(tensors, folder / f"{rank}.safetensors")
    torch.distributed.barrier()
    with torch.no_grad():
        save_file({"logits": model.eval()(input_ids=token_rows()[:1]).logits}, folder / f"logits-{rank}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    for how in sys.argv[2:]:
        main(Path(sys.argv[1]) / how, how)
    torch.distributed.destroy_process_group()
