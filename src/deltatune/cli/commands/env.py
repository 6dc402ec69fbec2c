"""`deltatune env`: versions and device, for bug reports."""

from __future__ import annotations

import platform
from typing import Annotated, Any

import typer

from deltatune.cli.ui.screen import facts, print_json, show
from deltatune.models.versions import versions


def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions and the device, for bug reports."""
    found = environment()
    if as_json:
        print_json(found)
        return
    flat = {"deltatune": found["deltatune"], "python": found["python"], "system": found["system"]}
    flat |= {name: number or "not installed" for name, number in found["packages"].items()}
    show(facts([*flat.items(), *_device_facts(found["device"])]))


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
    """What models run on here."""
    try:
        import torch
    except (ImportError, OSError) as error:  # a broken torch is what one reports
        return {"error": f"torch cannot be imported: {error}"}
    from deltatune.models.hardware import native_bfloat16

    cuda = torch.cuda.is_available()
    where = torch.device("cuda" if cuda else "cpu")
    return {
        "kind": where.type,
        "name": torch.cuda.get_device_name(0) if cuda else _processor(),
        "count": torch.cuda.device_count() if cuda else 1,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "threads": torch.get_num_threads(),
        "fast_bfloat16": native_bfloat16(where),
    }


def _device_facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    if "error" in found:
        return [("device", found["error"])]
    many = f"{found['count']} x " if found["count"] > 1 else ""
    memory = f", {found['memory_bytes'] / 1e9:.0f} GB" if found["memory_bytes"] else ""
    half = "faster than float32" if found["fast_bfloat16"] else "no faster than float32, so not used by itself"
    return [
        ("device", f"{found['kind']}: {many}{found['name']}{memory}"),
        ("threads", str(found["threads"])),
        ("bfloat16", half),
    ]


def _processor() -> str:
    """The processor's name where Linux tells it, else its kind."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
