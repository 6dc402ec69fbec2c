"""Recipes: YAML files that describe a whole run, with one training, several adapters or several stages."""

from deltatune.training.recipes.recipe_files import as_yaml, checked_recipe, read_recipe
from deltatune.training.recipes.run_recipe import folder_of, run_recipe, run_stages
from deltatune.training.recipes.schema import Recipe, Rows, Stage, Vocabulary
from deltatune.training.recipes.stages import AdaptersInfo, StageInfo, job_of

__all__ = [
    "AdaptersInfo",
    "Recipe",
    "Rows",
    "Stage",
    "StageInfo",
    "Vocabulary",
    "as_yaml",
    "checked_recipe",
    "folder_of",
    "job_of",
    "read_recipe",
    "run_recipe",
    "run_stages",
]
