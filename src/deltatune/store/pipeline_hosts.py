"""Hosts on the parts of a pipeline of diffusers, as one: a LoRA for pictures may change text encoders too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from deltatune.core.errors import DeltatuneError, nearest, raise_all
from deltatune.core.host import Host
from deltatune.core.host_parts.bank import BankedAdapter
from deltatune.core.route import unknown_adapters
from deltatune.store.atomic_files import write_folder
from deltatune.store.model_saving.adapter_hub import local_folder
from deltatune.store.peft.pipelines.lora_file import FILE, obstacles, read_file, write_components
from deltatune.store.peft.pipelines.lora_keys import COMPONENTS


class PipelineHosts(Mapping[str, Host]):
    """The hosts of a pipeline by the names of its parts: `hosts["unet"]`, `hosts["text_encoder"]`.

    An adapter of one name may be on several of them; `use`, `save` and `load` are for all. It has no effect on the
    pipeline's other parts, and `pipe(...)` is called as before.
    """

    def __init__(self, pipe: Any, parts: Sequence[str] | None = None) -> None:
        """`parts`: names of the pipeline's modules; None for those for which diffusers loads LoRAs.

        Raises DeltatuneError for parts that the pipeline has not.
        """
        have = [name for name in COMPONENTS if isinstance(getattr(pipe, name, None), nn.Module)]
        loadable = getattr(pipe, "_lora_loadable_modules", COMPONENTS[:2])
        wanted = [name for name in have if name in loadable] if parts is None else list(parts)
        missing = [name for name in wanted if name not in have]
        raise_all(
            [
                f"this {type(pipe).__name__} has no part {name!r}{nearest(name, have)}; it has: {', '.join(have)}"
                for name in missing
            ]
        )
        if not wanted:
            raise DeltatuneError(f"this {type(pipe).__name__} has no U-Net and no transformer to adapt")
        self.pipe, self.loadable = pipe, loadable
        self._hosts = {name: Host(getattr(pipe, name)) for name in wanted}

    def __getitem__(self, part: str) -> Host:
        return self._hosts[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hosts)

    def __len__(self) -> int:
        return len(self._hosts)

    @property
    def adapters(self) -> dict[str, list[str]]:
        """The parts on which each adapter is attached."""
        names = dict.fromkeys(name for host in self.values() for name in host.adapters)
        return {name: [part for part, host in self.items() if name in host.adapters] for name in names}

    def use(self, route: str | Mapping[str, float] | None) -> None:
        """Choose the adapters that act, on every part that has them: a name, names with weights, or None for none.

        `use({"ink": 0.7, "neon": 0.4})` is diffusers' `pipe.set_adapters(["ink", "neon"], [0.7, 0.4])`. For adapters
        row by row call `hosts["unet"].use`. Raises DeltatuneError for unknown names.
        """
        for part, own in self._routes(route).items():
            self[part].use(own)

    @contextmanager
    def using(self, route: str | Mapping[str, float] | None) -> Iterator[None]:
        """`use` for the length of a `with` block."""
        with ExitStack() as stack:
            for part, own in self._routes(route).items():
                stack.enter_context(self[part].using(own))
            yield

    def save(self, name: str, folder: str | Path) -> Path:
        """Write an adapter, on all parts that have it, as the folder that `pipe.load_lora_weights(folder)` takes.

        Raises DeltatuneError for methods that diffusers' format cannot hold; `hosts["unet"].save` writes any method.
        """
        raise_all(unknown_adapters([name], self.adapters))
        adapters, problems = {}, []
        for part in self.adapters[name]:
            adapter = self[part].adapters[name]
            if isinstance(adapter, BankedAdapter):
                problems.append(f"{part}: it is in the bank; attach it to save it")
                continue
            finished = adapter.without_reparametrisation()
            problems += [f"{part}: {reason}" for reason in obstacles(self[part], finished)]
            if part not in self.loadable:
                problems.append(f"{part}: {type(self.pipe).__name__} loads LoRAs for {', '.join(self.loadable)} alone")
            adapters[part] = (self[part], finished)
        raise_all(problems, f"adapter {name!r} cannot be written for diffusers:" if problems else "")
        write_folder(Path(folder), lambda work: write_components(work / FILE, adapters))
        return Path(folder)

    def load(self, place: str | Path, *, name: str | None = None) -> dict[str, list[str]]:
        """Attach the LoRA of a file, a folder or a hub name to the parts it is for, under one name; it is not used yet
        where others are. Returns the parts of each adapter.

        Reads diffusers' and kohya's files. Raises DeltatuneError for tensors that have no place, and attaches nothing.
        """
        path, default = local_folder(str(place), None)
        name, file = name or default, read_file(path)
        denoiser = next((part for part in self if part in COMPONENTS[:2]), "denoiser")
        wanted = list(dict.fromkeys(denoiser if part == "denoiser" else part for part in file.parts))
        homeless = [part for part in wanted if part not in self]
        raise_all(
            [
                f"{file.path} holds a LoRA of {part}, and the hosts are on {', '.join(self)}; "
                "make them on all its parts: PipelineHosts(pipe)"
                for part in homeless
            ]
        )
        done: list[str] = []
        try:
            for part in wanted:
                file.attach(self[part], part, name)
                done.append(part)
        except DeltatuneError:
            for part in done:
                self[part].detach(name)
            raise
        return self.adapters

    def _routes(self, route: str | Mapping[str, float] | None) -> dict[str, dict[str, float]]:
        """The part of a route that each host can follow."""
        weights = {} if route is None else {route: 1.0} if isinstance(route, str) else dict(route)
        raise_all(unknown_adapters(weights, self.adapters))
        return {
            part: {name: weight for name, weight in weights.items() if name in host.adapters}
            for part, host in self.items()
        }
