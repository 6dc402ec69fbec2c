"""The public names of tasks. `__init__.py` reads where they come from here."""

from deltatune.tasks.classification import Classify as Classify
from deltatune.tasks.collator import PaddingCollator as PaddingCollator
from deltatune.tasks.collator import collator_for as collator_for
from deltatune.tasks.diffusion.text_to_image import TextToImage as TextToImage
from deltatune.tasks.extractive_qa import ExtractiveQA as ExtractiveQA
from deltatune.tasks.generation import Generate as Generate
from deltatune.tasks.heads import Head as Head
from deltatune.tasks.heads import HeadConfig as HeadConfig
from deltatune.tasks.heads import head_from_json as head_from_json
from deltatune.tasks.language_modeling import LanguageModel as LanguageModel
from deltatune.tasks.mixture import Mixture as Mixture
from deltatune.tasks.multilabel import MultiLabel as MultiLabel
from deltatune.tasks.preferences.preference import Prefer as Prefer
from deltatune.tasks.tagging import Tag as Tag
from deltatune.tasks.task import Encoded as Encoded
from deltatune.tasks.task import LanguageModelTask as LanguageModelTask
from deltatune.tasks.task import Row as Row
from deltatune.tasks.task import Task as Task
from deltatune.tasks.task import TokenRow as TokenRow
from deltatune.tasks.task_registry import task_from_json as task_from_json
from deltatune.tasks.tokenization import longest_input as longest_input
from deltatune.tasks.tokenization import padding_id as padding_id
from deltatune.tasks.tokenization import tokenizer_fingerprint as tokenizer_fingerprint
