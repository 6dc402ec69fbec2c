"""What models are asked in words, and who answers."""

from deltatune.prompting.endpoints.endpoint import SamplingParams, Truncated, Endpoint, PromptForm, GenerateFunction
from deltatune.prompting.endpoints.local_model import LocalModel
from deltatune.prompting.endpoints.openai_server import OpenAICompatible
from deltatune.prompting.self_instruct import SelfInstruct, Progress, generate_instructions

__all__ = ["SamplingParams", "Truncated", "Endpoint", "PromptForm", "SelfInstruct", "LocalModel", "OpenAICompatible", "Progress", "Write", "self-instruct"]
