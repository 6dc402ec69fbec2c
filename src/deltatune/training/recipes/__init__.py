"""Recipes: a YAML file that says a whole run."""

from deltatune.training.recipes.recipe_files import as_yaml, checked_recipe, read_recipe
from deltatune.training.recipes.run_recipe import folder_of, run_recipe, run_stages
from deltatune.training.recipes.schema import Recipe, Rows, Stage, Words
from deltatune.training.recipes.steps import Step, job_of

__all__ = [
    "Recipe",
    "Rows",
    "Stage",
    "Step",
    "Words",
    "as_yaml",
    "checked_recipe",
    "folder_of",
    "job_of",
    "read_recipe",
    "run_recipe",
    "run_stages",
]
