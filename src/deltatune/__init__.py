"""Adapt a frozen pretrained transformer by training a sliver of it, and find out which method is best.

`Host` plugs adapters into a model; `LoRA`, `Bottleneck`, `Prefix`, ... are the methods; `parse` reads them from text.
Names are imported when first used, so that the command line starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltatune.core.adapter import Adapter as Adapter
    from deltatune.core.budget import fit_budget as fit_budget
    from deltatune.core.delta import Delta as Delta
    from deltatune.core.errors import DeltatuneError as DeltatuneError
    from deltatune.core.finding import find_sites as find_sites
    from deltatune.core.host import Host as Host
    from deltatune.core.method import Method as Method
    from deltatune.core.sites import Site as Site
    from deltatune.core.sites import Sites as Sites
    from deltatune.core.text import parse as parse
    from deltatune.methods.adapterdrop import AdapterDrop as AdapterDrop
    from deltatune.methods.adapterdrop import RobustAdapterDrop as RobustAdapterDrop
    from deltatune.methods.bitfit import BitFit as BitFit
    from deltatune.methods.bottleneck import Bottleneck as Bottleneck
    from deltatune.methods.bottleneck import Houlsby as Houlsby
    from deltatune.methods.bottleneck import Parallel as Parallel
    from deltatune.methods.bottleneck import Pfeiffer as Pfeiffer
    from deltatune.methods.compacter import Compacter as Compacter
    from deltatune.methods.compacter import CompacterPlusPlus as CompacterPlusPlus
    from deltatune.methods.dora import DoRA as DoRA
    from deltatune.methods.fusion import AdapterFusion as AdapterFusion
    from deltatune.methods.ia3 import IA3 as IA3
    from deltatune.methods.intrinsic import DID as DID
    from deltatune.methods.intrinsic import SAID as SAID
    from deltatune.methods.longlora import LongLoRA as LongLoRA
    from deltatune.methods.lora import LoRA as LoRA
    from deltatune.methods.lora import LoRAPlus as LoRAPlus
    from deltatune.methods.mam import MAM as MAM
    from deltatune.methods.pissa import PiSSA as PiSSA
    from deltatune.methods.prefix import Prefix as Prefix
    from deltatune.methods.prefix import PTuningV2 as PTuningV2
    from deltatune.methods.prompt import Prompt as Prompt
    from deltatune.methods.ptuning import PTuning as PTuning
    from deltatune.methods.reft import DiReFT as DiReFT
    from deltatune.methods.reft import LoReFT as LoReFT
    from deltatune.methods.reft import ReFT as ReFT
    from deltatune.methods.rslora import RsLoRA as RsLoRA
    from deltatune.methods.unfreeze import Embeddings as Embeddings
    from deltatune.methods.unfreeze import Full as Full
    from deltatune.methods.unfreeze import Probe as Probe
    from deltatune.methods.unfreeze import TopLayers as TopLayers
    from deltatune.methods.unfreeze import Unfreeze as Unfreeze
    from deltatune.methods.unified import Unified as Unified
    from deltatune.methods.unipelt import UniPELT as UniPELT
    from deltatune.methods.vera import VeRA as VeRA
    from deltatune.store.arithmetic import Combined as Combined
    from deltatune.store.arithmetic import combine as combine
    from deltatune.store.loralib import load_loralib as load_loralib
    from deltatune.tasks.templates import Template as Template
    from deltatune.tasks.words import worded as worded
    from deltatune.training import ensemble as ensemble
    from deltatune.training import fuse as fuse
    from deltatune.training import predict as predict
    from deltatune.training import train as train

__version__ = "0.1.0"

_WHERE = {
    "Adapter": "core.adapter",
    "AdapterDrop": "methods.adapterdrop",
    "AdapterFusion": "methods.fusion",
    "BitFit": "methods.bitfit",
    "Bottleneck": "methods.bottleneck",
    "Combined": "store.arithmetic",
    "Compacter": "methods.compacter",
    "CompacterPlusPlus": "methods.compacter",
    "DID": "methods.intrinsic",
    "Delta": "core.delta",
    "DeltatuneError": "core.errors",
    "DiReFT": "methods.reft",
    "DoRA": "methods.dora",
    "Embeddings": "methods.unfreeze",
    "Full": "methods.unfreeze",
    "Host": "core.host",
    "Houlsby": "methods.bottleneck",
    "IA3": "methods.ia3",
    "LoRA": "methods.lora",
    "LoRAPlus": "methods.lora",
    "LoReFT": "methods.reft",
    "LongLoRA": "methods.longlora",
    "MAM": "methods.mam",
    "Method": "core.method",
    "PTuning": "methods.ptuning",
    "PTuningV2": "methods.prefix",
    "Parallel": "methods.bottleneck",
    "Pfeiffer": "methods.bottleneck",
    "PiSSA": "methods.pissa",
    "Prefix": "methods.prefix",
    "Probe": "methods.unfreeze",
    "Prompt": "methods.prompt",
    "ReFT": "methods.reft",
    "RobustAdapterDrop": "methods.adapterdrop",
    "RsLoRA": "methods.rslora",
    "SAID": "methods.intrinsic",
    "Site": "core.sites",
    "Sites": "core.sites",
    "Template": "tasks.templates",
    "TopLayers": "methods.unfreeze",
    "Unfreeze": "methods.unfreeze",
    "UniPELT": "methods.unipelt",
    "Unified": "methods.unified",
    "VeRA": "methods.vera",
    "combine": "store.arithmetic",
    "ensemble": "training",
    "find_sites": "core.finding",
    "fit_budget": "core.budget",
    "fuse": "training",
    "load_loralib": "store.loralib",
    "parse": "core.text",
    "predict": "training",
    "train": "training",
    "worded": "tasks.words",
}

__all__ = [  # noqa: RUF022 (it takes DID for a constant; the order is the plain one)
    "Adapter",
    "AdapterDrop",
    "AdapterFusion",
    "BitFit",
    "Bottleneck",
    "Combined",
    "Compacter",
    "CompacterPlusPlus",
    "DID",
    "Delta",
    "DeltatuneError",
    "DiReFT",
    "DoRA",
    "Embeddings",
    "Full",
    "Host",
    "Houlsby",
    "IA3",
    "LoRA",
    "LoRAPlus",
    "LoReFT",
    "LongLoRA",
    "MAM",
    "Method",
    "PTuning",
    "PTuningV2",
    "Parallel",
    "Pfeiffer",
    "PiSSA",
    "Prefix",
    "Probe",
    "Prompt",
    "ReFT",
    "RobustAdapterDrop",
    "RsLoRA",
    "SAID",
    "Site",
    "Sites",
    "Template",
    "TopLayers",
    "Unfreeze",
    "UniPELT",
    "Unified",
    "VeRA",
    "__version__",
    "combine",
    "ensemble",
    "find_sites",
    "fit_budget",
    "fuse",
    "load_loralib",
    "parse",
    "predict",
    "train",
    "worded",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'deltatune' has no attribute {name!r}")
    return getattr(import_module(f"deltatune.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
