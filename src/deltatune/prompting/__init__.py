"""What models are asked in words, and who answers."""

from deltatune.prompting.endpoints.endpoint import Ask, Cut, Endpoint, Form, Write
from deltatune.prompting.endpoints.local_model import LocalModel
from deltatune.prompting.endpoints.openai_server import OpenAICompatible
from deltatune.prompting.self_instruct import Growth, Step, grow

__all__ = ["Ask", "Cut", "Endpoint", "Form", "Growth", "LocalModel", "OpenAICompatible", "Step", "Write", "grow"]
