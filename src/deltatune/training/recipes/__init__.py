"""Recipes: a YAML file that says a whole run."""

from deltatune.training.recipes.reading import checked_recipe, read_recipe
from deltatune.training.recipes.running import folder_of, run_recipe
from deltatune.training.recipes.schema import Recipe, Rows, Stage, Words
from deltatune.training.recipes.stages import run_stages
from deltatune.training.recipes.steps import Step, job_of
from deltatune.training.recipes.writing import as_yaml

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
