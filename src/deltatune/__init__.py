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
    from deltatune.core.host import Host as Host
    from deltatune.core.method import Method as Method
    from deltatune.core.registry import parse as parse
    from deltatune.core.sites.discovery import find_sites as find_sites
    from deltatune.core.sites.site import Site as Site
    from deltatune.core.sites.site import Sites as Sites
    from deltatune.methods.adapters.adapterdrop import AdapterDrop as AdapterDrop
    from deltatune.methods.adapters.adapterdrop import RobustAdapterDrop as RobustAdapterDrop
    from deltatune.methods.adapters.bottleneck import Bottleneck as Bottleneck
    from deltatune.methods.adapters.bottleneck import Houlsby as Houlsby
    from deltatune.methods.adapters.bottleneck import Parallel as Parallel
    from deltatune.methods.adapters.bottleneck import Pfeiffer as Pfeiffer
    from deltatune.methods.adapters.compacter import Compacter as Compacter
    from deltatune.methods.adapters.compacter import CompacterPlusPlus as CompacterPlusPlus
    from deltatune.methods.adapters.fusion import AdapterFusion as AdapterFusion
    from deltatune.methods.base_weights.bitfit import BitFit as BitFit
    from deltatune.methods.base_weights.intrinsic import DID as DID
    from deltatune.methods.base_weights.intrinsic import SAID as SAID
    from deltatune.methods.base_weights.unfreeze import Embeddings as Embeddings
    from deltatune.methods.base_weights.unfreeze import Full as Full
    from deltatune.methods.base_weights.unfreeze import Probe as Probe
    from deltatune.methods.base_weights.unfreeze import TopLayers as TopLayers
    from deltatune.methods.base_weights.unfreeze import Unfreeze as Unfreeze
    from deltatune.methods.combinations.mam import MAM as MAM
    from deltatune.methods.combinations.unified import Unified as Unified
    from deltatune.methods.combinations.unipelt import UniPELT as UniPELT
    from deltatune.methods.low_rank.dora import DoRA as DoRA
    from deltatune.methods.low_rank.longlora import LongLoRA as LongLoRA
    from deltatune.methods.low_rank.lora import LoRA as LoRA
    from deltatune.methods.low_rank.lora import LoRAPlus as LoRAPlus
    from deltatune.methods.low_rank.lora import RsLoRA as RsLoRA
    from deltatune.methods.low_rank.pissa import PiSSA as PiSSA
    from deltatune.methods.low_rank.vera import VeRA as VeRA
    from deltatune.methods.prompts.prefix import Prefix as Prefix
    from deltatune.methods.prompts.prefix import PTuningV2 as PTuningV2
    from deltatune.methods.prompts.prompt import Prompt as Prompt
    from deltatune.methods.prompts.ptuning import PTuning as PTuning
    from deltatune.methods.representations.ia3 import IA3 as IA3
    from deltatune.methods.representations.reft import DiReFT as DiReFT
    from deltatune.methods.representations.reft import LoReFT as LoReFT
    from deltatune.methods.representations.reft import ReFT as ReFT
    from deltatune.store.arithmetic.task_arithmetic import Combined as Combined
    from deltatune.store.arithmetic.task_arithmetic import combine as combine
    from deltatune.store.loralib import load_loralib as load_loralib
    from deltatune.tasks.prompts.soft_prompt_templates import Template as Template
    from deltatune.tasks.tokenization import worded as worded
    from deltatune.training import ensemble as ensemble
    from deltatune.training import fuse as fuse
    from deltatune.training import predict as predict
    from deltatune.training import train as train

__version__ = "0.1.0"

_WHERE = {
    "Adapter": "core.adapter",
    "AdapterDrop": "methods.adapters.adapterdrop",
    "AdapterFusion": "methods.adapters.fusion",
    "BitFit": "methods.base_weights.bitfit",
    "Bottleneck": "methods.adapters.bottleneck",
    "Combined": "store.arithmetic.task_arithmetic",
    "Compacter": "methods.adapters.compacter",
    "CompacterPlusPlus": "methods.adapters.compacter",
    "DID": "methods.base_weights.intrinsic",
    "Delta": "core.delta",
    "DeltatuneError": "core.errors",
    "DiReFT": "methods.representations.reft",
    "DoRA": "methods.low_rank.dora",
    "Embeddings": "methods.base_weights.unfreeze",
    "Full": "methods.base_weights.unfreeze",
    "Host": "core.host",
    "Houlsby": "methods.adapters.bottleneck",
    "IA3": "methods.representations.ia3",
    "LoRA": "methods.low_rank.lora",
    "LoRAPlus": "methods.low_rank.lora",
    "LoReFT": "methods.representations.reft",
    "LongLoRA": "methods.low_rank.longlora",
    "MAM": "methods.combinations.mam",
    "Method": "core.method",
    "PTuning": "methods.prompts.ptuning",
    "PTuningV2": "methods.prompts.prefix",
    "Parallel": "methods.adapters.bottleneck",
    "Pfeiffer": "methods.adapters.bottleneck",
    "PiSSA": "methods.low_rank.pissa",
    "Prefix": "methods.prompts.prefix",
    "Probe": "methods.base_weights.unfreeze",
    "Prompt": "methods.prompts.prompt",
    "ReFT": "methods.representations.reft",
    "RobustAdapterDrop": "methods.adapters.adapterdrop",
    "RsLoRA": "methods.low_rank.lora",
    "SAID": "methods.base_weights.intrinsic",
    "Site": "core.sites.site",
    "Sites": "core.sites.site",
    "Template": "tasks.prompts.soft_prompt_templates",
    "TopLayers": "methods.base_weights.unfreeze",
    "Unfreeze": "methods.base_weights.unfreeze",
    "UniPELT": "methods.combinations.unipelt",
    "Unified": "methods.combinations.unified",
    "VeRA": "methods.low_rank.vera",
    "combine": "store.arithmetic.task_arithmetic",
    "ensemble": "training",
    "find_sites": "core.sites.discovery",
    "fit_budget": "core.budget",
    "fuse": "training",
    "load_loralib": "store.loralib",
    "parse": "core.registry",
    "predict": "training",
    "train": "training",
    "worded": "tasks.tokenization",
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
