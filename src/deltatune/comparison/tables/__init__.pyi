from deltatune.comparison.tables.table_file import is_table as is_table
from deltatune.comparison.tables.table_file import read_table as read_table
from deltatune.comparison.tables.table_run import Watch as Watch
from deltatune.comparison.tables.table_run import prepare_folder as prepare_folder
from deltatune.comparison.tables.table_run import run_table as run_table
from deltatune.comparison.tables.table_schema import TableRecipe as TableRecipe
from deltatune.comparison.tables.table_study import study_of_table as study_of_table
