"""Every prompting method; importing this module registers them under the entry point group `deltatune.prompting`."""

from deltatune.prompting.chain_of_thought import ChainOfThought
from deltatune.prompting.in_context.in_context_learning import ICL
from deltatune.prompting.in_context.meta_icl import MetaICL
from deltatune.prompting.pet.pet import IPET, PET
from deltatune.prompting.prompt_search.autoprompt import AutoPrompt
from deltatune.prompting.prompt_search.lm_bff import LMBFF
from deltatune.prompting.prompt_search.template_search import TemplateSearch
from deltatune.prompting.template_ensemble import TemplateEnsemble
from deltatune.prompting.zero_shot import Cloze, ZeroShot

__all__ = [
    "ICL",
    "IPET",
    "LMBFF",
    "PET",
    "AutoPrompt",
    "ChainOfThought",
    "Cloze",
    "MetaICL",
    "TemplateEnsemble",
    "TemplateSearch",
    "ZeroShot",
]
