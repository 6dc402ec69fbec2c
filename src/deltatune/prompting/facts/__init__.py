"""Facts that a language model knows: objects of relations, asked for in wordings with a blank."""

from deltatune.prompting.facts.fact_questions import FactStudy
from deltatune.prompting.facts.fact_ranks import WordingRanks, rank_objects
from deltatune.prompting.facts.fact_report import fact_report
from deltatune.prompting.facts.fact_rows import FactColumns, FactRows, facts_of
from deltatune.prompting.facts.fact_study import run_study
from deltatune.prompting.facts.fact_training import train_prompt
from deltatune.prompting.facts.wordings import as_template, read_wordings, softened

__all__ = [
    "FactColumns",
    "FactRows",
    "FactStudy",
    "WordingRanks",
    "as_template",
    "fact_report",
    "facts_of",
    "rank_objects",
    "read_wordings",
    "run_study",
    "softened",
    "train_prompt",
]
