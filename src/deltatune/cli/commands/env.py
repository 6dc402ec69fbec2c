"""`deltatune env`: versions and device, for bug reports."""

from __future__ import annotations

import platform
from typing import Any

from deltatune.cli.options.shared_options import Json
from deltatune.cli.ui.screen import facts, print_json, show
from deltatune.models.versions import versions


def env(as_json: Json = False) -> None:
    """Show versions and the device, for bug reports."""
    info = environment()
    if as_json:
        print_json(info)
        return
    flat = {name: info[name] for name in ("deltatune", "python", "system")}
    flat |= {name: version or "not installed" for name, version in info["packages"].items()}
    show(facts([*flat.items(), *_device_facts(info["device"])]))


def environment() -> dict[str, Any]:
    """Versions and the device as plain data."""
    packages = versions()
    return {
        "deltatune": packages.pop("deltatune"),
        "python": packages.pop("python"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": packages,
        "device": device(),
    }


def device() -> dict[str, Any]:
    """The device that models run on."""
    try:
        import torch
    except (ImportError, OSError) as error:  # a bug report may be about a broken torch
        return {"error": f"torch cannot be imported: {error}"}
    from deltatune.models.hardware import native_bfloat16

    cuda = torch.cuda.is_available()
    torch_device = torch.device("cuda" if cuda else "cpu")
    return {
        "kind": torch_device.type,
        "name": torch.cuda.get_device_name(0) if cuda else _processor(),
        "count": torch.cuda.device_count() if cuda else 1,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "threads": torch.get_num_threads(),
        "fast_bfloat16": native_bfloat16(torch_device),
    }


def _device_facts(info: dict[str, Any]) -> list[tuple[str, str]]:
    if "error" in info:
        return [("device", info["error"])]
    number = f"{info['count']} x " if info["count"] > 1 else ""
    memory = f", {info['memory_bytes'] / 1e9:.0f} GB" if info["memory_bytes"] else ""
    half = "faster than float32" if info["fast_bfloat16"] else "not faster than float32, so not the default"
    return [
        ("device", f"{info['kind']}: {number}{info['name']}{memory}"),
        ("threads", str(info["threads"])),
        ("bfloat16", half),
    ]


def _processor() -> str:
    """The name of the processor on Linux, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
