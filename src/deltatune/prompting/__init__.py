"""Language models that are prompted: endpoints that generate text, and Self-Instruct, which builds data with them."""

from deltatune.prompting.endpoints.cached_endpoint import CachedEndpoint, EndpointCost
from deltatune.prompting.endpoints.endpoint import Endpoint, GenerateFunction, PromptForm, SamplingParams, Truncated
from deltatune.prompting.endpoints.local_model import LocalModel
from deltatune.prompting.endpoints.openai_server import OpenAICompatible
from deltatune.prompting.self_instruct import GenerationProgress, SelfInstruct, generate_instructions

__all__ = [
    "CachedEndpoint",
    "Endpoint",
    "EndpointCost",
    "GenerateFunction",
    "GenerationProgress",
    "LocalModel",
    "OpenAICompatible",
    "PromptForm",
    "SamplingParams",
    "SelfInstruct",
    "Truncated",
    "generate_instructions",
]
