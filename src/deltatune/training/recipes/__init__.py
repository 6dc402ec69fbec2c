"""Recipes: a YAML file that says a whole run, single or in stages."""

from deltatune.training.recipes.reading import as_yaml, checked_recipe, read_recipe
from deltatune.training.recipes.running import folder_of, job_of, run_recipe
from deltatune.training.recipes.schema import Recipe, Source, Stage, Words
from deltatune.training.recipes.stages import measured, run_stages

__all__ = [
    "Recipe",
    "Source",
    "Stage",
    "Words",
    "as_yaml",
    "checked_recipe",
    "folder_of",
    "job_of",
    "measured",
    "read_recipe",
    "run_recipe",
    "run_stages",
]
