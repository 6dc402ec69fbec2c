"""What models are asked in words, and who answers."""

from deltatune.prompting.endpoints import Ask, Cut, Endpoint, Form, Write
from deltatune.prompting.growing import Growth, Step, grow
from deltatune.prompting.local import LocalModel
from deltatune.prompting.remote import OpenAICompatible

__all__ = ["Ask", "Cut", "Endpoint", "Form", "Growth", "LocalModel", "OpenAICompatible", "Step", "Write", "grow"]
